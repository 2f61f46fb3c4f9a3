"""From a GGUF to a folder that serves: types, report, resumption, comparison."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from gorgon.compile import child, manifest, memory, model
from gorgon.compile.memory import cache_bytes
from gorgon.compile.model import compile_model
from gorgon.compile.order import NAMED_TEMPLATES, Order
from gorgon.errors import CompileError, ModelError
from gorgon.llama.gguf import GgufFile
from gorgon.llama.quantize import Quantization
from gorgon.server.text import TEMPLATES, choose_template

pytestmark = pytest.mark.usefixtures("in_process")
TEXT = "The quick brown fox jumps over the lazy dog. " * 8


def order(source: Path, out: Path, file_type: str = "Q4_K_M", **given: Any) -> Order:
    options = Quantization(file_type, **given.pop("options", {}))
    return Order(str(source), out, options, **{"num_tokens": 64, **given})


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def types_of(path: Path) -> dict[str, str]:
    with GgufFile(path) as file:
        return {name: tensor.type_name for name, tensor in file.tensors.items()}


def test_a_folder_holds_model_and_manifest(tiny: Path, tmp_path: Path, console: Console) -> None:
    out = compile_model(order(tiny, tmp_path / "out"), console)
    assert {path.name for path in out.iterdir()} == {"model-Q4_K_M.gguf", "manifest.json"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    found = manifest.read(out)
    assert types_of(found.model)["blk.0.attn_q.weight"] == "q4_K"
    value = json.loads((out / "manifest.json").read_text())
    base, quantised = value["measurements"]
    assert quantised["size"] < 0.4 * base["size"]
    assert 4 < quantised["bits_per_weight"] < 6.6
    assert quantised["quality"]["num_tokens"] == 64
    assert 0 < quantised["quality"]["kl_divergence"] < 1
    assert quantised["resident"] > quantised["size"]
    assert value["source"]["files"][0]["sha256"]


def test_types_are_chosen_per_tensor(tiny: Path, tmp_path: Path, console: Console) -> None:
    options = {
        "output_type": "Q6_K",
        "embedding_type": "Q5_0",
        "tensor_types": (("attn_v", "F16"), (r"blk\.1\.ffn_up", "Q8_0")),
    }
    out = compile_model(
        order(tiny, tmp_path / "out", "Q4_0", options=options, num_tokens=0), console
    )
    types = types_of(out / "model-Q4_0.gguf")
    assert types["output.weight"] == "q6_K"
    assert types["token_embd.weight"] == "q5_0"
    assert types["blk.1.attn_v.weight"] == "f16"
    assert types["blk.0.ffn_up.weight"] == "q4_0"
    assert types["blk.1.ffn_up.weight"] == "q8_0"


def test_the_original_is_at_no_distance_from_itself(
    tiny: Path, tmp_path: Path, console: Console
) -> None:
    out = compile_model(order(tiny, tmp_path / "out", "F16"), console)
    value = json.loads((out / "manifest.json").read_text())
    assert value["measurements"][1]["quality"]["kl_divergence"] == 0.0
    assert value["measurements"][1]["quality"]["top1_agreement"] == 1.0
    assert (out / "model-F16.gguf").read_bytes() == tiny.read_bytes()


def test_an_importance_matrix_from_a_text_changes_the_weights(
    tiny: Path, tmp_path: Path, console: Console
) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    plain = order(tiny, tmp_path / "plain", "Q4_K_S", num_tokens=0)
    compile_model(plain, console)
    compile_model(replace(plain, out=tmp_path / "weighed", imatrix=text), console)
    files = [tmp_path / name / "model-Q4_K_S.gguf" for name in ("plain", "weighed")]
    assert types_of(files[0]).keys() == types_of(files[1]).keys()
    assert files[0].read_bytes() != files[1].read_bytes()
    low = compile_model(
        replace(plain, out=tmp_path / "low", imatrix=text, options=Quantization("Q2_K_S")), console
    )
    assert "q2_K" in types_of(low / "model-Q2_K_S.gguf").values()


def test_types_are_compared_in_a_table_and_a_picture(
    tiny: Path, tmp_path: Path, console: Console
) -> None:
    out = compile_model(order(tiny, tmp_path / "out", "Q8_0", compare=("Q4_0", "Q2_K")), console)
    assert {path.name for path in out.iterdir()} == {
        "model-Q8_0.gguf",
        "manifest.json",
        "comparison.json",
        "comparison.png",
    }
    rows = json.loads((out / "comparison.json").read_text())
    assert [row["type"] for row in rows] == ["F16", "Q8_0", "Q4_0", "Q2_K"]
    assert all(row["t4_over_t1"] > 0 and row["t8_over_t1"] > 0 for row in rows)
    losses = [row["quality"]["kl_divergence"] for row in rows[1:]]
    assert losses == sorted(losses)
    assert (out / "comparison.png").read_bytes().startswith(b"\x89PNG")


def test_what_does_not_fit_into_memory_is_made_but_not_measured(
    tiny: Path, tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available", lambda: tiny.stat().st_size - 1)
    out = compile_model(order(tiny, tmp_path / "out", "Q8_0", compare=("Q4_0",)), console)
    base, *others = json.loads((out / "comparison.json").read_text())
    assert base == {"type": "F16", "size": base["size"], "bits_per_weight": base["bits_per_weight"]}
    for row in others:
        assert row["tokens_per_second"] > 0
        assert row["quality"]["perplexity"] > 1
        assert row["quality"]["kl_divergence"] is None
    monkeypatch.setattr(memory, "available", lambda: 0)
    compile_model(order(tiny, tmp_path / "none", "Q8_0", compare=("Q4_0",)), console)
    assert not (tmp_path / "none" / "comparison.png").exists()


def test_an_interrupted_compilation_goes_on_where_it_stopped(
    tiny: Path, tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = order(tiny, tmp_path / "out", num_tokens=0)
    jobs: list[str] = []
    real = child.run_job

    def counted(name: str, *rest: Any) -> child.Done:
        jobs.append(name)
        if name == "measure" and jobs.count("measure") == 1:
            raise KeyboardInterrupt
        return real(name, *rest)

    monkeypatch.setattr(child, "run_job", counted)
    with pytest.raises(KeyboardInterrupt):
        compile_model(wanted, console)
    assert not wanted.out.exists()
    compile_model(wanted, console)
    assert jobs.count("quantize") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_other_options_begin_anew(
    tiny: Path, tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = order(tiny, tmp_path / "out", num_tokens=0)
    with monkeypatch.context() as patch:
        patch.setattr(model.Compilation, "_measure", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            compile_model(wanted, console)
    changed = replace(wanted, options=Quantization("Q4_K_M", output_type="Q8_0"))
    out = compile_model(changed, console)
    assert types_of(out / "model-Q4_K_M.gguf")["output.weight"] == "q8_0"


def test_a_chat_template_goes_along(tiny: Path, tmp_path: Path, console: Console) -> None:
    given = tmp_path / "mine.jinja"
    given.write_text("{{ messages[0].content }}")
    wanted = order(tiny, tmp_path / "out", num_tokens=0, chat_template=str(given))
    found = manifest.read(compile_model(wanted, console))
    assert found.chat_template is not None
    assert Path(found.chat_template).parent == wanted.out
    assert choose_template("own", found.chat_template) == given.read_text()
    Path(found.chat_template).unlink()
    with pytest.raises(ModelError, match=r"chat_template\.jinja: missing"):
        manifest.read(wanted.out)
    assert set(NAMED_TEMPLATES) == set(TEMPLATES)
    named = compile_model(replace(wanted, chat_template="vicuna", force=True), console)
    assert manifest.read(named).chat_template == "vicuna"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": "no/such/folder"}, "neither a folder nor a GGUF"),
        ({"imatrix": Path("nowhere.txt")}, "--imatrix"),
        ({"heads": Path("nowhere")}, "--heads"),
        ({"text": Path(__file__).parent}, "--text"),
        ({"chat_template": "llama9"}, "--chat-template: llama9"),
        ({"compare": ("Q4_9",)}, "Q4_9"),
        ({"options": Quantization("IQ1_S")}, "give a text with --imatrix"),
    ],
    ids=str,
)
def test_what_cannot_be_made_is_one_line_and_leaves_nothing(
    tiny: Path, tmp_path: Path, console: Console, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(CompileError, match=message) as caught:
        compile_model(replace(order(tiny, tmp_path / "out"), **change), console)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_disk_space_is_checked_before(
    tiny: Path, tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1 << 20))
    with pytest.raises(CompileError, match=r"needs 0\.\d\d GB of disk \(the Q4_K_M model .* free"):
        compile_model(order(tiny, tmp_path / "out"), console)
    assert list(tmp_path.iterdir()) == []


def test_a_quantised_source_needs_a_word(tiny: Path, tmp_path: Path, console: Console) -> None:
    first = compile_model(order(tiny, tmp_path / "one", "Q8_0", num_tokens=0), console)
    again = order(first / "model-Q8_0.gguf", tmp_path / "two", "Q4_0", num_tokens=0)
    with pytest.raises(CompileError, match="--requantize"):
        compile_model(again, console)
    same = replace(again, out=tmp_path / "same", options=Quantization("Q8_0"))
    packed = compile_model(same, console) / "model-Q8_0.gguf"
    assert packed.read_bytes() == (first / "model-Q8_0.gguf").read_bytes()
    allowed = replace(again, options=Quantization("Q4_0", requantize=True))
    assert "q4_0" in types_of(compile_model(allowed, console) / "model-Q4_0.gguf").values()


def test_what_is_there_stays_unless_forced(tiny: Path, tmp_path: Path, console: Console) -> None:
    wanted = order(tiny, tmp_path / "out", num_tokens=0)
    compile_model(wanted, console)
    with pytest.raises(CompileError, match="already there"):
        compile_model(wanted, console)
    compile_model(replace(wanted, force=True), console)
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("mine")
    with pytest.raises(CompileError, match="spares it"):
        compile_model(replace(wanted, out=other, force=True), console)
    assert (other / "thesis.tex").read_text() == "mine"


def test_damaged_folders_are_not_served(tiny: Path, tmp_path: Path, console: Console) -> None:
    with pytest.raises(ModelError, match=r"no manifest\.json"):
        manifest.read(tmp_path)
    out = compile_model(order(tiny, tmp_path / "out", num_tokens=0), console)
    file = out / "model-Q4_K_M.gguf"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelError, match="compile the folder again"):
        manifest.read(out)


def test_cache_memory_is_what_llama_cpp_allocates(tiny: Path) -> None:
    # 2 layers, 256 wide keys and values: 2 * 2 * 256 numbers a cell.
    assert cache_bytes(tiny, 100) == {"f16": 204_800, "q8_0": 108_800, "q4_0": 57_600}
