"""What was measured on this machine, kept on disk for the next start.

A profile belongs to one model file under one build, device and set of settings: its key names
them all. A file that cannot be read is measured anew, never an error.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from gorgon.engine.measure import Measured
from gorgon.speculation.cost import CallCost, StepTimes

logger = logging.getLogger("gorgon.engine")

FORMAT = 3


class Profile(BaseModel):
    """``Measured`` as it lies on disk; seconds throughout."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int = FORMAT
    identity: dict[str, str]
    contexts: list[int]
    sizes: list[int]
    seconds: list[list[float]]
    change: float
    propose: tuple[float, float] | None = None
    deepen: tuple[float, float] | None = None

    @classmethod
    def of(cls, measured: Measured, identity: Mapping[str, str]) -> Profile:
        """The profile of a measurement."""
        return cls(
            identity=dict(identity),
            contexts=list(measured.times.contexts),
            sizes=list(measured.times.sizes),
            seconds=measured.times.seconds.tolist(),
            change=measured.change,
            propose=_pair(measured.propose),
            deepen=_pair(measured.deepen),
        )

    def measured(self) -> Measured:
        """The measurement of this profile."""
        times = StepTimes(tuple(self.contexts), tuple(self.sizes), np.array(self.seconds))
        return Measured(
            times,
            self.change,
            CallCost(*self.propose) if self.propose else None,
            CallCost(*self.deepen) if self.deepen else None,
        )


def path_of(folder: Path, identity: Mapping[str, str]) -> Path:
    """Where the profile of ``identity`` lies."""
    text = json.dumps(dict(identity), sort_keys=True)
    return folder / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.json"


def read(folder: Path, identity: Mapping[str, str]) -> Measured | None:
    """What was measured for ``identity``; None if nothing usable is there."""
    path = path_of(folder, identity)
    try:
        profile = Profile.model_validate_json(path.read_bytes())
        if profile.format != FORMAT or profile.identity != dict(identity):
            return None
        return profile.measured()
    except FileNotFoundError:
        return None
    except (OSError, ValidationError, ValueError, AssertionError) as error:
        logger.warning("%s: cannot be used, measuring anew (%s)", path, type(error).__name__)
        return None


def write(folder: Path, identity: Mapping[str, str], measured: Measured) -> None:
    """Keep a measurement; a folder that cannot be written costs a log line, no more."""
    path = path_of(folder, identity)
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        part.write_text(Profile.of(measured, identity).model_dump_json(indent=1), "utf-8")
        part.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        logger.warning("%s: the measurement is not kept: %s", path, error.strerror or error)


def _pair(cost: CallCost | None) -> tuple[float, float] | None:
    return None if cost is None else (cost.base, cost.per_row)
