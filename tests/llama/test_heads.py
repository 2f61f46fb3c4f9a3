"""The heads' graphs against the published formulas in NumPy."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from gorgon.backend import DraftState, Guesses, Level
from gorgon.compile.sidecar import Sidecar, write
from gorgon.config import EngineSettings
from gorgon.llama import heads_guesses, kernels
from gorgon.llama.gguf import GgufFile
from gorgon.llama.heads import Heads, load_heads
from gorgon.llama.heads_file import Knots
from gorgon.llama.heads_graph import Graph
from gorgon.llama.heads_guesses import NativeRanking
from gorgon.llama.model import ModelInfo
from gorgon.llama.tensor_types import TYPES
from tests.llama.files import (
    EMBD,
    HIDDEN,
    LENGTH,
    VOCAB,
    Floats,
    block_reference,
    conditioned_tensors,
    embeddings_of,
    medusa_reference,
    medusa_tensors,
    window_reference,
    write_base,
    write_heads,
)

# How far states may be off, relative to their length, after the two or three products behind them:
# the type's own rounding of weights plus that of the activations, 8 bits in all quantised types.
TOLERANCE = {"F32": 1e-5, "F16": 1e-3, "Q8_0": 0.015, "Q6_K": 0.04, "Q4_K": 0.13, "Q4_0": 0.15}
SETTINGS = EngineSettings(threads=2, gpu_layers=0)
TOKEN_MAP = np.random.default_rng(3).permutation(VOCAB)[:300].astype(np.int32)


def load(path: Path, base: ModelInfo) -> Heads:
    return load_heads(path, base, SETTINGS)


def states(rows: int, window: int, seed: int = 5, num_embd: int = EMBD) -> DraftState:
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(rows, 1 + window, num_embd)).astype(np.float32)
    tokens = rng.integers(0, VOCAB, (rows, 1 + window)).astype(np.int32)
    return DraftState(hidden, tokens)


def distance(found: Floats, expected: Floats) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def check_guesses(guesses: Guesses, depth: int, expected: Floats, tolerance: float) -> None:
    """Ranked, distinct, and as likely as ``expected`` [rows, outputs] has it."""
    tokens, probs = guesses.tokens[:, depth], guesses.probs[:, depth]
    assert (np.diff(probs, axis=-1) <= 0).all()
    rows = np.arange(len(tokens))[:, None]
    outputs = np.argsort(TOKEN_MAP)[np.searchsorted(np.sort(TOKEN_MAP), tokens)]
    assert (TOKEN_MAP[outputs] == tokens).all()
    assert all(len(set(row)) == len(row) for row in tokens.tolist())
    assert distance(probs, expected[rows, outputs]) < 4 * tolerance
    best = np.sort(expected, -1)[:, ::-1][:, : tokens.shape[1]]
    assert distance(probs, best) < 4 * tolerance


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> ModelInfo:
    return write_base(tmp_path_factory.mktemp("base") / "base.gguf")


@pytest.mark.parametrize("kind", TOLERANCE)
def test_conditioned_heads_compute_their_formula(
    kind: str, base: ModelInfo, tmp_path: Path
) -> None:
    tensors = conditioned_tensors()
    heads = load(write_heads(tmp_path / "h", base, tensors, kind, token_ids=TOKEN_MAP), base)
    table, start = embeddings_of(base), states(3, 2)
    s, b = window_reference(tensors, start.hidden, table[start.tokens])
    guesses, tokens = heads.propose(start), start.tokens[:, 0]
    for depth in (1, 2, 3):
        s, expected = block_reference(tensors, s, table[tokens], b)
        assert guesses.states is not None
        assert distance(guesses.states[:, :EMBD], s) < TOLERANCE[kind]
        assert distance(guesses.states[:, EMBD:], b) < TOLERANCE[kind]
        check_guesses(guesses, 0, expected, TOLERANCE[kind])
        if depth < 3:
            s, tokens = guesses.states[:, :EMBD], guesses.tokens[:, 0, 1]
            guesses = heads.deepen(guesses.states, tokens, depth + 1)
    heads.close()


@pytest.mark.parametrize("window", [0, 2])
@pytest.mark.parametrize("rows", [1, 2, 3, 70])
def test_a_search_gives_what_asking_for_each_depth_gives(
    rows: int, window: int, base: ModelInfo, tmp_path: Path
) -> None:
    path = write_heads(tmp_path / "h", base, conditioned_tensors(window), token_ids=TOKEN_MAP)
    heads, start = load_heads(path, base, SETTINGS, search=True), states(rows, window)
    levels, asked = heads.search(start), heads.propose(start)
    assert heads.searches
    assert len(levels) == heads.num_heads
    assert (levels[0].parents == np.arange(rows)).all()
    assert (levels[0].tokens == start.tokens[:, 0]).all()
    survivals = np.ones(rows, np.float32)
    for depth, level in enumerate(levels, 1):
        if depth > 1:
            above = asked
            assert above.states is not None
            asked = heads.deepen(above.states[level.parents], level.tokens, depth)
            survivals = check_chosen(level, above, survivals, rows)
        assert (level.guesses.tokens == asked.tokens).mean() > 0.98  # but for near-ties: F16
        assert distance(level.guesses.probs, asked.probs) < 2e-3
    heads.close()


@pytest.mark.parametrize("variant", ["conditioned", "medusa"])
def test_heads_may_begin_before_they_are_asked(
    variant: str, base: ModelInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = conditioned_tensors(2) if variant == "conditioned" else medusa_tensors(3)
    path = write_heads(tmp_path / "h", base, tensors, token_ids=TOKEN_MAP)
    heads = load_heads(path, base, SETTINGS, search=True)

    def ask(state: DraftState) -> list[np.ndarray]:
        found = [level.guesses for level in heads.search(state)] if heads.searches else []
        found = found or [heads.propose(state)]
        return [each for guesses in found for each in (guesses.tokens, guesses.probs)]

    first, second = states(2, heads.window), states(3, heads.window)
    expected = [ask(first), ask(second)]
    heads.begin(first)
    assert same(ask(first), expected[0])
    heads.begin(first)  # and then something else is asked, and this one after all
    assert same(ask(second), expected[1])
    assert same(ask(first), expected[0])
    heads.begin(first)
    heads.begin(second)
    assert same(ask(second), expected[1])
    heads.begin(first)
    finished: list[Graph] = []
    finish = Graph.finish

    def counted(graph: Graph) -> None:
        finished.append(graph)
        finish(graph)

    monkeypatch.setattr(Graph, "finish", counted)
    heads.close()
    assert len(finished) == 1  # the device is waited for before its memory is freed


def same(found: list[np.ndarray], expected: list[np.ndarray]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("num_outputs", [300, 512, VOCAB])
@pytest.mark.parametrize("variant", ["conditioned", "medusa"])
def test_guesses_are_the_same_wherever_they_are_ranked(
    variant: str,
    num_outputs: int,
    base: ModelInfo,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By the native library, by NumPy, and sorted in chunks as on a GPU."""
    tensors = conditioned_tensors() if variant == "conditioned" else medusa_tensors(3)
    rng = np.random.default_rng(9)
    tensors["output.weight"] = rng.normal(size=(num_outputs, EMBD)).astype(np.float32)
    token_ids = rng.permutation(VOCAB)[:num_outputs].astype(np.int32)
    x = np.array([0.0, 0.01, 0.1, 1.0], np.float32)
    maps = tuple(Knots(x, (x ** (1 + i)).astype(np.float32)) for i in range(3))
    path = write_heads(tmp_path / "h", base, tensors, token_ids=token_ids, calibration=maps)
    monkeypatch.setattr(heads_guesses, "_PART", 64)
    start, native = states(3, 2), load(path, base)
    assert isinstance(native._ranking, NativeRanking)  # type: ignore[attr-defined]
    monkeypatch.setattr(kernels, "functions", lambda: None)
    plain, on_gpu = load(path, base), load_heads(path, base, SETTINGS, search=True)
    on_gpu._device.is_gpu = True  # type: ignore[attr-defined]
    expected = plain.propose(start)
    for heads in (native, on_gpu):
        found = heads.propose(start)
        assert (found.tokens == expected.tokens).all()
        np.testing.assert_allclose(found.probs, expected.probs, rtol=1e-5)
        if found.states is not None and expected.states is not None:
            asked = [h.deepen(expected.states, expected.tokens[:, 0, 1], 3) for h in (heads, plain)]
            assert (asked[0].tokens == asked[1].tokens).all()
            np.testing.assert_allclose(asked[0].probs, asked[1].probs, rtol=1e-5)
    if variant == "conditioned":
        first = on_gpu.search(start)[0].guesses
        assert (first.tokens == expected.tokens).all()
    for heads in (native, plain, on_gpu):
        heads.close()


