"""A server against itself: how often `gorgon bench` says, rightly, that there is no difference.

    python -m benchmarks.bench_itself [--runs 10] [--prompts 12] [--clients 1]

Starts one server and lets two parties, both normal mode on that server, answer the same prompts in
turns, again and again. In nine runs of ten the speed-up's 95 % interval must hold 1, and so must
that of the streams after their first token: exit code 1 if not.
"""

from __future__ import annotations

import argparse
import contextlib
import sys

from rich.console import Console

from gorgon.bench.assemble import make_server_party
from gorgon.bench.document import Workload
from gorgon.bench.openai import HttpParty
from gorgon.bench.party import parse_mode
from gorgon.bench.prompts import load_prompts
from gorgon.bench.runner import Runner
from gorgon.bench.servers import free_port, gorgon_command, start
from gorgon.bench.statistics import Interval
from gorgon.bench.summary import speedup, stream_speedup

SHARE = 0.9


def one_run(
    parties: tuple[HttpParty, HttpParty], workload: Workload
) -> tuple[Interval, Interval, float]:
    """Speed-up of whole requests and of streams, and the client's share of a core."""
    prompts = load_prompts(None, workload.num_prompts)
    runner = Runner(parties, Console(quiet=True))
    runner.warm_up(prompts, workload)
    blocks = runner.run(prompts, workload)
    first, second = ([b for b in blocks if b.party == party.info.name] for party in parties)
    return speedup(second, first), stream_speedup(second, first), runner.client_core_share


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--length", type=int, default=32)
    parser.add_argument("--clients", type=int, default=1)
    arguments = parser.parse_args()
    held = [0, 0]
    port = free_port()
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(start(gorgon_command(port, []), port, "/ready", {}))
        mode = parse_mode("normal")
        first, second = (
            make_server_party(name, mode, server.url, server.pid, {}) for name in ("once", "again")
        )
        for run in range(arguments.runs):
            workload = Workload(
                prompts="the built-in set",
                num_prompts=arguments.prompts,
                length=arguments.length,
                natural=False,
                temperatures=[0.0],
                clients=[arguments.clients],
                repeats=1,
                waves=1,
                seed=run,
                ttft_bound=1.0,
                tpot_bound=0.1,
            )
            whole, streams, cost = one_run((first, second), workload)
            held[0] += whole.holds_one
            held[1] += streams.holds_one
            print(
                f"run {run + 1}: requests {whole}, streams {streams}, client {100 * cost:.1f} %",
                flush=True,
            )
    print(f"holds 1: requests {held[0]}, streams {held[1]} of {arguments.runs}")
    return int(min(held) < SHARE * arguments.runs)


if __name__ == "__main__":
    sys.exit(main())
