"""Memory: what the KV cache takes by type and length, and what this machine has left."""

from __future__ import annotations

import re
from pathlib import Path

from gorgon.errors import ModelError
from gorgon.llama import ggml
from gorgon.llama.gguf import GgufFile

# ggml's numbers of the types that gorgon serve takes for its cache.
CACHE_TYPES = {"f16": 1, "q8_0": 8, "q4_0": 2}


def cache_bytes(path: Path, num_cells: int) -> dict[str, int]:
    """Bytes that ``num_cells`` tokens need, by ``--cache-type``.

    Keys and values of every layer: cells * layers * KV heads * (key length + value length).

    Raises:
        ModelError: when the header lacks the sizes.
    """
    with GgufFile(path) as file:
        layers = file.uint("llama.block_count")
        heads = file.uint("llama.attention.head_count")
        width = file.uint("llama.embedding_length")
        if not (layers and heads and width):
            raise ModelError(f"{path}: no llama.block_count, head_count or embedding_length")
        kv_heads = file.uint("llama.attention.head_count_kv") or heads
        key = file.uint("llama.attention.key_length") or width // heads
        value = file.uint("llama.attention.value_length") or width // heads
    return {
        name: num_cells
        * layers
        * (ggml.row_size(kind, kv_heads * key) + ggml.row_size(kind, kv_heads * value))
        for name, kind in CACHE_TYPES.items()
    }


def available() -> int | None:
    """Bytes that programs can still take without swapping; None where the system does not say."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return None
    found = re.search(r"^MemAvailable:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else None
