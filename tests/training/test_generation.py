"""The PyTorch model against itself: token by token over a cache, and whole texts at once."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch: scripts/setup --train")

from gorgon.errors import ModelError  # noqa: E402
from gorgon.training.generation import Generator, states_of  # noqa: E402
from gorgon.training.prompts import Job  # noqa: E402
from gorgon.training.transformer import Transformer  # noqa: E402

EMBD, LAYERS, HEADS, KV_HEADS, FEED, VOCAB = 32, 2, 4, 2, 48, 96
EOG = {0, 2, 5}


def _write_model(path: Path, **more: str) -> Path:
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    sizes = {"embedding_length": EMBD, "block_count": LAYERS, "context_length": 64}
    for name, value in sizes.items():
        writer.add_uint32(f"llama.{name}", value)
    writer.add_uint32("llama.attention.head_count", HEADS)
    writer.add_uint32("llama.attention.head_count_kv", KV_HEADS)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    for key, text in more.items():
        writer.add_string(key.replace("__", "."), text)
    kv_width = EMBD // HEADS * KV_HEADS
    shapes = {"attn_q": (EMBD, EMBD), "attn_k": (kv_width, EMBD), "attn_v": (kv_width, EMBD)}
    shapes |= {"attn_output": (EMBD, EMBD), "ffn_gate": (FEED, EMBD), "ffn_up": (FEED, EMBD)}
    shapes |= {"ffn_down": (EMBD, FEED)}
    tensors = {"token_embd": (VOCAB, EMBD)}
    tensors |= {f"blk.{i}.{name}": shape for i in range(LAYERS) for name, shape in shapes.items()}
    for name, shape in tensors.items():
        values = rng.standard_normal(shape).astype(np.float32) * 0.25
        writer.add_tensor(f"{name}.weight", values)
    norms = [f"blk.{i}.{name}" for i in range(LAYERS) for name in ("attn_norm", "ffn_norm")]
    for name in ["output_norm", *norms]:
        writer.add_tensor(f"{name}.weight", np.ones(EMBD, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_greedy_texts_follow_what_a_whole_pass_finds_likeliest(tmp_path: Path) -> None:
    model = Transformer(_write_model(tmp_path / "m.gguf"), torch.device("cpu"), torch.float32)
    rng = np.random.default_rng(0)
    jobs = [Job(i, rng.integers(6, VOCAB, 2 + i).tolist(), float(i % 2), 10 + i) for i in range(12)]
    texts = list(Generator(model, EOG, 4, 40, seed=1).run(jobs))
    assert sorted(text.job.index for text in texts) == list(range(12))
    for text in texts:
        drawn = len(text.tokens) - len(text.job.tokens)
        assert text.tokens[: len(text.job.tokens)] == text.job.tokens
        assert text.ended or drawn == text.job.max_tokens
    for batch, _, best in states_of(model, [text.tokens for text in texts], 100):
        lengths = [len(texts[i].tokens) for i in batch]
        for i, chosen in zip(batch, best.split(lengths), strict=True):
            given = len(texts[i].job.tokens)
            if texts[i].job.temperature == 0.0:
                assert chosen[given - 1 : -1].tolist() == texts[i].tokens[given:]
                assert (int(chosen[-1]) in EOG) or not texts[i].ended


def test_other_computations_are_refused(tmp_path: Path) -> None:
    path = _write_model(tmp_path / "m.gguf", llama__rope__scaling__type="yarn")
    with pytest.raises(ModelError, match="yarn"):
        Transformer(path, torch.device("cpu"), torch.float32)
