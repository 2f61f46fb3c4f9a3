"""What only the engine thread may read, copied for others between two steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gorgon.engine.engine import Engine

_ESTIMATED = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
_CONTEXT = 256  # cells at which step times are told


@dataclass(frozen=True, slots=True)
class EngineState:
    """Requests, KV cells, and seconds of a step by its number of tokens."""

    running: int
    waiting: int
    cells_used: int
    cells_cached: int
    cells_trash: int
    cells_free: int
    step_seconds: Mapping[int, float]


def read_state(engine: Engine) -> EngineState:
    """For the engine thread."""
    pool = engine.pool
    curve = engine.drafter.cost.seconds(_CONTEXT)
    return EngineState(
        running=len(engine.scheduler.running),
        waiting=len(engine.scheduler.waiting),
        cells_used=pool.cells.num_used,
        cells_cached=pool.num_cached_cells,
        cells_trash=pool.num_trash_cells,
        cells_free=pool.cells.num_free,
        step_seconds={n: float(curve[n]) for n in _ESTIMATED if n < len(curve)},
    )
