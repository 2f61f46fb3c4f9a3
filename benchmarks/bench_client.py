"""What the benchmark's client costs: a server of a few lines streams, the client's time is counted.

    python -m benchmarks.bench_client [--rate 1000] [--streams 1 8 32] [--seconds 8]

The server runs in a process of its own and sends events of the size and form of a chat
completion's, ``rate`` a second over all streams, each stream at its own moments: a batching server
sends the tokens of a step together, which costs the client less. "receiving" is the client's
processor time while replies come in, next to the server that it measures; "reading" is what taking
the replies apart costs afterwards, when nobody is timed. Exit code 1 when receiving takes more than
5 % of a core.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import sys
import time
from multiprocessing.connection import Connection

from gorgon.bench.exchange import Exchange, read_events, send

BAR = 0.05
WARM_UP_EVENTS = 200


def _chunk(content: str) -> bytes:
    event = {
        "id": "chatcmpl-1f0c7d6a9b5e4c3d8a7f",
        "object": "chat.completion.chunk",
        "created": 1764000000,
        "model": "default",
        "choices": [{"index": 0, "delta": {"content": content}, "finish_reason": None}],
    }
    data = b"data: " + json.dumps(event).encode() + b"\n\n"
    return b"%x\r\n%s\r\n" % (len(data), data)


async def _stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer one request: the body holds how many events, how far apart, and when to begin."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(int(ln.split(b":")[1]) for ln in head.splitlines() if b"ontent-" in ln[:9])
    order = json.loads(await reader.readexactly(length))
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n")
    data, loop = _chunk(" token"), asyncio.get_running_loop()
    due = loop.time() + order["offset"]
    for _ in range(order["events"]):
        await asyncio.sleep(max(0.0, due - loop.time()))
        writer.write(data)
        due += order["gap"]
    writer.write(b"0\r\n\r\n")
    await writer.drain()
    writer.close()


def serve(pipe: Connection) -> None:
    """Run the server until the process is ended; its port goes into the pipe."""

    async def run() -> None:
        server = await asyncio.start_server(_stream, "127.0.0.1", 0)
        pipe.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


async def ask(url: str, streams: int, rate: float, events: int) -> list[Exchange]:
    """All streams at once, each with its share of the events."""
    gap = streams / rate
    orders = [
        {"events": events // streams, "gap": gap, "offset": gap * i / streams}
        for i in range(streams)
    ]
    return list(await asyncio.gather(*(send("POST", url, order) for order in orders)))


def measure(url: str, streams: int, rate: float, seconds: float) -> tuple[float, float, float]:
    """Events a second that came, and the cores used while receiving and for reading."""
    asyncio.run(ask(url, streams, rate, WARM_UP_EVENTS))
    busy, began = time.process_time(), time.perf_counter()
    exchanges = asyncio.run(ask(url, streams, rate, int(rate * seconds)))
    received, lasted = time.process_time() - busy, time.perf_counter() - began
    busy = time.process_time()
    count = sum(len(read_events(exchange)) for exchange in exchanges)
    return count / lasted, received / lasted, (time.process_time() - busy) / lasted


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rate", type=float, default=1000.0, help="events a second in all")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--seconds", type=float, default=8.0)
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    server = context.Process(target=serve, args=(theirs,), daemon=True)
    server.start()
    url = f"http://127.0.0.1:{ours.recv()}/"
    failed = False
    print(f"{'streams':>8}{'events/s':>10}{'receiving':>12}{'a piece':>10}{'reading':>12}")
    for streams in arguments.streams:
        rate, receiving, reading = measure(url, streams, arguments.rate, arguments.seconds)
        failed |= receiving * arguments.rate / rate > BAR
        print(
            f"{streams:>8}{rate:>10.0f}{100 * receiving:>10.2f} %"
            f"{1e6 * receiving / rate:>7.1f} us{100 * reading:>10.2f} %"
        )
    server.terminate()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
