from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from gorgon.compile.sidecar import Sidecar, write, write_calibrated
from gorgon.errors import HeadsError
from gorgon.llama.gguf import GgufFile
from gorgon.llama.model import ModelInfo, inspect
from gorgon.training.calibration import Calibration

MAP = Calibration(np.array([0.0, 1.0]), np.array([0.0, 0.8]))


def _base(path: Path) -> ModelInfo:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    for name, value in (("embedding_length", 32), ("block_count", 1), ("context_length", 64)):
        writer.add_uint32(f"llama.{name}", value)
    for name in ("head_count", "head_count_kv"):
        writer.add_uint32(f"llama.attention.{name}", 1)
    writer.add_array("tokenizer.ggml.tokens", [str(i) for i in range(64)])
    writer.add_tensor("token_embd.weight", np.zeros((64, 32), np.float32))
    writer.add_tensor("output_norm.weight", np.ones(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return inspect(path)


def _sidecar() -> Sidecar:
    return Sidecar(
        variant="conditioned",
        num_heads=2,
        output="own",
        tensors={"output.weight": np.ones((16, 32), np.float32)},
        token_ids=np.arange(16, dtype=np.int32),
        calibration=(MAP, MAP),
        numbers={"window": 2},
        provenance={"tokens": 20_000_000, "data": "own answers", "loss": 1.5},
    )


def test_keys_and_tensors_read_back(tmp_path: Path) -> None:
    base = _base(tmp_path / "base.gguf")
    write(tmp_path / "heads.gguf", _sidecar(), base, {})
    with GgufFile(tmp_path / "heads.gguf") as file:
        assert file.string("medusa.variant") == "conditioned"
        assert file.string("medusa.base.fingerprint") == base.fingerprint
        assert file.uint("medusa.window") == 2
        calibration = file.floats("medusa.calibration.1.y")
        assert calibration is not None
        assert calibration.tolist() == pytest.approx([0.0, 0.8])
        assert file.tensors["output.weight"].shape == (32, 16)
        assert file.read("token_map").view(np.int32).tolist() == list(range(16))


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    base = _base(tmp_path / "base.gguf")
    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", full)
    with pytest.raises(HeadsError, match="No space left"):
        write(tmp_path / "heads.gguf", _sidecar(), base, {})
    assert [path.name for path in tmp_path.iterdir()] == ["base.gguf"]


def test_another_calibration_leaves_all_else_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "heads.gguf"
    write(path, _sidecar(), _base(tmp_path / "base.gguf"), {})
    before = gguf.GGUFReader(path)
    kept = {
        name: field.contents()
        for name, field in before.fields.items()
        if not name.startswith(("GGUF.", "medusa.calibration.", "medusa.training.tokens"))
    }
    weights = [(t.name, t.tensor_type, t.data.tobytes()) for t in before.tensors]
    other = Calibration(np.array([0.0, 0.5, 1.0]), np.array([0.0, 0.25, 1.0]))
    write_calibrated(path, path, [other, MAP], {"tokens": 3})
    after = gguf.GGUFReader(path)
    found = {name: field.contents() for name, field in after.fields.items()}
    assert {name: found[name] for name in kept} == kept
    assert [(t.name, t.tensor_type, t.data.tobytes()) for t in after.tensors] == weights
    assert found["medusa.calibration.0.y"] == [0.0, 0.25, 1.0]
    assert found["medusa.training.tokens"] == 3
    write_calibrated(path, path, [], {})
    assert not [name for name in gguf.GGUFReader(path).fields if "calibration" in name]
