"""One model measured in this process: load time, memory, step times, quality on a text.

Goes through the same context as serving, so the numbers are those of ``gorgon serve`` here.
"""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from gorgon.backend import BatchRow, Floats
from gorgon.compile import quality
from gorgon.compile.quality import Quality
from gorgon.config import EngineSettings
from gorgon.errors import CompileError
from gorgon.llama.context import Context
from gorgon.llama.model import Model

STEP_SIZES = (1, 4, 8)
_CONTEXT = 128  # cells filled when steps are timed
SECONDS_A_SIZE = 1.5
_MIN_STEPS = 3
_MIN_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Measurement:
    """A model on this machine.

    ``step_ms[n]`` is the median time of a step with n tokens, ``resident`` the bytes of this
    process after the first steps, weights included.
    """

    load_seconds: float
    resident: int
    step_ms: dict[str, float]
    quality: Quality | None

    @property
    def tokens_per_second(self) -> float:
        """Plain decoding: one token a step."""
        return 1e3 / self.step_ms["1"]

    def ratio(self, size: int) -> float:
        """t(size) / t(1): what a tree of ``size`` tokens costs."""
        return self.step_ms[str(size)] / self.step_ms["1"]

    def as_json(self) -> dict[str, Any]:
        """All of it, JSON-able."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Measurement:
        """From ``as_json``."""
        scored = value["quality"]
        return cls(**{**value, "quality": None if scored is None else Quality(**scored)})


def measure(
    path: Path,
    text: str,
    num_tokens: int,
    reference: Path,
    mode: Literal["write", "compare"],
    threads: int,
    on_progress: Callable[[float], None],
) -> Measurement:
    """Load and measure ``path``.

    Args:
        path: a GGUF.
        text: what quality is measured on.
        num_tokens: tokens of the text to use; 0 leaves quality out.
        reference: the original's log probabilities, see ``quality.score``.
        mode: ``write`` or ``compare``.
        threads: threads to compute with.
        on_progress: called with the fraction done.

    Raises:
        ModelError: when it cannot be loaded.
        CompileError: when the text is too short.
    """
    settings = EngineSettings(model=path, threads=threads, num_cells=512, prefill_batch=256)
    began = time.perf_counter()
    model = Model(settings, path)
    try:
        context = Context(model, settings)
        context.decode([BatchRow(model.bos or 0, 0, (0,))])
        loaded = time.perf_counter() - began
        steps = {str(size): 1e3 * _time_step(context, model, size) for size in STEP_SIZES}
        resident = _resident()
        scored = None
        if num_tokens:
            scored = _score(context, model, text, num_tokens, reference, mode, on_progress)
        context.close()
    finally:
        model.close()
    return Measurement(loaded, resident, steps, scored)


def _time_step(context: Context, model: Model, size: int) -> float:
    """Median seconds of a step of ``size`` tokens after ``_CONTEXT`` others."""
    token = (model.bos or 0) + 1
    context.clear()
    context.prefill([BatchRow(token, i, (0,)) for i in range(_CONTEXT)])
    rows = [BatchRow(token + i, _CONTEXT + i, (0,)) for i in range(size)]
    times: list[float] = []
    ends = time.perf_counter() + SECONDS_A_SIZE
    while len(times) <= _MIN_STEPS or time.perf_counter() < ends:
        began = time.perf_counter()
        context.decode(rows)
        times.append(time.perf_counter() - began)
        context.remove(0, _CONTEXT)
    return statistics.median(times[1:])


def _score(
    context: Context,
    model: Model,
    text: str,
    num_tokens: int,
    reference: Path,
    mode: Literal["write", "compare"],
    on_progress: Callable[[float], None],
) -> Quality:
    ids = model.tokenize(text, add_special=False, parse_special=False)
    if len(ids) < _MIN_TOKENS:
        raise CompileError(f"--text: {len(ids)} tokens, at least {_MIN_TOKENS} are needed")

    def decode(window: Sequence[int]) -> Floats:
        context.clear()
        return context.decode([BatchRow(token, i, (0,)) for i, token in enumerate(window)]).logits

    texts = quality.windows(ids, model.bos, num_tokens)
    return quality.score(texts, decode, model.info.num_vocab, reference, mode, on_progress)


def _resident() -> int:
    """Bytes of memory that this process holds now."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:  # no Linux: the peak is the next best
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))
