"""What choosing the drafts of a step costs, without model and heads.

    python -m benchmarks.drafting [--pause MS]

Heads that answer at once from fixed tables stand in for real ones. On a processor every step
chooses; t(n) is given so that some drafts a request pay, and conditioned heads are asked depth by
depth. On a GPU steps keep a size of 16 tokens with one request and of 6 a request with more, and
conditioned heads search. On a processor the native library chooses for conditioned heads, in the
call that asks them: what is timed here is Python's way, for where there is no library. The texts
hold no token twice, or repeat themselves so that lookups draft 16 tokens in every step. Reported
are the rows of a step, the median and quartiles of the choice, and the median of the learning after
it, in milliseconds a step. With a pause before each choice, in which nothing but the clock is read,
other users of the processor's caches have time to empty them.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
from rich.console import Console
from rich.table import Table

from gorgon.backend import Backend, DraftState, Floats, Guesses, Ints, Level
from gorgon.engine.drafter import Drafter, Limits
from gorgon.engine.sequence import Sequence
from gorgon.engine.states import States
from gorgon.llama.heads_beam import width_for
from gorgon.request import Request
from gorgon.speculation.acceptance import Accepted
from gorgon.speculation.cost import StepCost, StepTimes
from gorgon.speculation.habit import Habit

TOP_K, NUM_HEADS, WINDOW = 8, 4, 2
PROBS = np.array([0.7, 0.12, 0.05, 0.03, 0.02, 0.01, 0.01, 0.01], np.float32)


@dataclass(frozen=True, slots=True)
class Case:
    """What is timed: so many requests, heads, a device, and texts that repeat themselves or not."""

    num_requests: int
    conditioned: bool
    on_gpu: bool
    repeats: bool

    @property
    def slope(self) -> float:
        """How much longer a step takes for one more token of every request, of t(1)."""
        return 0.03 if self.on_gpu else 0.1

    @property
    def kept_size(self) -> int:
        """Tokens of every step on a GPU."""
        return 16 if self.num_requests == 1 else 6 * self.num_requests


class Tables:
    """Heads whose guesses are ready."""

    def __init__(self, conditioned: bool) -> None:
        self._conditioned = conditioned
        self._searches: dict[int, list[Level]] = {}

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

    def search(self, state: DraftState) -> list[Level]:
        """As wide as conditioned heads search: below the likeliest guesses of every request."""
        count = len(state.tokens)
        if count not in self._searches:
            self._searches[count] = self._search(count, state.tokens[:, 0])
        return self._searches[count]

    def _search(self, count: int, tokens: Ints) -> list[Level]:
        width = width_for(count)
        levels, parents, beams = [], np.arange(count, dtype=np.int32), np.ones((count, 1))
        for _ in range(NUM_HEADS):
            guesses = self._guesses(len(parents))
            levels.append(Level(guesses, parents, tokens))
            survivals = (beams[:, :, None] * PROBS).reshape(count, -1)
            chosen = np.argsort(-survivals, axis=1, kind="stable")[:, :width].astype(np.int32)
            first = beams.shape[1] * np.arange(count, dtype=np.int32)[:, None]
            parents = (first + chosen // TOP_K).ravel()
            tokens = guesses.tokens[parents, 0, chosen.ravel() % TOP_K]
            beams = np.take_along_axis(survivals, chosen, 1)
        return levels


@dataclass(slots=True)
class Times:
    """Of every step: rows; seconds for choosing the drafts and for learning what came of them."""

    rows: list[int] = field(default_factory=list)
    choice: list[float] = field(default_factory=list)
    learning: list[float] = field(default_factory=list)


def make_drafter(case: Case, states: States) -> Drafter:
    tables = Tables(case.conditioned)
    backend = SimpleNamespace(
        num_heads=NUM_HEADS,
        max_guesses=TOP_K,
        window=WINDOW,
        searches=case.on_gpu and case.conditioned,
        drafts=False,
        propose=tables.propose,
        deepen=tables.deepen,
        search=tables.search,
    )
    longest = 0.005 * (1 + 255 * case.slope / case.num_requests)
    times = StepTimes((32,), (1, 256), np.array([[0.005, longest]]))
    habit = Habit(0.0, [case.kept_size]) if case.on_gpu else None
    return Drafter(cast(Backend, backend), states, StepCost(times, 256), habit)


def make_sequences(case: Case) -> list[Sequence]:
    sampler: Any = None
    sequences = []
    for i in range(case.num_requests):
        request = Request(f"r{i}", tuple(range(200)), 100_000)
        sequence = Sequence(request, sampler, i, None, 0.0, 0.0, list(range(200)), [])
        sequences.append(sequence)
    return sequences


def time_steps(case: Case, steps: int, pause: float) -> Times:
    states = States(case.num_requests, 1 + WINDOW, 576)
    drafter, sequences, found = make_drafter(case, states), make_sequences(case), Times()
    states.note(np.ones((1 + WINDOW, 576), np.float32), [(s, range(1 + WINDOW)) for s in sequences])
    for sequence in sequences:
        drafter.start(sequence)
    for step in range(steps):
        waited = time.perf_counter()
        while (began := time.perf_counter()) < waited + pause:
            pass
        trees = drafter.propose(sequences, Limits(200, 200, 200), 64.0)
        chosen = time.perf_counter()
        found.choice.append(chosen - began - drafter.heads.seconds)
        found.rows.append(sum(map(len, trees)))
        for sequence, tree in zip(sequences, trees, strict=True):
            path = (0, 1) if len(tree) > 1 else (0,)
            tokens = (*tree.tokens[1 : len(path)], 50_000 + step)
            drafter.learn(sequence, tree, Accepted(path, tokens))
        found.learning.append(time.perf_counter() - chosen)
        for sequence in sequences:
            sequence.tokens.append(step % 50 if case.repeats else 1000 + step)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pause", type=float, default=0.0, metavar="MS")
    pause = 1e-3 * parser.parse_args().pause
    columns = "requests", "device", "heads", "texts", "rows", "choice, ms", "quartiles"
    table = Table(*columns, "learning, ms")
    for num_requests, on_gpu, conditioned, repeats in itertools.product(
        (1, 8, 32), (False, True), (False, True), (False, True)
    ):
        times = time_steps(Case(num_requests, conditioned, on_gpu, repeats), 200, pause)
        low, middle, high = (1e3 * x for x in statistics.quantiles(times.choice[50:], n=4))
        table.add_row(
            str(num_requests),
            "GPU" if on_gpu else "CPU",
            "cond." if conditioned else "indep.",
            "repeat" if repeats else "new",
            f"{statistics.median(times.rows):.0f}",
            f"{middle:.3f}",
            f"{low:.3f}-{high:.3f}",
            f"{1e3 * statistics.median(times.learning):.3f}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