def check_chosen(level: Level, above: Guesses, survivals: Floats, rows: int) -> Floats:
    """The likeliest paths of each request are gone on from; their survivals."""
    known = above.tokens[level.parents, 0] == level.tokens[:, None]
    assert known.any(axis=1).all()
    paths = survivals[:, None] * above.probs[:, 0]
    found: Floats = paths[level.parents, known.argmax(axis=1)].reshape(rows, -1)
    best = np.sort(paths.reshape(rows, -1))[:, ::-1][:, : found.shape[1]]
    assert np.allclose(np.sort(found)[:, ::-1], best, rtol=1e-2)
    return found.ravel()


@pytest.mark.parametrize("window", [0, 1, 3])
def test_windows_of_any_length(window: int, base: ModelInfo, tmp_path: Path) -> None:
    tensors = conditioned_tensors(window)
    heads = load(write_heads(tmp_path / "h", base, tensors, token_ids=TOKEN_MAP), base)
    table, start = embeddings_of(base), states(2, window)
    assert heads.window == window
    s, b = window_reference(tensors, start.hidden, table[start.tokens])
    s, expected = block_reference(tensors, s, table[start.tokens[:, 0]], b)
    guesses = heads.propose(start)
    check_guesses(guesses, 0, expected, 1e-5)
    assert guesses.states is not None
    assert guesses.states.shape[1] == EMBD + (HIDDEN if window else 0)
    _, expected = block_reference(tensors, s, table[guesses.tokens[:, 0, 0]], b)
    deeper = heads.deepen(guesses.states, guesses.tokens[:, 0, 0], 2)
    check_guesses(deeper, 0, expected, 1e-5)
    heads.close()


