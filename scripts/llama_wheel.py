"""The llama-cpp-python wheel: built from its sdist once per machine and compiler, then reused.

llama.cpp is compiled for the CPU at hand (-march=native), so a wheel is only good where the
processor, the compiler and the build options are the same; the key of a wheel covers all three.
Layout: ~/.cache/gorgon/wheels/<key>/ holds the wheel, if it is complete, and build.log.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

from command import SetupError, run

BUILD_VARIABLES = (
    "CC",
    "CXX",
    "CFLAGS",
    "CXXFLAGS",
    "LDFLAGS",
    "CMAKE_ARGS",
    "CUDACXX",
    "CUDAARCHS",
    "SKBUILD_CMAKE_ARGS",
    "SKBUILD_CMAKE_BUILD_TYPE",
    "SKBUILD_CMAKE_DEFINE",
)


def wheel_key(
    lock: str, machine: str, cpu_flags: str, compilers: str, environ: Mapping[str, str]
) -> str:
    """``<version>-<16 hex digits>``, another one whenever the built wheel could differ.

    ``lock`` is the text that pins the version and the sdist's hash. The wheel itself is tagged
    py3-none, so the Python version is no part of the key.
    """
    version = re.search(r"^llama-cpp-python==([^\s;]+)", lock, re.MULTILINE)
    assert version is not None, "the lock does not pin llama-cpp-python"
    options = {name: environ[name] for name in BUILD_VARIABLES if environ.get(name)}
    pins = [line for line in lock.splitlines() if not line.startswith("#")]
    parts = [pins, machine, cpu_flags, compilers, options]
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    return f"{version[1]}-{digest[:16]}"


def read_cpu_flags(cpuinfo: str) -> str:
    """The processor's features, sorted, from the text of /proc/cpuinfo (x86 or Arm)."""
    match = re.search(r"^(?:flags|Features)\s*:(.*)$", cpuinfo, re.MULTILINE)
    return " ".join(sorted(match[1].split())) if match else ""


def find_compiler(variable: str, names: tuple[str, ...]) -> list[str]:
    """The command that CMake would take: the variable's, else the first name on the path.

    Raises:
        SetupError: when there is none.
    """
    if os.environ.get(variable):
        return shlex.split(os.environ[variable])
    for name in names:
        if shutil.which(name):
            return [name]
    raise SetupError("no C and C++ compiler found (Debian: apt install gcc g++)")


def compiler_versions() -> str:
    """The first version line of the C and of the C++ compiler.

    Raises:
        SetupError: when one is missing or does not run.
    """
    found = []
    for variable, names in (("CC", ("cc", "gcc", "clang")), ("CXX", ("c++", "g++", "clang++"))):
        command = [*find_compiler(variable, names), "--version"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise SetupError(f"the compiler does not run: {error}") from error
        found.append(done.stdout.partition("\n")[0])
    return "\n".join(found)


def current_key(lock: Path) -> str:
    """The key of the wheel for this machine, its compilers and this environment."""
    cpuinfo = Path("/proc/cpuinfo")
    return wheel_key(
        lock.read_text(encoding="utf-8"),
        machine=" ".join([platform.system(), platform.machine(), *platform.libc_ver()]),
        cpu_flags=read_cpu_flags(cpuinfo.read_text() if cpuinfo.exists() else platform.processor()),
        compilers=compiler_versions(),
        environ=os.environ,
    )


def cache_folder(key: str) -> Path:
    """Where the wheel of this key is kept."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache, "gorgon", "wheels", key)


def find_wheel(folder: Path) -> Path | None:
    """The wheel kept there, if it is whole."""
    for wheel in folder.glob("*.whl"):
        try:
            with zipfile.ZipFile(wheel) as file:
                if file.testzip() is None:
                    return wheel
        except (zipfile.BadZipFile, EOFError):
            pass
        wheel.unlink()
    return None


def build_wheel(folder: Path, python: Path, lock: Path, on_line: Callable[[str], None]) -> Path:
    """Build with the tools of the environment of ``python``; the caller has locked ``folder``.

    Everything happens in a work folder, from which the finished wheel is renamed into place; work
    folders found at the start are what interrupted builds left.

    Raises:
        SetupError: when the build fails; nothing but the log stays.
    """
    for leftover in folder.glob("building-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix="building-", dir=folder))
    try:
        pip = [str(python), "-m", "pip", "wheel", "--verbose", "--no-cache-dir", "--no-deps"]
        source = ["--no-build-isolation", "--no-binary=:all:", "--require-hashes", "-r", str(lock)]
        log = folder / "build.log"
        run([*pip, *source, "-w", str(work)], log, on_line, env={"TMPDIR": str(work)})
        (wheel,) = work.glob("*.whl")
        return wheel.replace(folder / wheel.name)
    finally:
        shutil.rmtree(work, ignore_errors=True)
