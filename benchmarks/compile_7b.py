"""A checkpoint at full 7B size with random weights through ``gorgon compile``: time, memory, sizes.

    python benchmarks/compile_7b.py FOLDER [--weights bin|safetensors] [--type Q4_K_M]

Needs 33 GB in FOLDER (checkpoint 13.5, F16 GGUF 13.5, result 4.1) and deletes all of it at the end
unless --keep. Memory is sampled over the whole process tree ten times a second, by stage: the
kernel's resident pages, and of those the ones that are nobody's file (anonymous). Resident pages of
mapped files are page cache, which the kernel takes back where memory is short.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from gorgon.bench.machine import describe_machine
from gorgon.compile import converter, space

ROOT = Path(__file__).resolve().parent.parent
SAMPLE_SECONDS = 0.1
NEEDED = {"checkpoint": 13_500_000_000, "F16 GGUF": 13_500_000_000, "result": 5_000_000_000}


@dataclass
class Peaks:
    """Highest sums over the tree in bytes, for each stage by name."""

    resident: dict[str, int] = field(default_factory=dict)
    anonymous: dict[str, int] = field(default_factory=dict)

    def add(self, stage: str, resident: int, anonymous: int) -> None:
        self.resident[stage] = max(resident, self.resident.get(stage, 0))
        self.anonymous[stage] = max(anonymous, self.anonymous.get(stage, 0))


def tree_of(root: int) -> Iterator[int]:
    """``root`` and all below it; those that end meanwhile are left out."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(path.parent.name))
    waiting = [root]
    while waiting:
        process = waiting.pop()
        yield process
        waiting += children.get(process, [])


def memory_of(process: int) -> tuple[int, int]:
    """Bytes resident, and of them anonymous."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0, 0
    sizes = {line.partition(":")[0]: line.split()[1] for line in lines if line.startswith("Rss")}
    values = {name: 1024 * int(size) for name, size in sizes.items()}
    return sum(values.values()), values.get("RssAnon", 0)


def watch(process: subprocess.Popen[str], stage: list[str], peaks: Peaks) -> None:
    while process.poll() is None:
        sizes = [memory_of(each) for each in tree_of(process.pid)]
        peaks.add(stage[0], sum(size[0] for size in sizes), sum(size[1] for size in sizes))
        time.sleep(SAMPLE_SECONDS)


def compile_watched(source: Path, out: Path, file_type: str, tokens: int) -> Peaks:
    """``gorgon compile`` as a user runs it, its output passed on."""
    command = [sys.executable, "-m", "gorgon.cli", "compile", str(source), "--out", str(out)]
    command += ["--type", file_type, "--tokens", str(tokens)]
    print("gorgon " + " ".join(command[3:]), flush=True)
    peaks, stage = Peaks(), ["start"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    watcher = threading.Thread(target=watch, args=(process, stage, peaks), daemon=True)
    watcher.start()
    assert process.stdout is not None
    for line in process.stdout:
        print(line, end="", flush=True)
        if line.rstrip().endswith(" ..."):
            stage[0] = line.rstrip().removesuffix(" ...")
    watcher.join()
    if process.wait() != 0:
        sys.exit(f"gorgon compile ended with {process.returncode}")
    return peaks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--weights", choices=("bin", "safetensors"), default="bin")
    parser.add_argument("--type", default="Q4_K_M")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--keep", action="store_true", help="delete nothing")
    given = parser.parse_args()
    source, out = given.folder / f"7b-{given.weights}", given.folder / "compiled"
    given.folder.mkdir(parents=True, exist_ok=True)
    if not source.exists():
        space.check(given.folder, NEEDED)
        python = converter.install(Console())
        script = ROOT / "tests" / "compile" / "vicuna.py"
        subprocess.run([python, script, "full", source, given.weights], check=True)
    try:
        began = time.monotonic()
        peaks = compile_watched(source, out, given.type, given.tokens)
        seconds = time.monotonic() - began
        print(f"\nin all {seconds:.0f} s on {describe_machine().model_dump_json()}")
        size = sum(path.stat().st_size for path in source.iterdir())
        print(f"checkpoint ({given.weights}) {size / 1e9:.2f} GB")
        for stage, resident in peaks.resident.items():
            anonymous = peaks.anonymous[stage]
            print(f"{stage}: {resident / 1e9:.2f} GB resident, {anonymous / 1e9:.2f} anonymous")
    finally:
        if not given.keep:
            for folder in (source, out, out.with_name("compiled.part")):
                shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
