"""A model with Vicuna's config, scaled down, from transformers to our engine and back.

Needs the converter's environment, where torch and transformers are.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest
from fastapi.testclient import TestClient
from rich.console import Console

from gorgon.backend import BatchRow
from gorgon.compile import manifest
from gorgon.compile.model import compile_model
from gorgon.compile.order import Order
from gorgon.config import EngineSettings, ServerSettings
from gorgon.llama.backend import default_model
from gorgon.llama.context import Context
from gorgon.llama.gguf import GgufFile
from gorgon.llama.model import Model
from gorgon.llama.quantize import Quantization
from gorgon.server.app import Service, create_app
from tests.compile.conftest import encode_with_sentencepiece, run_vicuna

pytestmark = pytest.mark.usefixtures("in_process")

TEXTS = [
    "Hello, world!",
    "  leading and   inner  spaces\tand a tab\n\n\ttwo lines  ",
    "def f(x):\n    return {'a': x ** 2, \"b\": [1, 22, 333]}  # 4,444.5\n",
    "naïve café — “quotes” … ñandú, Привет, 中文字符, 日本語, עברית, हिन्दी",
    "🙂🏽‍🚀 e\u0301 \u00a0 \u200b ﬁ ½ \x07",
    "USER: 12345 </s> <s> <0x0A> ▁",
    "\n",
    " ",
]


@pytest.fixture(scope="module")
def model(f16: Path) -> Iterator[Model]:
    loaded = Model(EngineSettings(model=f16, threads=1), f16)
    yield loaded
    loaded.close()


def test_tokens_are_sentencepieces(vicuna: Path, model: Model, converter_python: Path) -> None:
    expected = encode_with_sentencepiece(converter_python, vicuna, TEXTS)
    for text, ids in zip(TEXTS, expected, strict=True):
        assert model.tokenize(text, add_special=True, parse_special=False) == [1, *ids], text


def test_logits_are_those_of_transformers(
    vicuna: Path, model: Model, converter_python: Path, tmp_path: Path
) -> None:
    ids = model.tokenize(TEXTS[2] + TEXTS[3], add_special=True, parse_special=False)
    run_vicuna(converter_python, "logits", str(vicuna), json.dumps(ids), str(tmp_path / "l.npy"))
    expected = np.load(tmp_path / "l.npy")
    settings = EngineSettings(threads=1, num_cells=512)
    context = Context(model, settings)
    rows = [BatchRow(token, i, (0,)) for i, token in enumerate(ids)]
    found = context.decode(rows).logits.copy()
    context.close()
    error = np.abs(found - expected).max() / np.abs(expected).max()
    # Weights rounded alike, products in F16 against F32 (docs/compile.md).
    print(f"largest difference {error:.2e} of the largest logit")
    assert error < 2e-3
    assert (found.argmax(-1) == expected.argmax(-1)).mean() > 0.97


@pytest.mark.parametrize("kind", ["bin", "sharded-bin"])
def test_pytorch_files_give_the_same_model(
    kind: str, vicuna: Path, f16: Path, converter_python: Path, tmp_path: Path, console: Console
) -> None:
    source = tmp_path / "source"
    run_vicuna(converter_python, "repack", str(vicuna), str(source), kind)
    assert len(list(source.glob("*.bin"))) == {"bin": 1, "sharded-bin": 2}[kind]
    order = Order(str(source), tmp_path / "out", Quantization("F16"), num_tokens=0)
    found = compile_model(order, console) / "model-F16.gguf"
    with GgufFile(found) as file, GgufFile(f16) as expected:
        assert file.tensors.keys() == expected.tensors.keys()
        for name in file.tensors:
            assert np.array_equal(file.read(name), expected.read(name)), name


def test_a_bpe_tokenizer_and_its_chat_template_come_along(
    converter_python: Path, tmp_path: Path, console: Console
) -> None:
    """Byte-level BPE as in Llama 3 and SmolLM, in tokenizer.json alone; weights in one file."""
    source, tokens = tmp_path / "source", tmp_path / "tokens.json"
    tokens.write_text(json.dumps(read_bpe(default_model())))
    # " ½" is left out: llama.cpp and transformers cut a space before a fraction differently.
    texts = [text.replace(" ½", "½") for text in TEXTS]
    run_vicuna(converter_python, "bpe", str(source), str(tokens))
    run_vicuna(converter_python, "tokens", str(source), json.dumps(texts), str(tmp_path / "ids"))
    order = Order(str(source), tmp_path / "out", Quantization("F16"), num_tokens=0)
    path = compile_model(order, console) / "model-F16.gguf"
    model = Model(EngineSettings(model=path, threads=1), path)
    expected = json.loads((tmp_path / "ids").read_text())
    for text, ids in zip(texts, expected, strict=True):
        assert model.tokenize(text, add_special=False, parse_special=True) == ids, text
    assert model.info.chat_template == "{{ messages[0].content }}"
    model.close()


def read_bpe(path: Path) -> dict[str, object]:
    """Tokens and merges of a GGUF."""
    fields = gguf.GGUFReader(path).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    return {
        "tokens": tokens,
        "merges": fields["tokenizer.ggml.merges"].contents(),
        "special": [kind == 3 for kind in fields["tokenizer.ggml.token_type"].contents()],
        "bos": tokens[1],
        "eos": tokens[2],
    }


def test_heads_go_through_compile_serve_and_compare(
    vicuna: Path, model: Model, converter_python: Path, tmp_path: Path, console: Console
) -> None:
    prompt = json.dumps(model.tokenize("Why?", add_special=True, parse_special=False))
    heads = tmp_path / "medusa_lm_head.safetensors"
    run_vicuna(converter_python, "heads", str(vicuna), prompt, str(heads))
    # A quantised model: products of F16 weights depend on how many rows there are.
    order = Order(str(vicuna), tmp_path / "out", Quantization("Q8_0"), heads=heads, num_tokens=0)
    found = manifest.read(compile_model(order, console))
    assert found.heads is not None
    settings = EngineSettings(model=found.model, heads=found.heads, threads=1, num_cells=1024)
    app = create_app(settings, ServerSettings())
    with TestClient(app) as client:
        service: Service = app.state.service
        service.worker.wait_loaded(120)
        body = {"prompt": "Why?", "max_length": 40, "chat": False, "tree": [[0], [0, 0]]}
        answer = client.post("/compare", json=body).json()
    assert answer["medusa"]["acceptance_rate"] > 0
    assert answer["same_text"]
