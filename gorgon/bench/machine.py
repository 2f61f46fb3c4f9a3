"""The machine under the benchmark: what it is, what memory a process takes, what energy it uses."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from gorgon.bench.document import Machine

_RAPL = Path("/sys/class/powercap")
_SMI_MILLISECONDS = 100


def describe_machine() -> Machine:
    """What a reader needs to know to compare."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Machine(
        cpu=_cpu_name(),
        num_cores=len(os.sched_getaffinity(0)),
        memory_gb=round(pages / 1e9, 1),
        accelerator=_accelerator(),
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
    )


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _accelerator() -> str | None:
    """The GPUs that this process may use, as nvidia-smi names them."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "" or not shutil.which("nvidia-smi"):
        return None
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    return done.stdout.strip().replace("\n", "; ") or None if done.returncode == 0 else None


def resident_mb(pid: int) -> float:
    """Resident memory of a process in MB (10^6 bytes), mapped files included."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024 / 1e6
    raise ValueError(f"process {pid} has no VmRSS")


class EnergyMeter:
    """Joules since it was opened, of the CPU packages (RAPL) and GPUs that tell; use with ``with``.

    RAPL counts by itself; a GPU's power is sampled every 0.1 s by nvidia-smi and summed up.
    """

    def __init__(self) -> None:
        self._zones = [zone for zone in _rapl_zones() if _read_int(zone / "energy_uj") is not None]
        self._sampler: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._lock = threading.Lock()
        self._gpu_joules = 0.0
        self._read_at = time.perf_counter()

    def __enter__(self) -> EnergyMeter:
        """Start sampling, where there is a GPU."""
        if _accelerator():
            query = ["nvidia-smi", "--query-gpu=power.draw", "--format=csv,noheader,nounits"]
            self._sampler = subprocess.Popen(
                [*query, "-lms", str(_SMI_MILLISECONDS)], stdout=subprocess.PIPE, text=True
            )
            self._reader = threading.Thread(target=self._sample, daemon=True)
            self._reader.start()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        """Stop sampling."""
        if self._sampler is not None:
            self._sampler.terminate()
            self._sampler.wait()
            if self._reader is not None:
                self._reader.join()
            if self._sampler.stdout is not None:
                self._sampler.stdout.close()

    @property
    def available(self) -> bool:
        """Whether anything here tells."""
        return bool(self._zones) or self._sampler is not None

    def joules(self) -> float | None:
        """A reading that only grows (but for RAPL's wrap after some hours), or None."""
        if not self.available:
            return None
        micro = sum(_read_int(zone / "energy_uj") or 0 for zone in self._zones)
        with self._lock:
            return micro / 1e6 + self._gpu_joules

    def _sample(self) -> None:
        assert self._sampler is not None
        assert self._sampler.stdout is not None
        self._read_at = time.perf_counter()
        for line in self._sampler.stdout:
            now = time.perf_counter()
            with self._lock, contextlib.suppress(ValueError):
                self._gpu_joules += float(line) * (now - self._read_at)
            self._read_at = now


def _rapl_zones() -> Iterator[Path]:
    """Whole packages only: their parts (core, dram inside) would count twice."""
    if _RAPL.is_dir():
        yield from sorted(_RAPL.glob("intel-rapl:?"))


def _read_int(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