@pytest.mark.parametrize("kind", TOLERANCE)
def test_medusa_heads_compute_their_formula(kind: str, base: ModelInfo, tmp_path: Path) -> None:
    tensors = medusa_tensors(4)
    heads = load(write_heads(tmp_path / "h", base, tensors, kind, token_ids=TOKEN_MAP), base)
    start = states(3, 0)
    guesses = heads.propose(start)
    assert guesses.tokens.shape == (3, 4, 10)
    assert guesses.states is None
    for head in range(4):
        expected = medusa_reference(tensors, head, start.hidden[:, 0], tensors["output.weight"])
        check_guesses(guesses, head, expected, TOLERANCE[kind])
    heads.close()


@pytest.mark.parametrize("num_blocks", [1, 3])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("output", ["each", "one", "shared"])
def test_medusa_heads_of_every_build(
    num_blocks: int,
    bias: bool,
    output: Literal["each", "one", "shared"],
    base: ModelInfo,
    tmp_path: Path,
) -> None:
    tensors = medusa_tensors(3, num_blocks, output=output, bias=bias)
    path = write_heads(
        tmp_path / "h",
        base,
        tensors,
        token_ids=TOKEN_MAP,
        output="shared" if output == "shared" else "own",
    )
    heads, start = load(path, base), states(5, 0)
    guesses = heads.propose(start)
    for head in range(3):
        last = tensors.get(f"head.{head}.output.weight", tensors.get("output.weight"))
        last = embeddings_of(base)[TOKEN_MAP] if last is None else last
        expected = medusa_reference(tensors, head, start.hidden[:, 0], last)
        check_guesses(guesses, head, expected, 1e-5)
    heads.close()


def test_types_that_do_not_fit_a_row_give_way(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base.gguf", num_embd=96)
    tensors = conditioned_tensors(num_embd=96, hidden=48, length=64)
    path = write_heads(tmp_path / "h", base, tensors, "Q4_K", token_ids=TOKEN_MAP)
    with GgufFile(path) as file:
        assert file.tensors["block.up.weight"].type_name == "q5_0"  # rows of 192
        assert file.tensors["block.down.weight"].type_name == "f16"  # rows of 48
    heads = load(path, base)
    start = states(2, 2, num_embd=96)
    table = embeddings_of(base)
    s, b = window_reference(tensors, start.hidden, table[start.tokens])
    _, expected = block_reference(tensors, s, table[start.tokens[:, 0]], b)
    check_guesses(heads.propose(start), 0, expected, TOLERANCE["Q4_K"])
    heads.close()


def test_types_may_differ_within_a_stack(base: ModelInfo, tmp_path: Path) -> None:
    tensors = conditioned_tensors()
    numbers = {"hidden_length": HIDDEN, "window": 2, "window_length": LENGTH}
    sidecar = Sidecar("conditioned", 3, "own", tensors, TOKEN_MAP, numbers=numbers)
    write(tmp_path / "h", sidecar, base, {"block.gate.weight": TYPES["F16"]})
    heads, start, table = load(tmp_path / "h", base), states(2, 2), embeddings_of(base)
    s, b = window_reference(tensors, start.hidden, table[start.tokens])
    _, expected = block_reference(tensors, s, table[start.tokens[:, 0]], b)
    check_guesses(heads.propose(start), 0, expected, TOLERANCE["Q8_0"])
    heads.close()


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "F16"])
def test_embeddings_are_read_in_the_types_of_models(kind: str, tmp_path: Path) -> None:
    base = write_base(tmp_path / "base.gguf", kind=kind)
    tensors = conditioned_tensors()
    heads = load(write_heads(tmp_path / "h", base, tensors, token_ids=TOKEN_MAP), base)
    table, start = embeddings_of(base), states(2, 2)
    s, b = window_reference(tensors, start.hidden, table[start.tokens])
    _, expected = block_reference(tensors, s, table[start.tokens[:, 0]], b)
    check_guesses(heads.propose(start), 0, expected, 1e-5)
    heads.close()


