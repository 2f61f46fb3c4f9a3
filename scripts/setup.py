"""Make ``.venv`` with everything pinned in locks/ and this project; scripts/setup calls it.

Knows nothing of Gorgon's own code. The work is a row of stages, each with a digest of all that it
depends on. A stage whose digest stands in the stamp file is skipped; the stamp is written after
each stage, so an interrupted setup goes on where it stopped, and a warm one only reads files.

    environment -> build tools -> llama.cpp -> packages -> the project
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType

import llama_wheel
from command import SetupError, run
from progress import Task

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ROOT / "locks"
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
# The one that .venv is made from, even when .venv is active and its own Python runs this.
BASE_PYTHON = f"{sys.base_prefix}/bin/python{sys.version_info.major}.{sys.version_info.minor}"
LOGS = VENV / "setup"
STAMP = LOGS / "stamp.json"
TRAINING = ("torch==2.13.0", "matplotlib>=3.9", "gguf>=0.17")
COMPILING = ("matplotlib>=3.9", "gguf>=0.17")
UNFINISHED = LOGS / "unfinished"  # there while pip installs


@dataclass(frozen=True)
class Stage:
    """One step of the setup; ``digests`` are those under which it needs no doing again.

    The first is what it leaves behind.
    """

    name: str
    title: str
    digests: tuple[str, ...]
    run: Callable[[Task], None]


def digest_files(*paths: Path) -> str:
    """One digest over names and contents; a folder counts with all files in it but build/."""
    digest = hashlib.sha256()
    for path in paths:
        files = [path] if path.is_file() else sorted(path.rglob("*"))
        for file in files:
            name = file.relative_to(path.parent)
            if file.is_file() and "build" not in name.parts:
                content = file.read_bytes()
                digest.update(f"{name} {len(content)}\n".encode())
                digest.update(content)
    return digest.hexdigest()


def read_stamp(path: Path) -> dict[str, str]:
    """The digest of each finished stage; none when the file is missing or damaged."""
    try:
        stamp = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def write_stamp(path: Path, stamp: dict[str, str]) -> None:
    """Replace the file in one go."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(stamp, indent=2), encoding="utf-8")
    part.replace(path)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder against other setups; the system lets go of it however we end."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"\nwaiting for another setup to leave {folder}", flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def describe_environment() -> str:
    """The version of .venv's Python and the place it was made for; empty when it does not run."""
    command = [str(PYTHON), "-I", "-S", "-c", "import sys; print(sys.version.split()[0])"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return f"{done.stdout.strip()} in {ROOT}"


def make_environment(task: Task) -> None:
    """A new .venv; without pip where the system has pip but cannot put it into environments."""
    has_ensurepip = importlib.util.find_spec("ensurepip") is not None
    if not has_ensurepip and importlib.util.find_spec("pip") is None:
        raise SetupError("this Python lacks venv and pip (Debian: apt install python3-venv)")
    shutil.rmtree(VENV, ignore_errors=True)
    options = [] if has_ensurepip else ["--without-pip"]
    command = [BASE_PYTHON, "-m", "venv", *options, str(VENV)]
    run(command, LOGS / "environment.log", task.read)


def pip_install(task: Task, log: str, *arguments: str | Path) -> None:
    """Install exactly what is named, without dependencies, into .venv."""
    pip = [str(PYTHON), "-m", "pip"]
    if not (VENV / "bin" / "pip").exists():
        pip = [BASE_PYTHON, "-m", "pip", "--python", str(PYTHON)]
    UNFINISHED.touch()
    try:
        run([*pip, "install", "--no-deps", *map(str, arguments)], LOGS / log, task.read)
    except SetupError:
        UNFINISHED.unlink()  # pip has put back what it had changed
        raise
    UNFINISHED.unlink()


def install_locked(task: Task, log: str, *locks: Path) -> None:
    """Install the wheels that the lock files pin; nothing is ever built here."""
    files = [part for lock in locks for part in ("-r", lock)]
    pip_install(task, log, "--require-hashes", "--only-binary=:all:", *files)


def install_llama(task: Task, key: str) -> None:
    """Take the wheel from the cache, or build it first."""
    folder = llama_wheel.cache_folder(key)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        wheel = llama_wheel.find_wheel(folder) or llama_wheel.build_wheel(
            folder, PYTHON, LOCKS / "llama.txt", task.read
        )
    pip_install(task, "llama.log", "--no-index", "--force-reinstall", wheel)


def install_project(task: Task) -> None:
    """Link the project into .venv, its native part built with the tools already there."""
    options = ["--no-index", "--no-build-isolation", "--verbose"]
    pip_install(task, "project.log", *options, "--editable", ROOT)


def install_extra(task: Task, log: str, packages: Sequence[str]) -> None:
    """Packages of an offline verb with what they need, in the build that pip chooses here."""
    pip = [str(PYTHON), "-m", "pip"]
    if not (VENV / "bin" / "pip").exists():
        pip = [BASE_PYTHON, "-m", "pip", "--python", str(PYTHON)]
    run([*pip, "install", *packages], LOGS / log, task.read)


def install_converter() -> None:
    """llama.cpp's converter in its own environment outside .venv; nothing if it is there."""
    with Task("the converter (torch and transformers in an environment of their own)") as task:
        run([str(PYTHON), "-m", "gorgon.compile.converter"], LOGS / "converter.log", task.read)


def make_stages(dev: bool) -> list[Stage]:
    """What follows the environment, in order."""
    build, model = LOCKS / "build.txt", LOCKS / "model.txt"
    everything = LOCKS / "dev.txt"
    packages = everything if dev else LOCKS / "serve.txt"
    key = llama_wheel.current_key(LOCKS / "llama.txt")
    to_build = not any(llama_wheel.cache_folder(key).glob("*.whl"))
    project = digest_files(ROOT / "pyproject.toml", ROOT / "CMakeLists.txt", ROOT / "native", build)
    return [
        Stage(
            "build",
            "build tools",
            (digest_files(build),),
            lambda task: install_locked(task, "build.log", build),
        ),
        Stage(
            "llama",
            "llama.cpp, built once (5 minutes on 2 cores)" if to_build else "llama.cpp",
            (key,),
            lambda task: install_llama(task, key),
        ),
        Stage(
            "packages",
            "packages and the embedded model",
            (digest_files(packages, model), digest_files(everything, model)),
            lambda task: install_locked(task, "packages.log", packages, model),
        ),
        Stage("project", "gorgon", (f"{project} {key}",), install_project),
    ]


def set_up(dev: bool, train: bool = False, compiling: bool = False) -> None:
    """Bring .venv, and with ``compiling`` the converter's environment, up to date.

    Raises:
        SetupError: when a stage fails; the next call begins there.
    """
    stamp = read_stamp(STAMP)
    if UNFINISHED.exists() or stamp.get("environment") != describe_environment():
        with Task("environment .venv") as task:
            make_environment(task)
        stamp = {"environment": describe_environment()}
        write_stamp(STAMP, stamp)
    stages = make_stages(dev)
    if train:
        install = partial(install_extra, log="training.log", packages=TRAINING)
        stages.append(Stage("training", "PyTorch for training", TRAINING[:1], install))
    if compiling:
        install = partial(install_extra, log="compiling.log", packages=COMPILING)
        stages.append(Stage("compiling", "packages for compiling", (" ".join(COMPILING),), install))
    for stage in stages:
        if stamp.get(stage.name) in stage.digests:
            continue
        stamp.pop(stage.name, None)
        write_stamp(STAMP, stamp)
        with Task(stage.title) as task:
            stage.run(task)
        stamp[stage.name] = stage.digests[0]
        write_stamp(STAMP, stamp)
    if compiling:
        install_converter()


def end_by_signal(number: int, frame: FrameType | None) -> None:
    """Unwind as for Ctrl-C, so that children end and half-made files go."""
    sys.exit(128 + number)


def main() -> int:
    """Set up for serving or, with --dev, for development too."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--dev", action="store_true", help="with the tools for lint and tests")
    parser.add_argument("--train", action="store_true", help="with PyTorch, for gorgon train")
    parser.add_argument("--compile", action="store_true", help="with llama.cpp's converter")
    arguments = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, end_by_signal)
    try:
        with locked(ROOT):
            set_up(arguments.dev, arguments.train, arguments.compile)
    except (SetupError, OSError) as error:
        print(f"setup: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("setup: stopped; run it again to go on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
