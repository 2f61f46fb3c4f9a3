"""What a step takes by the shape of its batch, not only by its size.

    python -m benchmarks.step_shapes MODEL.gguf --gpu-layers -1

The same number of rows as a chain, as a tree of several branches, with the number of branches or of
rows changing from step to step, and with a pause between steps. llama.cpp keeps the graph of the
step before when rows and sequence ids are as many; a CUDA graph also wants the same addresses.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

from gorgon.backend import BatchRow
from gorgon.config import EngineSettings
from gorgon.llama.backend import LlamaBackend

MAIN, REPEATS = 1, 40


def chain(context: int, rows: int) -> list[BatchRow]:
    return [BatchRow(5 + i, context + i, (MAIN,)) for i in range(rows)]


def fan(context: int, rows: int, branches: int) -> list[BatchRow]:
    """A root, ``branches - 1`` leaves beside a chain."""
    ids = range(MAIN, MAIN + branches)
    chain_rows = [BatchRow(5 + i, context + i, (MAIN,)) for i in range(1, rows - branches + 1)]
    leaves = [BatchRow(90 + i, context + 1, (i,)) for i in ids if i != MAIN]
    return [BatchRow(5, context, tuple(ids)), *chain_rows, *leaves]


def batches(context: int, n: int) -> dict[str, Iterator[list[BatchRow]]]:
    half = max(2, n // 2)
    return {
        "chain": itertools.repeat(chain(context, n)),
        f"{half} branches": itertools.repeat(fan(context, n, half)),
        f"{half} or {half - 1} branches": itertools.cycle(
            [fan(context, n, half), fan(context, n, half - 1)]
        ),
        "one row more or less": itertools.cycle([chain(context, n), chain(context, n - 1)]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--gpu-layers", type=int, default=0)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--context", type=int, default=300)
    parser.add_argument("--sizes", type=int, nargs="+", default=[2, 4, 9, 16])
    parser.add_argument("--pauses", type=float, nargs="+", default=[0, 1], help="ms between steps")
    args = parser.parse_args()
    given = {"threads": args.threads} if args.threads else {}
    settings = EngineSettings(model=args.model, gpu_layers=args.gpu_layers, num_cells=4096, **given)
    backend = LlamaBackend(settings)
    rows = chain(0, args.context)
    for start in range(0, len(rows), backend.max_rows):
        backend.prefill(rows[start : start + backend.max_rows])
    for branch in range(MAIN + 1, MAIN + 1 + max(args.sizes)):
        backend.share(MAIN, branch, 0, args.context)
    print("| rows | batch | " + " | ".join(f"pause {p:g} ms" for p in args.pauses) + " |")
    for n in args.sizes:
        for name, source in batches(args.context, n).items():
            found = [_median_ms(backend, args.context, source, pause) for pause in args.pauses]
            print(f"| {n} | {name} | " + " | ".join(f"{ms:.2f}" for ms in found) + " |", flush=True)
    backend.close()


def _median_ms(
    backend: LlamaBackend, context: int, source: Iterator[list[BatchRow]], pause: float
) -> float:
    times = []
    for rows in itertools.islice(source, REPEATS):
        began = time.perf_counter()
        backend.decode(rows)
        times.append(time.perf_counter() - began)
        for sequence in {s for row in rows for s in row.sequences}:
            backend.remove(sequence, context)
        end = time.perf_counter() + pause / 1e3
        while time.perf_counter() < end:
            pass
    return statistics.median(times[6:]) * 1e3


if __name__ == "__main__":
    main()
