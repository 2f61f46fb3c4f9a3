"""Released heads of every naming become heads that compute the published formula."""

from __future__ import annotations

import io
import os
import pickle
import random
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from gorgon.backend import DraftState
from gorgon.compile.frequency import most_frequent
from gorgon.compile.heads import compile_heads
from gorgon.compile.released import check_fit, find_heads
from gorgon.compile.tensor_files import read_tensors
from gorgon.config import EngineSettings
from gorgon.errors import HeadsError
from gorgon.llama.gguf import GgufFile
from gorgon.llama.heads import load_heads
from gorgon.llama.model import ModelInfo
from tests.compile.checkpoints import (
    Floats,
    as_bf16,
    plain,
    torch_pickle,
    write_safetensors,
    write_torch,
)
from tests.llama.files import EMBD, VOCAB, embeddings_of, matrix, silu, softmax, write_base

NUM_HEADS = 5  # the released config of these heads says 2
Arrays = dict[str, npt.NDArray[np.generic]]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> ModelInfo:
    return write_base(tmp_path_factory.mktemp("base") / "base.gguf")


def released(num_blocks: int = 1, *, output: bool = True, prefix: str = "") -> dict[str, Floats]:
    """As FasterDecoding released them; without output matrix it is version 2."""
    rng = np.random.default_rng(4)
    tensors = {}
    for head in range(NUM_HEADS):
        for block in range(num_blocks):
            name = f"{prefix}{head}.{block}.linear"
            tensors[f"{name}.weight"] = matrix(rng, EMBD, EMBD)
            tensors[f"{name}.bias"] = rng.normal(size=EMBD).astype(np.float32)
        if output:
            tensors[f"{prefix}{head}.{num_blocks}.weight"] = matrix(rng, VOCAB, EMBD, 3.0)
    return tensors


def merged() -> dict[str, Floats]:
    """A Medusa-2 model: the base's tensors stand beside the heads."""
    rng = np.random.default_rng(6)
    others = {
        "model.embed_tokens.weight": matrix(rng, VOCAB, EMBD),
        "model.layers.0.mlp.up_proj.weight": matrix(rng, 8, EMBD),
        "lm_head.weight": matrix(rng, VOCAB, EMBD),
    }
    return others | released(prefix="medusa_head.")


def expected_of(tensors: dict[str, Floats], h: Floats, head: int, base: ModelInfo) -> Floats:
    """The formula of the Medusa paper in the names of the release."""
    tensors = {name.removeprefix("medusa_head."): as_bf16(t) for name, t in tensors.items()}
    z, block = h, 0
    while f"{head}.{block}.linear.weight" in tensors:
        name = f"{head}.{block}.linear"
        z, block = z + silu(z @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]), block + 1
    output = tensors.get(f"{head}.{block}.weight")
    return softmax(z @ (embeddings_of(base) if output is None else output).T)


def check(path: Path, base: ModelInfo, expected: Callable[[Floats, int], Floats]) -> None:
    heads = load_heads(path, base, EngineSettings(threads=1, gpu_layers=0))
    assert heads.num_heads == NUM_HEADS
    h = np.random.default_rng(8).normal(size=(3, 1, EMBD)).astype(np.float32)
    guesses = heads.propose(DraftState(h, np.zeros((3, 1), np.int32)))
    for head in range(NUM_HEADS):
        probs = expected(h[:, 0], head)
        said = np.take_along_axis(probs, guesses.tokens[:, head], -1)
        assert np.linalg.norm(guesses.probs[:, head] - said) < 0.08 * np.linalg.norm(said)
        assert guesses.probs[:, head, 0].min() > 0.8 * probs.max(-1).min()
    heads.close()


BUILDS = {
    "released": released(),
    "three blocks": released(3),
    "version 2": released(output=False),
    "merged": merged(),
}


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("write", [write_torch, write_safetensors], ids=["torch", "safetensors"])
def test_every_build_computes_the_formula(
    build: str, write: Callable[..., Path], base: ModelInfo, tmp_path: Path
) -> None:
    tensors = BUILDS[build]
    suffix = ".pt" if write is write_torch else ".safetensors"
    source = write(tmp_path / f"medusa_lm_head{suffix}", tensors)
    target = tmp_path / "heads.medusa.gguf"
    compile_heads(source, base.path, target)
    check(target, base, lambda h, head: expected_of(tensors, h, head, base))
    with GgufFile(target) as file:
        assert file.uint("medusa.head_count") == NUM_HEADS
        assert file.string("medusa.output") == ("shared" if build == "version 2" else "own")
        assert file.string("medusa.training.source") == source.name


