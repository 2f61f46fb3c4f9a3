"""Gorgon against llama-server on the same file and prompts, interleaved in one run.

    python -m benchmarks.serving --prompts mt_bench.jsonl --llama-server /path/to/llama-server

Both servers run side by side, one of them idle at any time; every prompt goes to every party
before the next prompt does, so that drift of the machine hits all alike. Reported are medians of
paired ratios with their quartiles.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.progress import track
from rich.table import Table

from gorgon.llama.backend import default_model
from gorgon.llama.model import inspect
from gorgon.server.text import ChatPrompt, Message, choose_template

TREES: dict[str, list[list[int]]] = {
    "chain of 1": [[0]],
    "tree of 4": [[0], [0, 0], [0, 0, 0], [1]],
    "tree of 8": [[0], [0, 0], [0, 0, 0], [0, 1], [1], [1, 0], [2], [3]],
}


@dataclass(frozen=True, slots=True)
class Answer:
    """One generation as a party reports it; ``speed`` is tokens/s of decoding alone."""

    text: str
    tokens: int
    speed: float
    tokens_per_step: float = 1.0
    accepted: float | None = None


@dataclass
class Party:
    """Something that answers prompts, and what it answered."""

    name: str
    ask: Callable[[str], Answer]
    answers: list[Answer] = field(default_factory=list)
    totals: dict[int, list[float]] = field(default_factory=dict)


def gorgon_party(client: httpx.Client, name: str, fields: dict[str, Any], length: int) -> Party:
    def ask(prompt: str) -> Answer:
        path = "/generate/normal" if name == "normal" else "/generate/medusa"
        body = {"prompt": prompt, "max_length": length, **fields}
        reply = client.post(path, json=body).raise_for_status().json()
        count = reply["tokens_generated"]
        return Answer(
            reply["text"],
            count,
            (count - 1) / max(reply["decode_time"], 1e-9),
            reply["tokens_per_step"],
            reply["acceptance_rate"],
        )

    return Party(f"gorgon {name}", ask)


def llama_party(
    client: httpx.Client, render: Callable[[str], str], fields: dict[str, Any], length: int
) -> Party:
    def ask(prompt: str) -> Answer:
        body = {"prompt": render(prompt), "n_predict": length, "temperature": 0, **fields}
        reply = client.post("/completion", json=body).raise_for_status().json()
        timings = reply["timings"]
        return Answer(reply["content"], timings["predicted_n"], timings["predicted_per_second"])

    return Party("llama-server", ask)


@contextlib.contextmanager
def server(command: list[str], url: str, ready: str, env: dict[str, str]) -> Iterator[int]:
    """Run a server; its process id once ``ready`` answers 200."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | env)
        try:
            deadline = time.monotonic() + 180
            while not _answers(url + ready):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    sys.exit(f"{command[0]} did not start:\n{log.read().decode()[-2000:]}")
                time.sleep(0.2)
            yield process.pid
        finally:
            process.terminate()
            process.wait(20)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


