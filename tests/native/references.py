"""The kernels' arithmetic in plain NumPy: products bit by bit, attention in double precision."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Ints = NDArray[np.int64]
Bytes = NDArray[np.uint8]

F16, Q4_0, Q4_1, Q5_0, Q8_0, Q4_K, Q6_K = 1, 2, 3, 6, 8, 12, 14
WEIGHT_TYPES = {"Q4_0": Q4_0, "Q4_1": Q4_1, "Q5_0": Q5_0, "Q8_0": Q8_0, "Q4_K": Q4_K, "Q6_K": Q6_K}
BLOCK_BYTES = {Q4_0: 18, Q4_1: 20, Q5_0: 22, Q8_0: 34, Q4_K: 144, Q6_K: 210}
BLOCK_COLUMNS = {Q4_0: 32, Q4_1: 32, Q5_0: 32, Q8_0: 32, Q4_K: 256, Q6_K: 256}
BIAS = {Q4_0: 8, Q4_1: 0, Q5_0: 16, Q8_0: 128, Q4_K: 0, Q6_K: 32}
SMALLEST_SCALED = np.float32(1e-35)  # of native/layout.h


def random_blocks(kind: int, rows: int, columns: int, seed: int) -> Bytes:
    """ggml's blocks with sane scales and any bits in the quants, also what no quantiser writes."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(
        0, 256, (rows, columns // BLOCK_COLUMNS[kind], BLOCK_BYTES[kind]), dtype=np.uint8
    )
    halves = 2 if kind in (Q4_1, Q4_K) else 1
    scales = rng.normal(0, 0.01, (*blocks.shape[:2], halves)).astype(np.float16).view(np.uint8)
    if kind == Q6_K:
        blocks[..., -2:] = scales
    else:
        blocks[..., : 2 * halves] = scales
    return blocks.reshape(rows, -1)


@dataclass
class Weights:
    """Weight k of a block is ``q[k] * d[k // 16] + m``; arrays [row][block of 32]..."""

    q: Ints  # [..., 32], without bias
    d: Floats  # [..., 2]
    m: Floats


def read_weights(kind: int, blocks: Bytes) -> Weights:
    """ggml's blocks, [row][byte]."""
    parts = blocks.reshape(len(blocks), -1, BLOCK_BYTES[kind])
    q, d, m = _READERS[kind](parts, kind)
    rows = len(blocks)
    q = q.reshape(rows, -1, 32).astype(np.int64) - BIAS[kind]
    d = np.broadcast_to(d.reshape(rows, -1, 2 if kind == Q6_K else 1), (*q.shape[:2], 2))
    return Weights(q, d, np.broadcast_to(m.reshape(rows, -1), q.shape[:2]))


Read = tuple[NDArray[np.int_], Floats, Floats]


def _halves(parts: Bytes, at: int) -> Floats:
    return parts[..., at : at + 2].copy().view(np.float16).astype(np.float32)[..., 0]


def _nibbles(q: Bytes) -> NDArray[np.int_]:
    """Low ones first, [..., 16] -> [..., 32]."""
    return np.concatenate([q & 15, q >> 4], axis=-1).astype(int)


def _read_4(parts: Bytes, kind: int) -> Read:
    first = 4 if kind == Q4_1 else 2
    d = _halves(parts, 0)
    return _nibbles(parts[..., first:]), d, _halves(parts, 2) if kind == Q4_1 else 0 * d


def _read_5(parts: Bytes, _kind: int) -> Read:
    d, high = _halves(parts, 0), np.unpackbits(parts[..., 2:6], axis=-1, bitorder="little")
    return _nibbles(parts[..., 6:]) | high.astype(int) << 4, d, 0 * d


def _read_8(parts: Bytes, _kind: int) -> Read:
    d = _halves(parts, 0)
    return parts[..., 2:].view(np.int8).astype(int) + BIAS[Q8_0], d, 0 * d


