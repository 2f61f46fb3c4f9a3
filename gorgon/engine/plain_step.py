"""How long one plain decode step takes on this machine, by context length.

The yardstick behind ``speedup_factor``: what the same tokens would have cost one by one.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

from gorgon.backend import Backend, BatchRow

_REPEATS = 7
_CONTEXTS = (32, 544)
_SEQUENCE = 1


@dataclass(frozen=True, slots=True)
class PlainStep:
    """Seconds of a one-token step as a line through two measured points."""

    base: float
    per_token: float

    def at(self, context: int) -> float:
        """Seconds at ``context`` tokens."""
        return self.base + self.per_token * context


def measure_plain_step(backend: Backend) -> PlainStep:
    """Time one-token steps on an empty cache and leave it empty; takes a second or two."""
    contexts = [
        c for c in _CONTEXTS if c + _REPEATS <= min(backend.num_cells, backend.max_position)
    ]
    points, filled = [], 0
    for context in contexts or [1]:
        _fill(backend, filled, context)
        points.append((context, _median_step(backend, context)))
        filled = context
    backend.clear()
    (short, low), (long, high) = points[0], points[-1]
    slope = max(0.0, (high - low) / (long - short)) if long > short else 0.0
    return PlainStep(low - slope * short, slope)


def _fill(backend: Backend, start: int, end: int) -> None:
    for first in range(start, end, backend.max_rows):
        last = min(end, first + backend.max_rows)
        backend.prefill([BatchRow(0, position, (_SEQUENCE,)) for position in range(first, last)])


def _median_step(backend: Backend, context: int) -> float:
    times = []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        backend.decode([BatchRow(0, context, (_SEQUENCE,))])
        times.append(time.perf_counter() - began)
        backend.remove(_SEQUENCE, context)
    return statistics.median(times)
