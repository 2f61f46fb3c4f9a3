"""Attention: each kernel against double precision, and what its bits may depend on."""

from __future__ import annotations

from dataclasses import dataclass, field

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from tests.native import references
from tests.native.conftest import AttentionArgs, Native
from tests.native.references import F16, Q8_0, Doubles, Floats

Mask = NDArray[np.bool_]


@dataclass
class Case:
    """Arrays of one attention, laid out as llama.cpp lays out its cache."""

    native: Native
    heads: int
    kv_heads: int
    dim: int
    q: Floats  # [query][head][dim]
    k: Floats  # [cell][kv head][dim]
    v: Floats
    seen: Mask  # [query][cell]
    kind: int = F16
    positions: NDArray[np.int32] | None = None  # [cell] of the texts
    keep: list[NDArray[np.generic]] = field(default_factory=list)
    mask: NDArray[np.float16] = field(init=False)  # of the last args()

    def args(self) -> tuple[AttentionArgs, Floats]:
        args = AttentionArgs()
        cells = len(self.k)
        for name, rows in (("k", self.k), ("v", self.v)):
            flat = np.ascontiguousarray(rows.reshape(cells, -1), np.float32)
            raw = flat.astype(np.float16).view(np.uint8)
            if self.kind == Q8_0:
                raw = gguf.quantize(flat, GGMLQuantizationType.Q8_0)
            self.keep.append(raw)
            setattr(args, name, raw.ctypes.data)
            setattr(args, f"{name}_cell", raw.shape[1])
            setattr(args, f"{name}_head", raw.shape[1] // self.kv_heads)
            setattr(args, f"{name}_type", self.kind)
        q = np.ascontiguousarray(self.q, np.float32)
        self.keep.append(q)
        self.mask = mask = self._mask()
        args.q, args.q_query, args.q_head = q.ctypes.data, q.strides[0], q.strides[1]
        args.mask, args.mask_query = mask.ctypes.data, mask.strides[0]
        args.num_queries, args.num_heads, args.num_kv_heads = len(q), self.heads, self.kv_heads
        args.num_cells, args.dim_k, args.dim_v = cells, self.dim, self.dim
        args.scale = self.dim**-0.5
        if self.positions is not None:
            args.positions = self.positions.ctypes.data
        return args, np.empty((len(q), self.heads, self.dim), np.float32)

    def run(self, isa: str, threads: int = 1) -> Floats:
        args, out = self.args()
        return self.native.attend(isa, args, out, threads)

    def exact(self, mask: NDArray[np.float16] | None = None) -> Doubles:
        """In double precision, of what the cache holds."""
        if mask is None:
            mask = self._mask()
        k, v = (self._stored(rows) for rows in (self.k, self.v))
        return references.attend(self.q, k, v, mask, self.dim**-0.5)

    def _mask(self) -> NDArray[np.float16]:
        return np.where(self.seen, 0, -np.inf).astype(np.float16)

    def _stored(self, rows: Floats) -> Floats:
        if self.kind == F16:
            return rows.astype(np.float16).astype(np.float32)
        kind = GGMLQuantizationType.Q8_0
        blocks = gguf.quantize(rows.reshape(len(rows), -1), kind)
        return np.asarray(gguf.dequantize(blocks, kind)).reshape(rows.shape)


def make(
    native: Native, queries: int, cells: int, *, heads: int = 6, kv_heads: int = 2, dim: int = 64,
    seed: int = 0, spread: float = 1.0, kind: int = F16,
) -> Case:  # fmt: skip
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> Floats:
        return np.asarray(rng.normal(0, spread, shape), np.float32)

    return Case(
        native, heads, kv_heads, dim, normal(queries, heads, dim), normal(cells, kv_heads, dim),
        normal(cells, kv_heads, dim), rng.random((queries, cells)) < 0.8, kind,
    )  # fmt: skip


@pytest.mark.parametrize("kind", [F16, Q8_0], ids=["F16", "Q8_0"])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim"), [(9, 3, 64), (4, 4, 128), (8, 1, 32), (32, 1, 96), (2, 2, 256)]
)
@pytest.mark.parametrize("cells", [1, 7, 16, 130, 256, 600])
def test_close_to_double_precision(
    native: Native, isa: str, kind: int, heads: int, kv_heads: int, dim: int, cells: int
) -> None:
    case = make(native, 5, cells, heads=heads, kv_heads=kv_heads, dim=dim, kind=kind)
    np.testing.assert_allclose(case.run(isa, 2), case.exact(), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("queries", [1, 2, 3, 4, 8, 17, 33])
def test_many_queries(native: Native, isa: str, queries: int) -> None:
    case = make(native, queries, 300, seed=queries)
    np.testing.assert_allclose(case.run(isa, 2), case.exact(), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("spread", [1e-4, 30.0])
def test_extreme_scores(native: Native, isa: str, spread: float) -> None:
    case = make(native, 4, 400, spread=spread)
    np.testing.assert_allclose(case.run(isa), case.exact(), rtol=1e-4, atol=1e-5 * spread)


def test_a_query_that_sees_nothing_gives_zeros(native: Native, isa: str) -> None:
    case = make(native, 3, 100)
    case.seen[1] = False
    assert (case.run(isa)[1] == 0).all()


def test_bits_do_not_depend_on_threads(native: Native, isa: str) -> None:
    case = make(native, 9, 700, heads=3, kv_heads=3)
    alone = case.run(isa, 1)
    for threads in (2, 3, 5, 8):
        np.testing.assert_array_equal(case.run(isa, threads), alone)


def test_bits_do_not_depend_on_other_queries(native: Native, isa: str) -> None:
    case = make(native, 33, 520, heads=9, kv_heads=3)
    case.seen[:, :400] = True  # a shared prefix and a tree behind it
    together = case.run(isa, 2)
    for i in (0, 1, 13, 32):
        alone = Case(native, 9, 3, 64, case.q[i : i + 1], case.k, case.v, case.seen[i : i + 1])
        np.testing.assert_array_equal(alone.run(isa, 2)[0], together[i])


@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(9, 3, 64), (4, 4, 128), (8, 1, 32)])
@pytest.mark.parametrize("texts", [2, 5, 16])
def test_bits_do_not_depend_on_other_texts(
    native: Native, isa: str, texts: int, heads: int, kv_heads: int, dim: int
) -> None:
    """Each query sees a text of its own or, the last two, the branches of one."""
    case = make(native, texts + 1, 900, heads=heads, kv_heads=kv_heads, dim=dim)
    owner = np.random.default_rng(texts).integers(0, texts, 900)
    owner[owner == 1] = 0  # texts of different lengths; nothing is seen of the second
    case.seen[:-1] = owner == np.arange(texts)[:, np.newaxis]
    case.seen[-1] = case.seen[-2] & (np.arange(900) < 800)
    together = case.run(isa, 2)
    np.testing.assert_allclose(together, case.exact(), rtol=2e-5, atol=2e-6)
    np.testing.assert_array_equal(case.run(isa, 3), together)
    for i in range(texts + 1):
        seen = case.seen[i : i + 1]
        alone = Case(native, heads, kv_heads, dim, case.q[i : i + 1], case.k, case.v, seen)
        np.testing.assert_array_equal(alone.run(isa)[0], together[i])


