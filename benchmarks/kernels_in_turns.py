"""Time builds of the native library against each other, turn by turn, on a machine that drifts.

    python -m benchmarks.kernels_in_turns MODEL.gguf OLD.so NEW.so --context 1024 --batches 1 4 8

Each build has a process of its own with the same model and context; they take turns of five decodes
of n tokens, the first of which does not count: of n tokens of one text, or with ``--texts`` of one
token of each of n texts. Prints medians and least times in ms, and the median
over the turns of a build's time in parts of the first one's.
"""

from __future__ import annotations

import argparse
import datetime
import os
import subprocess
import sys
import time
from pathlib import Path

import llama_cpp.llama_cpp as llama
import numpy as np

from benchmarks.kernels import Session, quiet
from gorgon.llama import kernels

DECODES = 4


class Build:
    """A process that decodes with one library."""

    def __init__(self, library: Path, model: Path, context: int, texts: int) -> None:
        self.name = str(library)
        command = [sys.executable, "-m", "benchmarks.kernels_in_turns", str(model)]
        self.process = subprocess.Popen(
            [*command, "--decode", "--context", str(context), "--texts", str(texts)],
            env={**os.environ, "GORGON_KERNELS_LIBRARY": str(library)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._read()

    def turn(self, n: int) -> list[float]:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{n}\n")
        self.process.stdin.flush()
        return [float(word) for word in self._read().split()]

    def close(self) -> None:
        self.process.communicate()

    def _read(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name}: the process ended")
        return line


def decode(model: Path, context: int, texts: int) -> None:
    """What a Build's process does."""
    llama.llama_log_set(quiet, None)
    llama.llama_backend_init()
    status = kernels.load()
    if not status.active:
        raise SystemExit(status.reason)
    session = Session(model, weights=True, attention=True, context=context, threads=2, texts=texts)
    print(status.isa, flush=True)
    for line in sys.stdin:
        session.step(int(line))
        print(*(session.step(int(line)) for _ in range(DECODES)), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("libraries", nargs="*", type=Path)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4, 8])
    parser.add_argument("--texts", type=int, default=1, help="of --context tokens each, up to 32")
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--decode", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.decode:
        decode(arguments.model, arguments.context, arguments.texts)
        return
    shape = arguments.model, arguments.context, arguments.texts
    builds = [Build(path, *shape) for path in arguments.libraries]
    times: dict[int, list[list[list[float]]]] = {n: [] for n in arguments.batches}
    end = time.monotonic() + arguments.seconds
    while time.monotonic() < end:
        for n, turns in times.items():
            turns.append([build.turn(n) for build in builds])
    now = datetime.datetime.now(datetime.UTC).date()
    print(f"{now}, {arguments.model.name}, context {arguments.context}")
    for n, turns in times.items():
        found = np.array(turns)  # [turn][build][decode]
        medians = np.median(found, axis=2)
        for i, build in enumerate(builds):
            print(
                f"n = {n}, {build.name}: {np.median(found[:, i]):.2f} ({found[:, i].min():.2f}), "
                f"{np.median(medians[:, i] / medians[:, 0]):.3f} of the first, {len(turns)} turns"
            )
    for build in builds:
        build.close()


if __name__ == "__main__":
    main()
