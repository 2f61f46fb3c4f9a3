"""t(n): how long a forward pass of n tokens takes, measured, beside what the cost model thinks."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

from gorgon.backend import Backend, BatchRow
from gorgon.bench.document import StepCurve, StepPoint
from gorgon.bench.inprocess import EngineParty
from gorgon.bench.party import Party
from gorgon.engine.engine import Engine

SIZES = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 32, 48, 64)
CONTEXT = 256
_REPEATS = 5
_SEQUENCE = 1
_TOKEN = 1


def measure_curves(parties: Sequence[Party]) -> list[StepCurve]:
    """One curve for each engine in this process; the engines must be idle."""
    curves, seen = [], set[int]()
    for party in parties:
        if isinstance(party, EngineParty) and id(party.engine) not in seen:
            seen.add(id(party.engine))
            curves.append(measure_curve(party.info.name, party.engine))
    return curves


def measure_curve(name: str, engine: Engine) -> StepCurve:
    """Median time of passes behind ``CONTEXT`` tokens, sizes in turns so that drift hits all."""
    engine.pool.forget_prefixes()
    backend = engine.backend
    sizes = [n for n in SIZES if n <= backend.max_rows and CONTEXT + n <= backend.num_cells]
    _fill(backend)
    times: dict[int, list[float]] = {n: [] for n in sizes}
    for repeat in range(_REPEATS + 1):
        for n in sizes:
            seconds = _step(backend, n)
            if repeat:
                times[n].append(seconds)
    backend.clear()
    modelled = engine.drafter.cost.seconds(CONTEXT)
    points = [
        StepPoint(tokens=n, measured=statistics.median(found), modelled=float(modelled[n]))
        for n, found in times.items()
    ]
    return StepCurve(party=name, context=CONTEXT, points=points)


def _fill(backend: Backend) -> None:
    for first in range(0, CONTEXT, backend.max_rows):
        last = min(CONTEXT, first + backend.max_rows)
        backend.prefill([BatchRow(_TOKEN, at, (_SEQUENCE,)) for at in range(first, last)])


def _step(backend: Backend, n: int) -> float:
    began = time.perf_counter()
    backend.decode([BatchRow(_TOKEN, CONTEXT + i, (_SEQUENCE,)) for i in range(n)])
    seconds = time.perf_counter() - began
    backend.remove(_SEQUENCE, CONTEXT)
    return seconds
