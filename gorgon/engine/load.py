"""From settings to an engine that is warm: model, heads, what steps take, a first generation."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gorgon.backend import Backend
from gorgon.config import EngineSettings
from gorgon.engine import profile, tuned
from gorgon.engine.engine import Engine
from gorgon.engine.measure import Measured, measure, still_holds
from gorgon.llama.backend import LlamaBackend
from gorgon.llama.model import Model
from gorgon.request import Request, SpeculationParams
from gorgon.speculation.cost import StepCost

logger = logging.getLogger("gorgon.engine")

_WARM_UP_TEXT = (
    "The sun rises in the east and sets in the west. The sun rises in the east and sets in the"
)
_WARM_UP_TOKENS = 32
_WARM_UP_TREE = ((0,), (0, 0), (1,))


@dataclass(frozen=True, slots=True)
class PlainStep:
    """How long plain decoding takes here: what ``speedup_factor`` is measured against."""

    cost: StepCost

    def at(self, context: int) -> float:
        """Seconds of a one-token step at ``context`` tokens."""
        return float(self.cost.seconds(context)[1])


@dataclass(frozen=True, slots=True)
class Loaded:
    """An engine with what a front end needs beside it.

    ``model`` is used by other threads for its vocabulary only, which never changes.
    """

    engine: Engine
    backend: LlamaBackend
    model: Model
    plain_step: PlainStep


def load(
    settings: EngineSettings, wrap: Callable[[LlamaBackend], Backend] = lambda backend: backend
) -> Loaded:
    """Load, warm up and measure.

    Args:
        settings: the engine's.
        wrap: what the engine gets in place of the backend; for experiments.

    Raises:
        ModelError: when the model cannot be loaded or served.
        HeadsError: when the heads cannot be loaded or belong to another model.
    """
    began = time.perf_counter()
    settings = tuned.read(settings)
    backend = LlamaBackend(settings)
    logger.info("%s", describe_heads(settings, backend.heads_path))
    measured = measure_once(backend, settings)
    cost = StepCost(measured.times, backend.max_rows, measured.change)
    engine = Engine(wrap(backend), settings, cost)
    if measured.propose:
        engine.drafter.heads.propose_cost = measured.propose
    if measured.deepen:
        engine.drafter.heads.deepen_cost = measured.deepen
    plain_step = PlainStep(cost)
    prompt = backend.model.tokenize(_WARM_UP_TEXT, add_special=True, parse_special=False)
    warm_up(engine, prompt)
    logger.info(
        "%s loaded in %.1f s, one token in %.1f ms",
        backend.model.info.name,
        time.perf_counter() - began,
        plain_step.at(32) * 1e3,
    )
    return Loaded(engine, backend, backend.model, plain_step)


def describe_heads(settings: EngineSettings, path: Path | None) -> str:
    """Which heads draft, and why these."""
    if path is None:
        return (
            "no heads for this model: drafts come from the text alone; "
            "make some with gorgon train, or name a file with --heads"
        )
    why = "as asked for" if settings.heads else "shipped, made for this model"
    return f"heads {path} ({why})"


def measure_once(backend: LlamaBackend, settings: EngineSettings) -> Measured:
    """What steps take on this machine: from an earlier start, or measured now."""
    folder, identity = settings.profile_folder, backend.identity
    measured = profile.read(folder, identity)
    if measured is not None and not still_holds(backend, measured.times):
        logger.info("steps no longer take what was measured here")
        measured = None
    if measured is None:
        logger.info("measuring what steps take here, once, %.0f s", settings.measure_seconds)
        measured = measure(backend, settings.measure_seconds)
        profile.write(folder, identity, measured)
    return measured


def warm_up(engine: Engine, prompt: list[int]) -> None:
    """Generate a little, warn about heads that never agree, and leave the cache empty."""
    tree = _WARM_UP_TREE[: engine.backend.num_heads]
    speculation = SpeculationParams(tree=tree)
    engine.submit(
        Request("warm-up", tuple(prompt), _WARM_UP_TOKENS, speculation=speculation, ignore_eos=True)
    )
    drafted = accepted = 0
    while engine.has_work:
        for result in engine.step():
            if result.error is not None:
                raise result.error
            if result.stats is not None:
                drafted, accepted = result.stats.drafted, result.stats.accepted
    engine.pool.forget_prefixes()
    if drafted and not accepted:
        logger.warning(
            "the heads agreed with the model on 0 of %d drafts: they fit its size but are "
            "probably made for another model; train heads for this one",
            drafted,
        )
