"""Measuring what a step takes: t(n) at several contexts, and the heads, on an empty engine.

All sizes take turns round after round, so that a machine that drifts hits all alike. Each size
runs a few times in a row, until it gets no faster: the first time after another size a graph is
built, with CUDA the second time it is captured, and only later ones tell what the size costs.
What the earlier ones took on top is what a change costs.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from gorgon.backend import Backend, BatchRow, DraftState
from gorgon.speculation.cost import CallCost, StepTimes, smooth

SIZES = (*range(1, 17), 20, 24, 32, 48, 64)
CONTEXTS = (32, 512, 2048)
_REPEATS = 2  # of a size in a row that count
_MIN_SETTLING, _MAX_SETTLING = 2, 5  # repeats before these
_SETTLED = 0.9  # of the time before: a repeat that takes as much is no longer settling
_MAX_ROUNDS = 9
_SEQUENCE = 1
_CHECKED_SIZES = (1, 2, 4, 8)
_MAX_DISAGREEMENT = 1.5
_HEADS_REPEATS = 5

Clock = Callable[[], float]
Progress = Callable[[float], None]


@dataclass(slots=True)
class Samples:
    """Seconds of repeated steps by size, and seconds that changes of size cost on top."""

    seconds: dict[int, list[float]] = field(default_factory=dict)
    changes: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Measured:
    """What the drafter's choices rest on; ``change`` is seconds for a new batch size."""

    times: StepTimes
    change: float
    propose: CallCost | None = None
    deepen: CallCost | None = None


def measure(
    backend: Backend,
    seconds: float,
    *,
    sizes: tuple[int, ...] = SIZES,
    contexts: tuple[int, ...] = CONTEXTS,
    clock: Clock = time.perf_counter,
    progress: Progress = lambda done: None,
) -> Measured:
    """Time steps and heads for about ``seconds``, on an empty cache that is empty afterwards.

    The shortest context comes first; a longer one is left out where filling it would take too
    much of the time. A machine so slow that not even one round fits gets fewer sizes.
    """
    sizes = tuple(n for n in sizes if n <= min(backend.max_rows, backend.num_cells // 4))
    limit = min(backend.num_cells, backend.max_position)
    contexts = tuple(c for c in contexts if c + max(sizes) <= limit) or (1,)
    end = clock() + seconds
    curves: dict[int, Samples] = {}
    for i, context in enumerate(contexts):
        if curves and not _can_fill(curves, context, end - clock()):
            break
        _fill(backend, max(curves, default=0), context)
        share = (end - clock()) / (len(contexts) - i)
        curves[context] = _sample(backend, context, sizes, clock() + share, clock)
        progress((i + 1) / len(contexts))
    backend.clear()
    known = tuple(n for n in sizes if all(n in samples.seconds for samples in curves.values()))
    table = np.stack([smooth([s.seconds[n] for n in known]) for s in curves.values()])
    changes = [change for samples in curves.values() for change in samples.changes]
    propose, deepen = _measure_heads(backend, clock)
    return Measured(
        StepTimes(tuple(curves), known, table),
        max(0.0, statistics.median(changes)) if changes else 0.0,
        propose,
        deepen,
    )


def still_holds(backend: Backend, times: StepTimes, clock: Clock = time.perf_counter) -> bool:
    """Whether a few steps take what ``times`` say, up to a common factor.

    A measurement taken while something else kept the machine busy is wrong for good; drift of the
    whole machine is not, and is followed while serving.
    """
    sizes = [n for n in _CHECKED_SIZES if n in times.sizes]
    _fill(backend, 0, min(times.contexts))
    found = []
    for size in sizes:
        _, settled = _settle(partial(_time, backend, min(times.contexts), size, clock))
        found.append(min(settled) / times.seconds[0][times.sizes.index(size)])
    backend.clear()
    return bool(max(found) < _MAX_DISAGREEMENT * min(found))


def _can_fill(curves: dict[int, Samples], context: int, left: float) -> bool:
    """Whether computing the cells up to ``context`` takes at most a third of the time left."""
    last, samples = max(curves.items())
    largest = max(samples.seconds)
    per_token = min(samples.seconds[largest]) / largest
    return (context - last) * per_token < left / 3


def _fill(backend: Backend, start: int, end: int) -> None:
    for first in range(start, end, backend.max_rows):
        last = min(end, first + backend.max_rows)
        backend.prefill([BatchRow(0, position, (_SEQUENCE,)) for position in range(first, last)])


def _sample(
    backend: Backend, context: int, sizes: tuple[int, ...], end: float, clock: Clock
) -> Samples:
    samples = Samples()
    for round_ in range(_MAX_ROUNDS):
        for size in sizes:
            if clock() > end and (round_ > 0 or size > 4):
                return samples
            settling, settled = _settle(partial(_time, backend, context, size, clock))
            samples.seconds.setdefault(size, []).extend(settled)
            samples.changes.append(sum(settling) - len(settling) * statistics.fmean(settled))
    return samples


def _settle(call: Callable[[], float]) -> tuple[list[float], list[float]]:
    """Repeat ``call`` until it gets no faster: the times before and those after."""
    times = [call() for _ in range(_MIN_SETTLING + _REPEATS)]
    while times[-1] < _SETTLED * times[-_REPEATS] and len(times) < _MAX_SETTLING + _REPEATS:
        times.append(call())
    return times[:-_REPEATS], times[-_REPEATS:]


def _time(backend: Backend, context: int, size: int, clock: Clock) -> float:
    rows = [BatchRow(0, context + i, (_SEQUENCE,)) for i in range(size)]
    began = clock()
    backend.decode(rows)
    elapsed = clock() - began
    backend.remove(_SEQUENCE, context)
    return elapsed


def _measure_heads(backend: Backend, clock: Clock) -> tuple[CallCost | None, CallCost | None]:
    """The cost of the heads' two calls as lines through one row and eight."""
    if not backend.num_heads:
        return None, None
    propose: dict[int, float] = {}
    deepen: dict[int, float] = {}
    for rows in (1, 8):
        width = 1 + backend.window
        hidden = np.ones((rows, width, backend.num_embd), np.float32)
        state = DraftState(hidden, np.zeros((rows, width), np.int32))
        states = backend.propose(state).states
        propose[rows] = _median(partial(backend.propose, state), clock)
        if states is not None:
            tokens = np.zeros(rows, np.int32)
            deepen[rows] = _median(partial(backend.deepen, states, tokens, 2), clock)
    return _line(propose), _line(deepen) if deepen else None


def _median(call: Callable[[], object], clock: Clock) -> float:
    times = []
    for _ in range(1 + _HEADS_REPEATS):
        began = clock()
        call()
        times.append(clock() - began)
    return statistics.median(times[1:])


def _line(seconds: dict[int, float]) -> CallCost:
    slope = max(0.0, (seconds[8] - seconds[1]) / 7)
    return CallCost(max(seconds[1] - slope, 0.1 * seconds[1]), slope)
