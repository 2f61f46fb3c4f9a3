"""What the model runs on, by name."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

from gorgon.llama import ggml


def describe_device(gpu_layers: int) -> str:
    """The GPU that holds layers, if any, and the processor with its number of cores."""
    processor = f"{_processor()}, {os.cpu_count()} cores"
    device = ggml.backend_dev_by_type(ggml.DEVICE_GPU) if gpu_layers else None
    if not device:
        return processor
    return f"{ggml.backend_dev_description(device).decode()}; {processor}"


def on_gpu(gpu_layers: int) -> bool:
    """Whether layers of a model go to a GPU."""
    return gpu_layers != 0 and bool(ggml.backend_dev_by_type(ggml.DEVICE_GPU))


def _processor() -> str:
    try:
        info = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    fields = [re.search(rf"^{name}\s*:\s*(.*)$", info, re.MULTILINE) for name in _FIELDS]
    return " ".join(field[1] for field in fields if field) or platform.machine()


_FIELDS = ("model name", "cpu family", "model", "stepping")