def _read_4k(parts: Bytes, _kind: int) -> Read:
    a, b, c = (parts[..., i : i + 4].astype(int) for i in (4, 8, 12))
    scale = np.concatenate([a & 63, c & 15 | a >> 6 << 4], axis=-1).astype(np.float32)
    low = np.concatenate([b & 63, c >> 4 | b >> 6 << 4], axis=-1).astype(np.float32)
    q = _nibbles(parts[..., 16:].reshape(*parts.shape[:2], 4, 32))
    return q, _halves(parts, 0)[..., None] * scale, -(_halves(parts, 2)[..., None] * low)


def _read_6k(parts: Bytes, _kind: int) -> Read:
    low = parts[..., :128].reshape(*parts.shape[:2], 2, 1, 64) >> np.array([[0], [4]], np.uint8)
    both = parts[..., 128:192].reshape(*parts.shape[:2], 2, 1, 32).astype(int)
    high = both >> np.array([[0], [2], [4], [6]]) & 3
    q = (low & 15).reshape(high.shape) | high << 4
    d = _halves(parts, 208)[..., None] * parts[..., 192:208].view(np.int8).astype(np.float32)
    return q, d, 0 * d[..., ::2]


_READERS = {
    Q4_0: _read_4, Q4_1: _read_4, Q5_0: _read_5, Q8_0: _read_8, Q4_K: _read_4k, Q6_K: _read_6k,
}  # fmt: skip


def fma(a: Floats, b: Floats, c: Floats) -> Floats:
    """``a * b + c``, rounded once: in doubles to odd, so that the second rounding does no harm."""
    product, added = a.astype(np.float64) * b, c.astype(np.float64)  # exact
    total = product + added
    high = total - product
    error = (product - (total - high)) + (added - high)
    bits = total.view(np.int64)
    odd = np.where((error > 0) == (total > 0), bits | 1, bits - 1)
    to_odd = (error != 0) & (bits & 1 == 0)
    return np.where(to_odd, odd, bits).view(np.float64).astype(np.float32)


def quantize(x: Floats) -> tuple[Floats, Ints]:
    """Activations [..., 32] as scales [...] and 8 bits."""
    most = np.abs(x).max(axis=-1)
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.where(most >= SMALLEST_SCALED, np.float32(127) / most, np.float32(0))
    return most / np.float32(127), np.rint(x * inverse[..., None]).astype(np.int64)


def multiply(kind: int, blocks: Bytes, x: Floats) -> Floats:
    """``x @ W.T`` with activations in 8 bits, summed block by block as the kernels do."""
    w, (d, q) = read_weights(kind, blocks), quantize(x.reshape(len(x), -1, 32))
    dots = np.einsum(
        "nbhk,rbhk->bhnr", *(i.reshape(*i.shape[:2], 2, 16).astype(float) for i in (q, w.q))
    )
    out = np.zeros((len(x), len(blocks)), np.float32)
    sums = d * q.sum(axis=-1).astype(np.float32)
    for b in range(w.q.shape[1]):
        halves = dots[b] if kind == Q6_K else dots[b].sum(axis=0, keepdims=True)
        for half, dot in enumerate(halves.astype(np.float32)):
            out = fma(dot, w.d[:, b, half] * d[:, b, None], out)
        out = fma(
            np.broadcast_to(w.m[:, b], out.shape), np.broadcast_to(sums[:, b, None], out.shape), out
        )
    return out


def attend(q: Floats, k: Floats, v: Floats, mask: NDArray[np.float16], scale: float) -> Doubles:
    """[query][head][dim] over [cell][kv head][dim]; zeros for a query that sees nothing."""
    group = q.shape[1] // k.shape[1]
    keys, values = (np.repeat(rows, group, axis=1).astype(np.float64) for rows in (k, v))
    scores = np.einsum("qhd,chd->qhc", q.astype(np.float64), keys) * scale + mask[:, None].astype(
        float
    )
    hidden = np.isneginf(mask)[:, None]
    most = np.where(hidden, -np.inf, scores).max(axis=-1, keepdims=True, initial=-1e300)
    p = np.where(hidden, 0.0, np.exp(np.where(hidden, most, scores) - most))
    total = p.sum(axis=-1, keepdims=True)
    return np.asarray(np.einsum("qhc,chd->qhd", p / np.where(total > 0, total, 1), values))
