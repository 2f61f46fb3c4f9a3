"""How close quantised models stay to exact arithmetic with llama.cpp's CPU kernels and with ours.

    python -m benchmarks.accuracy MODEL.gguf ... [--text FILE ...] [--transformers PYTHON]

For each model the reference is the same file with its weights made F32, computed by llama.cpp in
F32 with an F32 cache. Every token of the texts but the first of each window is scored. Prints a row
a model: perplexity; what the kernels change of it, in percent with a 95 % interval over pairs of
tokens; and the logit error, the norm of the difference over the norm of the reference.

``--transformers`` names a Python with torch and transformers (``gorgon.compile.converter`` installs
one): its own perplexity of the F32 weights, and its logits' distance from llama.cpp's, beside them.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import gguf
import llama_cpp.llama_cpp as llama
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from benchmarks.kernels import Session, quantize, quiet
from gorgon.config import EngineSettings
from gorgon.llama import kernels
from gorgon.llama.model import Model

ROOT = Path(__file__).resolve().parent.parent
TEXTS = [ROOT / "ARCHITECTURE.md", ROOT / "docs" / "heads.md"]
TEXTS += [ROOT / "gorgon" / "engine" / "scheduler.py", ROOT / "gorgon" / "server" / "app.py"]
WINDOW = 512

PUBLISHED = {  # names in a checkpoint of a Llama, by those in a GGUF
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}

Tokens = NDArray[np.int64]  # [window][token]
Floats = NDArray[np.float64]

# In the other Python: logits of every window, one file each.
SCRIPT = """
import sys, numpy as np, torch
from transformers import LlamaForCausalLM
model = LlamaForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
for i, window in enumerate(np.load(sys.argv[2])):
    with torch.inference_mode():
        np.save(f"{sys.argv[1]}/{i}.npy", model(torch.from_numpy(window)[None]).logits[0].numpy())
