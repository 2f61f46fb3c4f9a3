"""Cycles of one kernel alone, on one thread: what docs/kernels.md compares with the ports' limits.

    python benchmarks/kernel_cycles.py --ghz 3.2

Products: cycles for a block of 16 rows x 32 columns, and for each column of activations, with the
weights in the caches and in memory. Attention: its time over that of its multiplications at two
vectors a cycle. Times are those of the thread, the least of many: other processes may run beside.
"""

from __future__ import annotations

import argparse
import ctypes
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from gorgon.llama import kernels
from tests.native.conftest import BARRIER, AttentionArgs, Native, Soon, Worker, pointer
from tests.native.references import F16, WEIGHT_TYPES, random_blocks

COLUMNS, CACHED_ROWS, MEMORY_ROWS = 1536, 512, 49152
HEADS, KV_HEADS, DIM = 9, 3, 64  # the default model's
LANES = {"avx512": 16, "avxvnni": 8, "avx2": 8}


def least_ns(run: Callable[[], object], repeats: int) -> int:
    times = []
    for _ in range(repeats):
        began = time.thread_time_ns()
        run()
        times.append(time.thread_time_ns() - began)
    return min(times)


def aligned(array: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A copy that begins with a cache line, as weights do in a model."""
    room = np.empty(array.nbytes + 64, np.uint8)
    first = -room.ctypes.data % 64
    room[first : first + array.nbytes] = array.ravel()
    return room[first : first + array.nbytes]


def time_product(native: Native, isa: str, name: str, rows: int, n: int) -> float:
    """Nanoseconds for each block of 16 x 32."""
    kind, rng = WEIGHT_TYPES[name], np.random.default_rng(0)
    packed = native.pack(kind, random_blocks(kind, CACHED_ROWS, COLUMNS, 0), COLUMNS)
    packed = aligned(np.tile(packed, (rows // CACHED_ROWS, 1)))
    x, out = rng.standard_normal((n, COLUMNS), np.float32), np.empty((n, rows), np.float32)
    of = native.of(isa)
    quantized, rows_16 = aligned(native.activations(isa, kind, x)), rows // 16
    arguments = (kind, pointer(packed), COLUMNS, 0, rows_16, pointer(quantized), n, pointer(out))
    found = least_ns(
        lambda: of.multiply(*arguments, rows),
        60 if rows == CACHED_ROWS else 5,
    )
    return found / (rows / 16 * COLUMNS / 32)


def time_attention(native: Native, isa: str, cells: int, n: int) -> float:
    """Nanoseconds of ``n`` queries that see all cells."""
    rng = np.random.default_rng(0)
    q = rng.standard_normal((n, HEADS, DIM), np.float32)
    cache = rng.standard_normal((cells, KV_HEADS, DIM)).astype(np.float16)
    mask, out = np.zeros((n, cells), np.float16), np.empty((n, HEADS, DIM), np.float32)
    stored = (cache.ctypes.data, KV_HEADS * DIM * 2, DIM * 2, F16)
    args = AttentionArgs(
        q.ctypes.data, HEADS * DIM * 4, DIM * 4, *stored, *stored, mask.ctypes.data, cells * 2,
        out.ctypes.data, n, HEADS, KV_HEADS, cells, DIM, DIM, 0.125,
    )  # fmt: skip
    of = native.of(isa)
    scratch = np.empty(of.attention_scratch(ctypes.byref(args), 1), np.uint8)
    soon = Soon()
    barrier = BARRIER(lambda _pool: None)
    worker = Worker(0, 1, scratch.ctypes.data, barrier, None, ctypes.addressof(soon))
    return least_ns(lambda: of.attend(ctypes.byref(args), ctypes.byref(worker)), 60)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--ghz", type=float, required=True, help="clock of the processor")
    arguments = parser.parse_args()
    isa = kernels.load().isa
    if isa is None:
        raise SystemExit(kernels.load().reason)
    native = Native(kernels._library())
    for rows, place in ((CACHED_ROWS, "caches"), (MEMORY_ROWS, "memory")):
        for name in WEIGHT_TYPES:
            cells = []
            for n in (1, 2, 4, 8):
                cycles = time_product(native, isa, name, rows, n) * arguments.ghz
                cells.append(f"n={n} {cycles:.0f} ({cycles / n:.1f})")
            print(f"{isa} {name} in {place}: {', '.join(cells)}", flush=True)
    for cells_seen in (256, 1024):
        for n in (1, 4, 8, 16):
            ideal = cells_seen * HEADS * DIM * 2 * n / LANES[isa] / 2
            cycles = time_attention(native, isa, cells_seen, n) * arguments.ghz
            print(f"{isa} attention, {cells_seen} cells, n={n}: {cycles / ideal:.1f}", flush=True)


if __name__ == "__main__":
    main()
