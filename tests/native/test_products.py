"""Weight products: each kernel against the plain reference, bit by bit, and the values of gguf."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGMLQuantizationType, dequantize

from tests.native import references
from tests.native.conftest import Native
from tests.native.references import BLOCK_BYTES, BLOCK_COLUMNS, WEIGHT_TYPES, random_blocks

KINDS = pytest.mark.parametrize("kind", WEIGHT_TYPES.values(), ids=WEIGHT_TYPES.keys())


@KINDS
def test_packed_weights_are_the_same_weights(native: Native, isa: str, kind: int) -> None:
    blocks = random_blocks(kind, 48, 768, 1)
    packed = native.pack(kind, blocks, 768)
    np.testing.assert_array_equal(
        native.unpack(isa, kind, packed, 768), dequantize(blocks, GGMLQuantizationType(kind))
    )


@KINDS
@pytest.mark.parametrize("columns", [256, 512, 1536])
def test_kernel_equals_reference(native: Native, isa: str, kind: int, columns: int) -> None:
    blocks = random_blocks(kind, 48, columns, columns)
    packed = native.pack(kind, blocks, columns)
    x = np.random.default_rng(2).normal(0, 3, (33, columns)).astype(np.float32)
    expected = references.multiply(kind, blocks, x)
    for n in range(1, 34):
        np.testing.assert_array_equal(native.multiply(isa, kind, packed, x[:n]), expected[:n])


@KINDS
@pytest.mark.parametrize("blocks_of_32", [1, 2, 3, 18])
def test_short_rows(native: Native, isa: str, kind: int, blocks_of_32: int) -> None:
    columns = blocks_of_32 * BLOCK_COLUMNS[kind]
    blocks = random_blocks(kind, 16, columns, 3)
    x = np.random.default_rng(3).normal(size=(5, columns)).astype(np.float32)
    np.testing.assert_array_equal(
        native.multiply(isa, kind, native.pack(kind, blocks, columns), x),
        references.multiply(kind, blocks, x),
    )


@KINDS
def test_a_column_does_not_depend_on_the_others(native: Native, isa: str, kind: int) -> None:
    rng = np.random.default_rng(4)
    packed = native.pack(kind, random_blocks(kind, 64, 512, 4), 512)
    x = rng.normal(size=(1, 512)).astype(np.float32)
    alone = native.multiply(isa, kind, packed, x)
    for n in (2, 5, 8, 9, 16, 17, 100):
        others = (rng.normal(size=(n, 512)) * 10.0 ** rng.integers(-20, 20, (n, 1))).astype(
            np.float32
        )
        at = int(rng.integers(n))
        others[at] = x[0]
        np.testing.assert_array_equal(native.multiply(isa, kind, packed, others)[at], alone[0])


@KINDS
@pytest.mark.parametrize("scale", [0.0, 1e-44, 1e-38, 1e-30, 1e-3, 1e3, 1e30])
def test_extreme_activations(native: Native, isa: str, kind: int, scale: float) -> None:
    blocks = random_blocks(kind, 16, 256, 5)
    x = (np.random.default_rng(5).normal(size=(3, 256)) * scale).astype(np.float32)
    x[1, ::7] = 0
    out = native.multiply(isa, kind, native.pack(kind, blocks, 256), x)
    assert np.isfinite(out).all()
    np.testing.assert_array_equal(out, references.multiply(kind, blocks, x))


@KINDS
def test_extreme_integers(native: Native, isa: str, kind: int) -> None:
    """All bits set or none, activations all at +-127: nothing overflows on the way."""
    for fill in (0x00, 0xFF, 0x80, 0x7F):
        blocks = random_blocks(kind, 16, 512, 6)
        scales = blocks.copy()
        blocks[:] = fill
        view = blocks.reshape(16, -1, BLOCK_BYTES[kind])
        view[..., :4] = scales.reshape(view.shape)[..., :4]
        view[..., -2:] = scales.reshape(view.shape)[..., -2:]
        packed = native.pack(kind, blocks, 512)
        for sign in ([1, 1], [-1, -1], [1, -1]):
            x = np.tile(np.array(sign, np.float32), 256)[None, :]
            np.testing.assert_array_equal(
                native.multiply(isa, kind, packed, x), references.multiply(kind, blocks, x)
            )


@KINDS
def test_error_against_double_precision(native: Native, isa: str, kind: int) -> None:
    """Only the rounding of activations to 8 bits remains: well below that of the weights."""
    rng = np.random.default_rng(7)
    x = rng.normal(size=(8, 768)).astype(np.float32)
    blocks = random_blocks(kind, 64, 768, 7)
    weights = dequantize(blocks, GGMLQuantizationType(kind))
    exact = x.astype(np.float64) @ weights.astype(np.float64).T
    out = native.multiply(isa, kind, native.pack(kind, blocks, 768), x)
    assert np.linalg.norm(out - exact) / np.linalg.norm(exact) < 0.01


@KINDS
def test_quantised_activations(native: Native, isa: str, kind: int) -> None:
    x = np.random.default_rng(8).normal(size=4096).astype(np.float32)
    x[64:96] = 0
    out = native.activations(isa, kind, x)
    scales, q = references.quantize(x.reshape(-1, 32))
    sums = q.reshape(-1, 2, 16).sum(axis=2)
    starts = -references.BIAS[kind] * np.stack([sums.sum(axis=1), 0 * sums[:, 0]], axis=1)
    if kind == references.Q6_K:  # for each half; the second one times 4, like its weights
        starts = -references.BIAS[kind] * sums * [1, 1 if isa == "avx2" else 4]
    np.testing.assert_array_equal(out[:, :4].copy().view(np.float32)[:, 0], scales)
    total = sums.sum(axis=1).astype(np.float32)
    np.testing.assert_array_equal(out[:, 4:8].copy().view(np.float32)[:, 0], scales * total)
    np.testing.assert_array_equal(out[:, 8:16].copy().view(np.int32), starts)
    np.testing.assert_array_equal(out[:, 16:].view(np.int8), q)
    assert np.abs((q * scales[:, None]).ravel() - x).max() <= scales.max() / 2 * 1.001