def test_more_than_is_kept(native: Native, isa: str) -> None:
    case = make(native, 520, 40, heads=2, kv_heads=1, dim=32)
    case.seen[:, 0] = True
    np.testing.assert_allclose(case.run(isa, 2), case.exact(), rtol=2e-5, atol=2e-6)


def test_masks_are_read_once_for_each_number(native: Native, isa: str) -> None:
    case = make(native, 4, 300)
    case.positions = np.arange(300, dtype=np.int32)
    args, out = case.args()
    first = native.attend(isa, args, out)
    args.seen_as = 1 << 40
    np.testing.assert_array_equal(native.attend(isa, args, out), first)
    case.mask[1, :150] = -np.inf
    np.testing.assert_array_equal(native.attend(isa, args, out), first)
    args.seen_as += 1
    now = native.attend(isa, args, out)
    np.testing.assert_allclose(now, case.exact(case.mask), rtol=2e-5, atol=2e-6)
    case.mask[:] = 0
    case.positions[:] = case.positions[::-1].copy()  # which are looked at every time
    args.num_queries = 3
    np.testing.assert_array_equal(
        native.attend(isa, args, out)[:3], Case(
            native, 6, 2, 64, case.q[:3], case.k[::-1], case.v[::-1], np.ones((3, 300), np.bool_)
        ).run(isa),
    )  # fmt: skip


@pytest.mark.parametrize("prefix", [0, 9, 112, 125, 128, 250])
def test_bits_do_not_depend_on_the_tree(native: Native, isa: str, prefix: int) -> None:
    """Branches that share tiles of cells or parts of them, at the edges of tiles and chunks."""
    parents = [-1, 0, 0, 1, 1, 2, 3, 6]
    case = make(native, len(parents), prefix + len(parents), heads=9, kv_heads=3)
    case.seen[:] = np.arange(case.seen.shape[1]) < prefix
    for node, parent in enumerate(parents):
        if parent >= 0:
            case.seen[node] = case.seen[parent]
        case.seen[node, prefix + node] = True
    together = case.run(isa, 2)
    np.testing.assert_allclose(together, case.exact(), rtol=2e-5, atol=2e-6)
    for i in range(len(parents)):
        alone = Case(native, 9, 3, 64, case.q[i : i + 1], case.k, case.v, case.seen[i : i + 1])
        np.testing.assert_array_equal(alone.run(isa)[0], together[i])