@pytest.mark.parametrize("rows", [1, 2, 5, 8, 70])
def test_rows_do_not_depend_on_their_company(rows: int, base: ModelInfo, tmp_path: Path) -> None:
    tensors = conditioned_tensors()
    heads = load(write_heads(tmp_path / "h", base, tensors, "Q8_0", token_ids=TOKEN_MAP), base)
    start = states(rows, 2)
    together = heads.propose(start)
    assert together.states is not None
    below = heads.deepen(together.states, together.tokens[:, 0, 0], 2)
    for i in {0, rows // 2, rows - 1}:
        alone = heads.propose(DraftState(start.hidden[i : i + 1], start.tokens[i : i + 1]))
        assert alone.tokens[0].tolist() == together.tokens[i].tolist()
        assert alone.states is not None
        deeper = heads.deepen(alone.states, alone.tokens[:, 0, 0], 2)
        assert distance(deeper.probs[0], below.probs[i]) < 1e-2
    heads.close()


@pytest.mark.parametrize("rows", [1, 3, 70])
def test_rows_of_medusa_heads_keep_their_order(rows: int, base: ModelInfo, tmp_path: Path) -> None:
    tensors = medusa_tensors(4, output="each")
    heads = load(write_heads(tmp_path / "h", base, tensors, token_ids=TOKEN_MAP), base)
    start = states(rows, 0)
    together = heads.propose(start)
    for i in {0, rows // 2, rows - 1}:
        alone = heads.propose(DraftState(start.hidden[i : i + 1], start.tokens[i : i + 1]))
        assert alone.tokens[0].tolist() == together.tokens[i].tolist()
    heads.close()


def test_survival_is_the_calibrated_probability(base: ModelInfo, tmp_path: Path) -> None:
    x = np.array([0.0, 0.5, 1.0], np.float32)
    maps = tuple(Knots(x, x * np.float32(factor)) for factor in (0.5, 0.25, 0.125))
    tensors = conditioned_tensors()
    plain = load(write_heads(tmp_path / "p", base, tensors, token_ids=TOKEN_MAP), base)
    path = write_heads(tmp_path / "c", base, tensors, token_ids=TOKEN_MAP, calibration=maps)
    calibrated, start = load(path, base), states(2, 2)
    raw, mapped = plain.propose(start), calibrated.propose(start)
    np.testing.assert_allclose(mapped.probs, raw.probs * 0.5, rtol=1e-5)
    assert raw.states is not None
    tokens = raw.tokens[:, 0, 0]
    for depth, factor in ((2, 0.25), (3, 0.125)):
        deeper = calibrated.deepen(raw.states, tokens, depth).probs
        np.testing.assert_allclose(
            deeper, plain.deepen(raw.states, tokens, depth).probs * factor, rtol=1e-5
        )
    for heads in (plain, calibrated):
        heads.close()


def test_medusa_heads_are_calibrated_one_by_one(base: ModelInfo, tmp_path: Path) -> None:
    x = np.array([0.0, 1.0], np.float32)
    maps = tuple(Knots(x, x / np.float32(1 + i)) for i in range(3))
    tensors, start = medusa_tensors(3), states(2, 0)
    plain = load(write_heads(tmp_path / "p", base, tensors, token_ids=TOKEN_MAP), base)
    path = write_heads(tmp_path / "c", base, tensors, token_ids=TOKEN_MAP, calibration=maps)
    calibrated = load(path, base)
    expected = plain.propose(start).probs / np.array([1, 2, 3], np.float32)[:, None]
    np.testing.assert_allclose(calibrated.propose(start).probs, expected, rtol=1e-5)
    for heads in (plain, calibrated):
        heads.close()


def test_heads_without_a_map_guess_any_token(base: ModelInfo, tmp_path: Path) -> None:
    tensors = medusa_tensors(2, num_outputs=VOCAB)
    heads, start = load(write_heads(tmp_path / "h", base, tensors), base), states(4, 0)
    expected = medusa_reference(tensors, 0, start.hidden[:, 0], tensors["output.weight"])
    assert (heads.propose(start).tokens[:, 0, 0] == expected.argmax(-1)).all()
    heads.close()


def test_fewer_outputs_than_guesses(base: ModelInfo, tmp_path: Path) -> None:
    tensors = medusa_tensors(2, num_outputs=3)
    path = write_heads(tmp_path / "h", base, tensors, token_ids=TOKEN_MAP[:3])
    heads = load(path, base)
    assert heads.top_k == 3
    assert sorted(heads.propose(states(1, 0)).tokens[0, 1].tolist()) == sorted(TOKEN_MAP[:3])
    heads.close()