def resident_mb(pid: int) -> float:
    """Resident memory of a process in MB, mapped files included."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise ValueError("no VmRSS")


def run_single(parties: list[Party], prompts: list[str]) -> None:
    for prompt in track(prompts, "one client"):
        for party in parties:
            party.answers.append(party.ask(prompt))


def run_many(parties: list[Party], prompts: list[str], clients: int) -> None:
    with ThreadPoolExecutor(clients) as pool:
        for start in track(range(0, len(prompts) - clients + 1, clients), f"{clients} clients"):
            group = prompts[start : start + clients]
            for party in parties:
                began = time.perf_counter()
                tokens = sum(answer.tokens for answer in pool.map(party.ask, group))
                rate = tokens / (time.perf_counter() - began)
                party.totals.setdefault(clients, []).append(rate)


def ratio(values: list[float], base: list[float]) -> str:
    """Median and quartiles of paired ratios."""
    ratios = sorted(v / b for v, b in zip(values, base, strict=True))
    if len(ratios) < 4:
        return f"{statistics.median(ratios):.3f}"
    low, middle, high = statistics.quantiles(ratios, n=4)
    return f"{middle:.3f} ({low:.2f}-{high:.2f})"


def report(parties: list[Party], clients: list[int], memory: dict[str, float]) -> None:
    table = Table("party", "tok/s", "vs first", "tok/step", "accepted %", "same text")
    for count in clients:
        table.add_column(f"{count} clients tok/s")
        table.add_column("vs first")
    first = parties[0]
    for party in parties:
        speeds = [a.speed for a in party.answers]
        rates = [a.accepted for a in party.answers if a.accepted is not None]
        same = sum(a.text == b.text for a, b in zip(party.answers, first.answers, strict=True))
        row = [
            party.name,
            f"{statistics.median(speeds):.1f}",
            ratio(speeds, [a.speed for a in first.answers]),
            f"{statistics.mean(a.tokens_per_step for a in party.answers):.2f}",
            f"{statistics.mean(rates):.0f}" if rates else "-",
            f"{same}/{len(party.answers)}",
        ]
        for count in clients:
            row.append(f"{statistics.median(party.totals[count]):.1f}")
            row.append(ratio(party.totals[count], first.totals[count]))
        table.add_row(*row)
    console = Console(width=160)
    console.print(table)
    console.print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores;", end=" ")
    console.print(", ".join(f"{name} {size:.0f} MB resident" for name, size in memory.items()))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--prompts", type=Path, required=True, help="jsonl with 'turns'")
    parser.add_argument("--llama-server", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=None)
    parser.add_argument("--count", type=int, default=24, help="prompts")
    parser.add_argument("--length", type=int, default=128, help="new tokens")
    parser.add_argument("--clients", type=int, nargs="*", default=[8])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--trees", nargs="*", default=list(TREES), choices=list(TREES))
    args = parser.parse_args()
    lines = args.prompts.read_text().splitlines()
    step = max(1, len(lines) // args.count)
    prompts = [json.loads(line)["turns"][0] for line in lines[::step]][: args.count]
    model = args.model or default_model()
    chat = ChatPrompt(_NoVocabulary(), choose_template(inspect(model).chat_template, None))
    slots = str(max(args.clients, default=1))
    ours = [sys.executable, "-m", "gorgon.cli", "serve", "--port", "8181"]
    ours += ["--threads", str(args.threads)] + (["--model", str(args.model)] if args.model else [])
    theirs = [str(args.llama_server), "-m", str(model), "--port", "8182", "-np", slots]
    theirs += ["-c", "8192", "-t", str(args.threads), "-tb", str(args.threads), "-fa", "on"]
    with (
        server(ours, "http://127.0.0.1:8181", "/ready", {}) as our_pid,
        server(theirs, "http://127.0.0.1:8182", "/health", {}) as their_pid,
        httpx.Client(base_url="http://127.0.0.1:8181", timeout=300) as us,
        httpx.Client(base_url="http://127.0.0.1:8182", timeout=300) as them,
    ):
        parties = [
            llama_party(them, lambda p: chat.render([Message("user", p)]), {}, args.length),
            gorgon_party(us, "normal", {}, args.length),
            *(gorgon_party(us, name, {"tree": TREES[name]}, args.length) for name in args.trees),
        ]
        for party in parties:
            party.ask(prompts[0])
        run_single(parties, prompts)
        for clients in args.clients:
            run_many(parties, prompts, clients)
        memory = {"gorgon": resident_mb(our_pid), "llama-server": resident_mb(their_pid)}
        report(parties, args.clients, memory)


class _NoVocabulary:
    """A vocabulary for rendering chats only."""

    bos: int | None = None
    eos: int | None = None

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        raise NotImplementedError

    def piece(self, token: int, *, special: bool = False) -> bytes:
        raise NotImplementedError

    def control_text(self, token: int) -> str:
        raise NotImplementedError


if __name__ == "__main__":
    main()
