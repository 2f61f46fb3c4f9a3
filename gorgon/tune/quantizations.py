"""Which quantisation of a model would be faster here: each is made and timed, then thrown away."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gorgon.config import EngineSettings
from gorgon.engine.measure import Measured
from gorgon.errors import GorgonError
from gorgon.llama.quantize import Quantization, quantize


@dataclass(frozen=True, slots=True)
class TypeTrial:
    """A quantisation with its size in bytes and what its steps take."""

    name: str
    size: int
    measured: Measured | None
    error: str = ""


def try_types(
    source: Path,
    names: Sequence[str],
    settings: EngineSettings,
    measure_one: Callable[[EngineSettings], Measured],
) -> Iterator[TypeTrial]:
    """Quantise ``source`` to each type and time it under ``settings``.

    Quality is not looked at (`gorgon compile --compare` does): a file that is quantised already
    only loses by being quantised again, but its speed is that of the type.
    """
    for name in names:
        with tempfile.TemporaryDirectory(prefix="gorgon-tune-") as folder:
            target = Path(folder) / "model.gguf"
            try:
                options = Quantization(name, requantize=True)
                quantize(source, target, options, threads=settings.threads)
                size = target.stat().st_size
                measured = measure_one(settings.model_copy(update={"model": target, "heads": None}))
            except (GorgonError, OSError) as error:
                yield TypeTrial(name, 0, None, str(error))
            else:
                yield TypeTrial(name, size, measured)