def test_masks_and_positions_may_change_in_place(native: Native, isa: str) -> None:
    case = make(native, 4, 300)
    case.positions = np.arange(300, dtype=np.int32)
    args, out = case.args()
    mask = case.mask
    for change in (lambda: mask[:, 40:90].fill(-np.inf), lambda: mask[2].fill(0)):
        before = native.attend(isa, args, out)
        change()
        after = native.attend(isa, args, out)
        assert (after != before).any()
        np.testing.assert_allclose(after, case.exact(mask), rtol=2e-5, atol=2e-6)
    case.seen[:] = mask == 0
    np.random.default_rng(1).shuffle(case.positions)
    cells = np.argsort(case.positions)
    seen = np.ascontiguousarray(case.seen[:, cells])
    in_order = Case(native, 6, 2, 64, case.q, case.k[cells], case.v[cells], seen)
    everything = case.seen.all(axis=1)  # what sees a text with holes is left in the order of cells
    assert everything.any()
    np.testing.assert_array_equal(
        native.attend(isa, args, out)[everything], in_order.run(isa)[everything]
    )


def test_masks_are_added_to_the_scores(native: Native, isa: str) -> None:
    case = make(native, 3, 300)
    args, out = case.args()
    mask = case.mask
    mask[1] += np.random.default_rng(2).normal(0, 2, 300).astype(np.float16)
    biased = native.attend(isa, args, out)
    np.testing.assert_allclose(biased, case.exact(mask), rtol=2e-5, atol=2e-6)
    assert (biased[1] != case.run(isa)[1]).any()


def test_bits_depend_on_the_visible_cells_alone(native: Native, isa: str) -> None:
    """Holes, padding and whatever lies in hidden cells, even NaN, leave no trace."""
    dense = make(native, 4, 333)
    dense.seen[:] = np.tri(4, 333, 329, dtype=bool)
    rng = np.random.default_rng(9)
    places = np.sort(rng.choice(1024, 333, replace=False))
    k = np.full((1024, 2, 64), np.nan, np.float32)
    v = np.full((1024, 2, 64), np.nan, np.float32)
    k[places], v[places] = dense.k, dense.v
    seen = np.zeros((4, 1024), bool)
    seen[:, places] = dense.seen
    holes = Case(native, 6, 2, 64, dense.q, k, v, seen)
    np.testing.assert_array_equal(holes.run(isa, 2), dense.run(isa, 1))


def scattered(native: Native, dense: Case, seed: int) -> Case:
    """The tokens of ``dense`` in cells of any order, with the positions that say which."""
    cells = np.random.default_rng(seed).permutation(len(dense.k))
    positions = np.empty(len(cells), np.int32)
    positions[cells] = np.arange(len(cells))
    k, v, seen = np.empty_like(dense.k), np.empty_like(dense.v), np.empty_like(dense.seen)
    k[cells], v[cells], seen[:, cells] = dense.k, dense.v, dense.seen
    return Case(native, 6, 2, 64, dense.q, k, v, seen, positions=positions)


def test_bits_do_not_depend_on_the_order_of_the_cells(native: Native, isa: str) -> None:
    dense = make(native, 4, 333)
    dense.seen[:] = np.tri(4, 333, 329, dtype=bool)
    moved = scattered(native, dense, seed=3)
    np.testing.assert_array_equal(moved.run(isa, 2), dense.run(isa, 1))
    moved.positions = None
    assert (moved.run(isa, 2) != dense.run(isa, 1)).any()


@pytest.mark.parametrize("wrong", ["unknown", "twice", "with gaps"])
def test_positions_that_are_no_text_lose_no_cell(native: Native, isa: str, wrong: str) -> None:
    case = make(native, 3, 200)
    case.positions = np.random.default_rng(0).permutation(200).astype(np.int32)
    if wrong == "unknown":
        case.positions[::7] = -1
    elif wrong == "twice":
        case.positions[:] //= 2
    else:
        case.positions *= 5
    np.testing.assert_allclose(case.run(isa, 2), case.exact(), rtol=2e-5, atol=2e-6)


def test_instruction_sets_agree(native: Native) -> None:
    case = make(native, 7, 450, heads=9, kv_heads=3)
    results = [case.run(name) for name in ("avx512", "avx2") if native.runs(name)]
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])
