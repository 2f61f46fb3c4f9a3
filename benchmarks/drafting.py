"""What choosing the drafts of a step costs, without model and heads.

    python -m benchmarks.drafting [--pause MS]

Heads that answer at once from fixed tables stand in for real ones; t(n) is that of a machine on
which some ten drafts a request pay. Reported are the median and quartiles of the choice, and the
median of the learning after it, in milliseconds a step. With a pause before each choice, in which
nothing but the clock is read, other users of the processor's caches have time to empty them.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
from rich.console import Console
from rich.table import Table

from gorgon.backend import Backend, DraftState, Floats, Guesses, Ints
from gorgon.engine.drafter import Drafter, Limits
from gorgon.engine.sequence import Sequence
from gorgon.request import Request
from gorgon.speculation.acceptance import Accepted
from gorgon.speculation.cost import StepCost, StepTimes

TOP_K, NUM_HEADS = 8, 4
PROBS = np.array([0.7, 0.12, 0.05, 0.03, 0.02, 0.01, 0.01, 0.01], np.float32)


class Tables:
    """Heads whose guesses are ready."""

    def __init__(self, conditioned: bool) -> None:
        self._conditioned = conditioned
        self.seconds = 0.0

    def _guesses(self, rows: int) -> Guesses:
        depths = 1 if self._conditioned else NUM_HEADS
        shape = (rows, depths, TOP_K)
        tokens = np.arange(rows * depths * TOP_K, dtype=np.int32).reshape(shape)
        states = np.zeros((rows, 4), np.float32) if self._conditioned else None
        return Guesses(tokens, np.broadcast_to(PROBS, shape), states)

    def propose(self, state: DraftState) -> Guesses:
        return self._guesses(len(state.tokens))

    def deepen(self, states: Floats, tokens: Ints, depth: int) -> Guesses:
        return self._guesses(len(tokens))


@dataclass(slots=True)
class Times:
    """Seconds of every step: choosing the drafts, and learning from what came of them."""

    choice: list[float] = field(default_factory=list)
    learning: list[float] = field(default_factory=list)


def time_steps(
    num_requests: int, conditioned: bool, slope: float, steps: int, pause: float
) -> Times:
    tables = Tables(conditioned)
    backend = SimpleNamespace(
        num_heads=NUM_HEADS,
        max_guesses=TOP_K,
        window=2,
        searches=False,
        propose=tables.propose,
        deepen=tables.deepen,
    )
    times = StepTimes((32,), (1, 256), np.array([[0.005, 0.005 * (1 + 255 * slope)]]))
    drafter = Drafter(cast(Backend, backend), StepCost(times, 256))
    sampler: Any = None
    sequences = []
    for i in range(num_requests):
        request = Request(f"r{i}", tuple(range(200)), 100_000)
        sequence = Sequence(request, sampler, i, None, 0.0, 0.0, list(range(200)), [])
        sequence.push_hidden(np.ones((3, 576), np.float32), 2)
        drafter.start(sequence)
        sequences.append(sequence)
    found = Times()
    for step in range(steps):
        waited = time.perf_counter()
        while (began := time.perf_counter()) < waited + pause:
            pass
        trees = drafter.propose(sequences, Limits(200, 200, 200), 64.0)
        chosen = time.perf_counter()
        found.choice.append(chosen - began - drafter.heads.seconds)
        for sequence, tree in zip(sequences, trees, strict=True):
            path = (0, 1) if len(tree) > 1 else (0,)
            tokens = (*tree.tokens[1 : len(path)], 50_000 + step)
            drafter.learn(sequence, tree, Accepted(path, tokens))
        found.learning.append(time.perf_counter() - chosen)
        for sequence in sequences:
            sequence.tokens.append(step % 50)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pause", type=float, default=0.0, metavar="MS")
    pause = 1e-3 * parser.parse_args().pause
    table = Table("requests", "heads", "slope of t(n)", "choice, ms", "quartiles", "learning, ms")
    for num_requests in (1, 8, 32):
        for conditioned in (False, True):
            for slope in (0.02, 0.1):
                times = time_steps(num_requests, conditioned, slope / num_requests, 400, pause)
                low, middle, high = (1e3 * x for x in statistics.quantiles(times.choice, n=4))
                table.add_row(
                    str(num_requests),
                    "conditioned" if conditioned else "independent",
                    f"{slope}",
                    f"{middle:.3f}",
                    f"{low:.3f}-{high:.3f}",
                    f"{1e3 * statistics.median(times.learning):.3f}",
                )
    Console().print(table)


if __name__ == "__main__":
    main()