@pytest.mark.parametrize("shared", [False, True])
def test_vllm_names_and_token_map(shared: bool, base: ModelInfo, tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    ids = rng.permutation(VOCAB)[:200]
    tensors: Arrays = {"token_map": ids.astype(np.int64)}
    for head in range(NUM_HEADS):
        tensors[f"blocks.{head}.layers.0.weight"] = matrix(rng, EMBD, EMBD)
        if not shared:
            tensors[f"lm_heads.{head}.weight"] = matrix(rng, 200, EMBD, 3.0)
    if shared:
        tensors["lm_head.weight"] = matrix(rng, 200, EMBD, 3.0)
    source = write_safetensors(tmp_path / "model.safetensors", tensors, "F32")
    target = tmp_path / "heads.medusa.gguf"
    compile_heads(source, base.path, target)

    def expected(h: Floats, head: int) -> Floats:
        z = h + silu(h @ np.asarray(tensors[f"blocks.{head}.layers.0.weight"], np.float32).T)
        name = "lm_head.weight" if shared else f"lm_heads.{head}.weight"
        output = np.asarray(tensors[name], np.float32)
        probs = np.zeros((len(h), VOCAB), np.float32)
        probs[:, ids] = softmax(np.asarray(z @ output.T, np.float32))
        return probs

    check(target, base, expected)


@pytest.mark.parametrize("build", ["released", "version 2"])
def test_only_the_tokens_asked_for_are_guessed(build: str, base: ModelInfo, tmp_path: Path) -> None:
    tensors, ids = BUILDS[build], np.array([7, 3, 600, 21, 5, 9, 1, 33, 90, 100], np.int32)
    source = write_torch(tmp_path / "heads.pt", tensors)
    compile_heads(source, base.path, tmp_path / "h", token_ids=ids)

    def expected(h: Floats, head: int) -> Floats:
        probs = expected_of(tensors, h, head, base)
        cut = np.zeros_like(probs)
        cut[:, ids] = probs[:, ids] / probs[:, ids].sum(-1, keepdims=True)
        return cut

    check(tmp_path / "h", base, expected)


def test_frequent_tokens_come_first_and_ends_always() -> None:
    counts = np.array([0, 5, 9, 0, 5, 0])
    assert most_frequent(counts, frozenset([3]), 4).tolist() == [3, 2, 1, 4]
    assert most_frequent(counts, frozenset([3]), 6).tolist() == [3, 2, 1, 4, 0, 5]


def test_shards_of_a_folder_are_put_together(base: ModelInfo, tmp_path: Path) -> None:
    tensors, folder = released(), tmp_path / "folder"
    folder.mkdir()
    (folder / "config.json").write_text('{"medusa_num_heads": 2}')
    names = list(tensors)
    for i in range(2):
        write_safetensors(
            folder / f"model-0000{i + 1}-of-00002.safetensors", {n: tensors[n] for n in names[i::2]}
        )
    compile_heads(folder, base.path, tmp_path / "h")
    check(tmp_path / "h", base, lambda h, head: expected_of(tensors, h, head, base))


# -- what is refused ------------------------------------------------------------------------------


def refusal(source: Path, base: ModelInfo, tmp_path: Path) -> str:
    """The message, naming the source; nothing is left behind."""
    target = tmp_path / "out.medusa.gguf"
    with pytest.raises(HeadsError, match=re.escape(str(source))) as caught:
        compile_heads(source, base.path, target)
    assert not list(tmp_path.glob("out.medusa.gguf*"))
    return str(caught.value)


class Hostile:
    """Runs a command when it is unpickled by Python's own pickle."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.system, (f"touch {self._path}",)


def test_a_hostile_pickle_runs_nothing(base: ModelInfo, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    source = write_torch(tmp_path / "h.pt", {}, data=pickle.dumps({"a": Hostile(mark)}, 2))
    assert f"{os.system.__module__}.system" in refusal(source, base, tmp_path)
    assert not mark.exists()


@pytest.mark.parametrize("name", ["builtins.eval", "torch.load", "torch._utils.__import__"])
def test_names_that_weights_do_not_need_are_refused(
    name: str, base: ModelInfo, tmp_path: Path
) -> None:
    module, _, attribute = name.rpartition(".")
    data = f"\x80\x02c{module}\n{attribute}\n)R.".encode("latin-1")
    assert name in refusal(write_torch(tmp_path / "h.pt", {}, data=data), base, tmp_path)


LIES = {
    "negative size": ((-1, EMBD), EMBD * EMBD),
    "larger than its storage": ((EMBD, EMBD + 1), EMBD * EMBD),
    "storage longer than the file": ((EMBD, EMBD), 2**40),
}


@pytest.mark.parametrize("name", LIES)
def test_pickles_that_lie_about_sizes_are_refused(
    name: str, base: ModelInfo, tmp_path: Path
) -> None:
    from tests.compile.checkpoints import tensor_opcodes

    shape, count = LIES[name]
    tensor = tensor_opcodes("0", shape, "BFloat16Storage", count)
    data = b"\x80\x02}" + plain("0.0.linear.weight") + tensor + b"s."
    weights = {"0.0.linear.weight": np.zeros((EMBD, EMBD), np.float32)}
    refusal(write_torch(tmp_path / "h.pt", weights, data=data), base, tmp_path)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_truncated_files_are_refused(
    suffix: str, share: float, base: ModelInfo, tmp_path: Path
) -> None:
    write = write_torch if suffix == ".pt" else write_safetensors
    source = write(tmp_path / f"h{suffix}", released(output=False))
    whole = source.read_bytes()
    source.write_bytes(whole[: int(len(whole) * share)])
    refusal(source, base, tmp_path)


def test_wherever_a_file_is_damaged_it_is_refused_or_read(tmp_path: Path) -> None:
    """One to eight bytes changed, most of them where the zip file says what is where."""
    good = write_torch(tmp_path / "good.pt", released(output=False)).read_bytes()
    source, drawn, refused = tmp_path / "h.pt", random.Random(5), 0
    for _ in range(1500):
        damaged = bytearray(good)
        for _ in range(drawn.choice((1, 1, 2, 8))):
            from_end = drawn.randrange(drawn.choice((3000, len(good))))
            damaged[len(good) - 1 - from_end] = drawn.choice((0, 1, 0x80, 0xFF))
        source.write_bytes(damaged)
        try:
            heads = find_heads(source, read_tensors(source))
            check_fit(source, heads, EMBD, VOCAB)
        except HeadsError:
            refused += 1
    assert refused > 100


def test_a_damaged_pickle_is_refused(base: ModelInfo, tmp_path: Path) -> None:
    data = torch_pickle(released(), "BF16")
    for cut in (1, 40, len(data) // 2):
        source = write_torch(tmp_path / "h.pt", released(), data=data[:cut])
        assert "damaged pickle" in refusal(source, base, tmp_path)


def without(name: str) -> dict[str, Floats]:
    return {n: t for n, t in released().items() if n != name}


def resized(name: str, shape: tuple[int, ...]) -> dict[str, Floats]:
    return released() | {name: np.zeros(shape, np.float32)}


WRONG = {
    "no Medusa heads": {"model.norm.weight": np.zeros(EMBD, np.float32)},
    "head 2 has no block.0.bias": without("2.0.linear.bias"),
    "head 4 has no output.weight": without("4.1.weight"),
    "another model": resized("1.0.linear.weight", (EMBD + 32, EMBD + 32)),
    f"expected|have .{VOCAB}, {EMBD}": resized("3.1.weight", (VOCAB + 1, EMBD)),
    "head 1 is missing": {n: t for n, t in released().items() if not n.startswith("1.")},
}


@pytest.mark.parametrize("why", WRONG)
def test_heads_that_do_not_fit_are_refused(why: str, base: ModelInfo, tmp_path: Path) -> None:
    source = write_safetensors(tmp_path / "h.safetensors", WRONG[why])
    assert re.search(why, refusal(source, base, tmp_path))


def test_other_files_are_refused(base: ModelInfo, tmp_path: Path) -> None:
    empty, text = tmp_path / "empty", tmp_path / "notes.txt"
    empty.mkdir()
    text.write_text("hello")
    for source in (empty, text, tmp_path / "missing"):
        refusal(source, base, tmp_path)
    with pytest.raises(HeadsError, match="Q9_0"):
        compile_heads(text, base.path, tmp_path / "h", "Q9_0")


def test_a_full_disk_leaves_nothing(
    base: ModelInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gguf

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    source = write_torch(tmp_path / "h.pt", released())
    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", full)
    with pytest.raises(HeadsError, match="No space left"):
        compile_heads(source, base.path, tmp_path / "out.gguf")
    assert not list(tmp_path.glob("out.gguf*"))


def test_the_command_line(
    base: ModelInfo,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from gorgon.cli.app import run

    source, out = write_torch(tmp_path / "h.pt", released()), tmp_path / "h.medusa.gguf"
    command = ["gorgon", "compile", "heads", str(source), "--base", str(base.path)]
    monkeypatch.setattr(sys, "argv", [*command, "--type", "q4_k", "--out", str(out)])
    with pytest.raises(SystemExit) as done:
        run()
    assert not done.value.code
    assert str(out) in capsys.readouterr().out
    with GgufFile(out) as file:
        assert file.tensors["head.0.block.0.weight"].type_name == "q4_K"


def test_pickles_are_those_of_python() -> None:
    assert pickle.load(io.BytesIO(b"\x80\x02" + plain((1, "a")) + b".")) == (1, "a")
