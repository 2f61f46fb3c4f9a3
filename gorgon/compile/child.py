"""Work in child processes: progress and a result come back, with the peak of memory.

A child can be interrupted at any point, gives its memory back, and takes nobody with it when
native code aborts.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gorgon.compile.progress import OnProgress
from gorgon.errors import CompileError

logger = logging.getLogger("gorgon.compile")

_RSS_UNIT = 1 if sys.platform == "darwin" else 1024
_TAIL_LINES = 40


@dataclass(slots=True)
class Ended:
    """How a child ended: exit code, the last lines that it printed, peak memory in bytes."""

    code: int
    tail: list[str]
    peak_memory: int


@dataclass(slots=True)
class Done:
    """What a job gave: its result and its peak memory in bytes."""

    result: dict[str, Any] = field(default_factory=dict)
    peak_memory: int = 0


def run(
    command: Sequence[str], on_line: Callable[[str], None], environment: Mapping[str, str]
) -> Ended:
    """Run ``command``; its output goes to ``on_line``, carriage returns ending lines too.

    An exception in ``on_line``, or an interrupt, ends the child first.
    """
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, **environment},
        text=True,
        errors="replace",
        bufsize=1,
    )
    tail: list[str] = []
    try:
        assert process.stdout is not None
        with process.stdout as lines:  # universal newlines: \r ends a line too
            for line in lines:
                text = line.rstrip()
                if text:
                    tail = [*tail[1 - _TAIL_LINES :], text]
                    logger.debug("%s", text)
                    on_line(text)
        _, status, usage = os.wait4(process.pid, 0)
    except BaseException:
        process.kill()
        process.wait()
        raise
    process.returncode = os.waitstatus_to_exitcode(status)
    return Ended(process.returncode, tail, usage.ru_maxrss * _RSS_UNIT)


def run_job(name: str, arguments: Mapping[str, Any], on_progress: OnProgress) -> Done:
    """Run one of the jobs in ``gorgon.compile.job``.

    Args:
        name: the job.
        arguments: what it takes, JSON-able.
        on_progress: called with the fraction done.

    Raises:
        CompileError: the job's own error, or that it died.
    """
    done, failure = Done(), ""

    def on_line(line: str) -> None:
        nonlocal failure
        message = _parse(line)
        if "progress" in message:
            on_progress(message["progress"])
        failure = message.get("error", failure)
        done.result = message.get("result", done.result)

    command = [sys.executable, "-m", "gorgon.compile.job", name, json.dumps(arguments)]
    ended = run(command, on_line, {})
    done.peak_memory = ended.peak_memory
    if ended.code != 0:
        raise CompileError(failure or _death(name, ended))
    return done


def _parse(line: str) -> dict[str, Any]:
    try:
        message = json.loads(line)
    except ValueError:
        return {}
    return message if isinstance(message, dict) else {}


def _death(name: str, ended: Ended) -> str:
    if ended.code < 0:
        return (
            f"the {name} process was ended by signal {-ended.code}"
            " (9 is usually a lack of memory: close other programs or use a smaller model)"
        )
    return f"the {name} process failed: {(ended.tail or ['no output'])[-1]}"
