"""Which quantisation of a model would be faster here: each is made and timed, then thrown away."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from gorgon.compile import child
from gorgon.config import EngineSettings
from gorgon.engine.measure import Measured
from gorgon.errors import GorgonError
from gorgon.llama.quantize import Quantization


@dataclass(frozen=True, slots=True)
class TypeTrial:
    """A quantisation with its size in bytes and what its steps take."""

    name: str
    size: int
    measured: Measured | None
    error: str = ""


def try_types(
    source: Path,
    types: Sequence[Quantization],
    settings: EngineSettings,
    measure_one: Callable[[EngineSettings], Measured],
) -> Iterator[TypeTrial]:
    """Quantise ``source`` to each type and time it under ``settings``.

    Quality is not looked at (`gorgon compile --compare` does): a file that is quantised already
    only loses by being quantised again, but its speed is that of the type.
    """
    for options in types:
        with tempfile.TemporaryDirectory(prefix="gorgon-tune-") as folder:
            target = Path(folder) / "model.gguf"
            try:
                _quantize(source, target, options, settings.threads)
                size = target.stat().st_size
                measured = measure_one(settings.model_copy(update={"model": target, "heads": None}))
            except (GorgonError, OSError) as error:
                yield TypeTrial(options.file_type, 0, None, str(error))
            else:
                yield TypeTrial(options.file_type, size, measured)


def _quantize(source: Path, target: Path, options: Quantization, threads: int) -> None:
    """In a child, which Ctrl-C ends at once."""
    arguments = {
        "source": str(source),
        "target": str(target),
        "options": asdict(options),
        "threads": threads,
        "importance": None,
    }
    child.run_job("quantize", arguments, lambda fraction: None)