"""


@dataclass
class Score:
    """What one way of computing gives: natural log-likelihoods, and its distance from another."""

    log_likelihoods: Floats
    distance: float = 0.0

    @property
    def perplexity(self) -> float:
        return float(np.exp(-self.log_likelihoods.mean()))

    def change(self, reference: Score) -> str:
        """Percent by which the perplexity is off, and the half width of its 95 % interval."""
        difference = reference.log_likelihoods - self.log_likelihoods
        error = difference.std(ddof=1) / len(difference) ** 0.5
        return f"{100 * difference.mean():+.2f} ± {196 * error:.2f} %"


def read_windows(path: Path, texts: Iterable[Path], count: int) -> Tokens:
    """The first ``count`` whole windows of each text."""
    model = Model(EngineSettings(model=path), path)
    windows = []
    for text in texts:
        ids = model.tokenize(text.read_text(), add_special=False, parse_special=False)
        whole = min(count, len(ids) // WINDOW)
        windows.append(np.reshape(ids[: whole * WINDOW], (whole, WINDOW)))
    model.close()
    return np.concatenate(windows)


def log_likelihoods(logits: NDArray[np.float32], window: NDArray[np.int64]) -> Floats:
    """Of each token but the first, given those before it."""
    rows = logits[:-1].astype(np.float64)
    most = rows.max(axis=1)
    totals = np.log(np.exp(rows - most[:, None]).sum(axis=1)) + most
    return np.asarray(rows[np.arange(len(rows)), window[1:]] - totals)


def decode(path: Path, windows: Tokens, cache: str, *, ours: bool) -> Iterable[NDArray[np.float32]]:
    """Logits of every window, each from an empty cache."""
    session = Session(path, weights=ours, attention=ours, context=0, threads=2, cache=cache)
    for window in windows:
        session.rewind(0)
        session.decode(window, range(WINDOW))
        yield session.logits(WINDOW)
    session.close()


def transformers(
    python: Path, path: Path, windows: Tokens, folder: Path
) -> Iterable[NDArray[np.float32]]:
    """The same from transformers in F32."""
    write_checkpoint(path, folder)
    np.save(folder / "windows.npy", windows)
    command = [str(python), "-c", SCRIPT, str(folder), str(folder / "windows.npy")]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    for i in range(len(windows)):
        yield np.load(folder / f"{i}.npy")


def write_checkpoint(path: Path, folder: Path) -> None:
    """An F32 GGUF of a Llama as transformers reads it: names and order of rows as published."""
    reader = gguf.GGUFReader(path)

    def value(key: str) -> float:
        return float(reader.fields[f"llama.{key}"].contents())

    heads = {
        "attn_q": int(value("attention.head_count")),
        "attn_k": int(value("attention.head_count_kv")),
    }
    tensors = {}
    for tensor in reader.tensors:
        layer, _, name = tensor.name.removesuffix(".weight").rpartition(".")
        if name not in PUBLISHED:
            continue
        rows = np.asarray(tensor.data, np.float32)
        if num := heads.get(name):  # in a GGUF, the two numbers that are rotated lie side by side
            rows = rows.reshape(num, -1, 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)
        prefix = layer.replace("blk.", "model.layers.") + "." if layer else ""
        tensors[f"{prefix}{PUBLISHED[name]}.weight"] = np.ascontiguousarray(rows)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": int(value("embedding_length")),
        "intermediate_size": int(value("feed_forward_length")),
        "num_hidden_layers": int(value("block_count")),
        "num_attention_heads": heads["attn_q"],
        "num_key_value_heads": heads["attn_k"],
        "rms_norm_eps": value("attention.layer_norm_rms_epsilon"),
        "rope_theta": value("rope.freq_base"),
        "vocab_size": len(tensors["model.embed_tokens.weight"]),
        "tie_word_embeddings": "lm_head.weight" not in tensors,
    }
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))


def score(
    logits: Iterable[NDArray[np.float32]], windows: Tokens, references: list[NDArray[np.float32]]
) -> Score:
    """Over all windows; without references these logits become them."""
    found, apart, size = [], 0.0, 0.0
    for i, (window, rows) in enumerate(zip(windows, logits, strict=True)):
        if len(references) == i:
            references.append(rows)
        found.append(log_likelihoods(rows, window))
        apart += float(np.square(rows - references[i], dtype=np.float64).sum())
        size += float(np.square(references[i], dtype=np.float64).sum())
    return Score(np.concatenate(found), (apart / size) ** 0.5)


def report(path: Path, windows: Tokens, python: Path | None) -> None:
    """One row of the table."""
    references: list[NDArray[np.float32]] = []
    with tempfile.TemporaryDirectory() as name:
        exact = Path(name) / "f32.gguf"
        quantize(path, "F32", exact)
        reference = score(decode(exact, windows, "f32", ours=False), windows, references)
        cells = [path.stem, f"{reference.perplexity:.3f}"]
        if python:
            other = score(transformers(python, exact, windows, Path(name)), windows, references)
            cells.append(f"{other.perplexity:.3f} ({other.distance:.1e})")
    both = [score(decode(path, windows, "f16", ours=o), windows, references) for o in (False, True)]
    cells += [f"{s.perplexity:.3f} ({s.change(reference)})" for s in both]
    cells += [both[1].change(both[0]), *(f"{100 * s.distance:.2f} %" for s in both)]
    print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--text", nargs="+", type=Path, default=TEXTS)
    parser.add_argument("--windows", type=int, default=4, help="of 512 tokens, of each text")
    parser.add_argument("--transformers", type=Path, metavar="PYTHON")
    arguments = parser.parse_args()
    llama.llama_log_set(quiet, None)
    llama.llama_backend_init()
    status = kernels.load()
    if not status.active:
        raise SystemExit(f"no kernels to compare: {status.reason}")
    windows = read_windows(arguments.models[0], arguments.text, arguments.windows)
    now = datetime.datetime.now(datetime.UTC).date()
    print(f"{now}, kernels: {status.isa}, {windows.size} tokens in windows of {WINDOW}")
    columns = ["", "perplexity: F32", "stock (to F32)", "ours (to F32)", "ours to stock"]
    columns += ["logit error: stock", "ours"]
    if arguments.transformers:
        columns.insert(2, "transformers F32 (logits apart)")
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for path in arguments.models:
        report(path, windows, arguments.transformers)


if __name__ == "__main__":
    main()
