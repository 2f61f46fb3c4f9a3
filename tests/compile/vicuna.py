"""Makes a LlamaForCausalLM with Vicuna's config scaled down; run by the converter's Python.

``python vicuna.py model FOLDER [SHAPE]`` trains a SentencePiece tokenizer as Llama's and writes
the checkpoint; ``logits FOLDER IDS OUT`` and ``heads FOLDER IDS OUT`` are what transformers says
of it and Medusa heads trained on it, in released naming.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import sentencepiece
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

# Vicuna-7B v1.3, scaled: 4096 wide, 11008 inside, 32 layers, 32 heads, 32,000 tokens.
SHAPES = {
    "tiny": {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 3},
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32},
}
NUM_ATTENTION_HEADS = {"tiny": 4, "7b": 32}
VOCAB = {"tiny": 1024, "7b": 32000}
ROOT = Path(__file__).parent.parent.parent
NUM_HEADS = 2


def make_tokenizer(folder: Path, vocab_size: int) -> None:
    """Llama's settings: BPE with byte fallback, digits apart, whitespace kept."""
    texts = sorted([*(ROOT / "gorgon").rglob("*.py"), *(ROOT / "docs").glob("*.md")])
    corpus = folder / "corpus.txt"
    text = "\n".join(path.read_text(encoding="utf-8") for path in texts)
    corpus.write_text(text + "\näöü é ñ 中文 日本語 Привет 🙂\n", encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=vocab_size,
        model_type="bpe",
        byte_fallback=True,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        character_coverage=0.99995,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    corpus.unlink()
    (folder / "tokenizer.vocab").unlink()
    settings = {
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "legacy": True,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2048,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def make_model(folder: Path, shape: str) -> None:
    """A checkpoint in FP16 with random weights, in shards as Vicuna's."""
    folder.mkdir(parents=True)
    make_tokenizer(folder, VOCAB["tiny"])
    config = LlamaConfig(
        **SHAPES[shape],
        num_attention_heads=NUM_ATTENTION_HEADS[shape],
        num_key_value_heads=NUM_ATTENTION_HEADS[shape],
        vocab_size=VOCAB[shape],
        max_position_embeddings=2048,
        rms_norm_eps=1e-6,
        hidden_act="silu",
        tie_word_embeddings=False,
        initializer_range=0.02 if shape == "7b" else 0.08,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    torch.manual_seed(1)
    torch.set_default_dtype(torch.float16)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, values in model.named_parameters():
            if "norm" in name:
                values.uniform_(0.8, 1.2)
    shard = "10GB" if shape == "7b" else "2MB"
    model.save_pretrained(folder, max_shard_size=shard)


def write_logits(folder: Path, ids: list[int], target: Path) -> None:
    """Logits of transformers in F32 arithmetic, [tokens, vocabulary]."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        np.save(target, model(torch.tensor([ids])).logits[0].numpy())


def write_heads(folder: Path, ids: list[int], target: Path) -> None:
    """Heads with their own output matrices, trained on the model's greedy text after ``ids``."""
    torch.manual_seed(1)
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    width, vocab = model.config.hidden_size, model.config.vocab_size
    with torch.no_grad():
        text = model.generate(
            torch.tensor([ids]), max_new_tokens=40, do_sample=False, min_new_tokens=40
        )
        hidden = model.model(text).last_hidden_state.clone()
    linear = nn.ModuleList(nn.Linear(width, width) for _ in range(NUM_HEADS))
    output = nn.ModuleList(nn.Linear(width, vocab, bias=False) for _ in range(NUM_HEADS))
    optimizer = torch.optim.AdamW([*linear.parameters(), *output.parameters()], 3e-3)
    for _ in range(80):
        loss = torch.zeros(())
        for i in range(NUM_HEADS):
            state = hidden[:, : -2 - i]
            logits = output[i](state + nn.functional.silu(linear[i](state)))
            wanted = text[:, 2 + i :]
            loss = loss + nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    tensors = {}
    for i in range(NUM_HEADS):
        tensors[f"{i}.0.linear.weight"] = linear[i].weight.detach()
        tensors[f"{i}.0.linear.bias"] = linear[i].bias.detach()
        tensors[f"{i}.1.weight"] = output[i].weight.detach()
    save_file({name: values.half().contiguous() for name, values in tensors.items()}, target)


def main(verb: str, folder: str, *rest: str) -> None:
    """See above."""
    torch.set_num_threads(1)
    if verb == "model":
        make_model(Path(folder), *(rest or ["tiny"]))
    elif verb == "logits":
        write_logits(Path(folder), json.loads(rest[0]), Path(rest[1]))
    else:
        write_heads(Path(folder), json.loads(rest[0]), Path(rest[1]))


if __name__ == "__main__":
    main(*sys.argv[1:])
