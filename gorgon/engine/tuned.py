"""Settings found by `gorgon tune`, kept on disk and taken up when the same model is loaded."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gorgon.config import EngineSettings
from gorgon.llama.backend import default_model
from gorgon.llama.device import describe_device
from gorgon.llama.model import inspect

logger = logging.getLogger("gorgon.engine")

TUNABLE = frozenset({"cpu_kernels", "flash_attention", "threads", "cache_type", "batch_sizes"})


def read(settings: EngineSettings) -> EngineSettings:
    """``settings`` with what was found for its model, where the user has not said otherwise."""
    path = _path(settings)
    try:
        found = json.loads(path.read_text("utf-8"))
        values = {k: v for k, v in found.items() if k not in settings.model_fields_set}
        if not values.keys() <= TUNABLE:
            raise ValueError(f"unknown settings {sorted(values.keys() - TUNABLE)}")
        given = {name: getattr(settings, name) for name in settings.model_fields_set}
        tuned = EngineSettings(**{**given, **values})
    except FileNotFoundError:
        return settings
    except (OSError, ValueError, AttributeError, ValidationError) as error:
        logger.warning("%s: cannot be used (%s); run gorgon tune again", path, error)
        return settings
    if values:
        logger.info("as tuned: %s", ", ".join(f"{k} = {v}" for k, v in values.items()))
    return tuned


def write(settings: EngineSettings, values: Mapping[str, Any]) -> Path:
    """Keep ``values`` for the model of ``settings``; where.

    Raises:
        OSError: when the folder cannot be written.
    """
    assert values.keys() <= TUNABLE
    path = _path(settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(dict(values), indent=1), "utf-8")
    part.replace(path)
    return path


def _path(settings: EngineSettings) -> Path:
    """One file for each model file and device."""
    model = inspect(settings.model or default_model())
    device = describe_device(settings.gpu_layers)
    text = f"{model.fingerprint} {model.path.stat().st_size} {device}"
    name = hashlib.sha256(text.encode()).hexdigest()[:24]
    return settings.profile_folder / f"tuned-{name}.json"
