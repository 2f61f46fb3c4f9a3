"""Makes a LlamaForCausalLM with Vicuna's config scaled down; run by the converter's Python.

model FOLDER              train a SentencePiece tokenizer as Llama's, write the checkpoint
repack FOLDER OUT KIND    the same model as bin or sharded-bin
bpe FOLDER TOKENS         a model with the byte-level BPE whose tokens and merges are in a file
logits FOLDER IDS OUT     what transformers says of it
heads FOLDER IDS OUT      Medusa heads trained on it, in released naming
tokens FOLDER TEXTS OUT   ids of the folder's tokenizer, no special tokens
full FOLDER KIND          7B at full size, bin or safetensors, shard by shard in little memory
"""

from __future__ import annotations

import json
import math
import shutil
import struct
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import sentencepiece
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

# Vicuna-7B v1.3 and the same scaled down.
FULL = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32000,
}
TINY = {
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": 1024,
}
ROOT = Path(__file__).parent.parent.parent
SHARD_BYTES = 10_000_000_000  # as transformers cut Vicuna
BLOCK = 1 << 24  # random numbers at a time
NUM_HEADS = 2


def make_tokenizer(folder: Path, vocab_size: int, texts: Sequence[Path]) -> None:
    """Llama's settings: BPE with byte fallback, digits apart, whitespace kept."""
    corpus = folder / "corpus.txt"
    text = "\n".join(path.read_text(encoding="utf-8", errors="ignore") for path in texts)
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


def make_config(sizes: dict[str, int]) -> LlamaConfig:
    """Vicuna's, all but the sizes."""
    return LlamaConfig(
        **sizes,
        num_key_value_heads=sizes["num_attention_heads"],
        max_position_embeddings=2048,
        rms_norm_eps=1e-6,
        hidden_act="silu",
        tie_word_embeddings=False,
        initializer_range=0.02,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        dtype="float16",
    )


def make_model(folder: Path) -> None:
    """A checkpoint in FP16 with random weights, in shards as Vicuna's."""
    folder.mkdir(parents=True)
    texts = sorted([*(ROOT / "gorgon").rglob("*.py"), *(ROOT / "docs").glob("*.md")])
    make_tokenizer(folder, TINY["vocab_size"], texts)
    make_weights(make_config(TINY)).save_pretrained(folder, max_shard_size="2MB")


def make_weights(config: LlamaConfig) -> LlamaForCausalLM:
    """Random weights in FP16, the same every time."""
    torch.manual_seed(1)
    torch.set_default_dtype(torch.float16)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, values in model.named_parameters():
            if "norm" in name:
                values.uniform_(0.8, 1.2)
    return model


def repack(source: Path, target: Path, kind: str) -> None:
    """The checkpoint ``source`` with its weights as PyTorch writes them."""
    target.mkdir()
    for path in source.iterdir():
        if "safetensors" not in path.name:
            shutil.copy(path, target)
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(source.glob("*.safetensors")):
        tensors |= load_file(path)
    if kind == "bin":
        torch.save(tensors, target / "pytorch_model.bin")
    else:
        names = sorted(tensors)
        parts = [names[::2], names[1::2]]
        files = [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
        for file, part in zip(files, parts, strict=True):
            torch.save({name: tensors[name] for name in part}, target / file)
        write_index(target, "pytorch_model.bin.index.json", dict(zip(files, parts, strict=True)))


def write_index(folder: Path, name: str, shards: dict[str, list[str]]) -> None:
    """The file that says which shard holds which tensor."""
    places = {tensor: file for file, tensors in shards.items() for tensor in tensors}
    index = {"metadata": {}, "weight_map": places}
    (folder / name).write_text(json.dumps(index, indent=1), encoding="utf-8")


def make_bpe_model(folder: Path, source: Path) -> None:
    """A model whose tokenizer is tokenizer.json alone: GPT-2's bytes, digits apart."""
    given = json.loads(source.read_text(encoding="utf-8"))
    folder.mkdir(parents=True)
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    byte_level["use_regex"] = True
    special = [
        {
            "id": i,
            "content": token,
            "special": True,
            **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False),
        }
        for i, token in enumerate(given["tokens"])
        if given["special"][i]
    ]
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "vocab": {token: i for i, token in enumerate(given["tokens"])},
            "merges": given["merges"],
            "ignore_merges": False,
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    settings = {"tokenizer_class": "GPT2Tokenizer", "bos_token": given["bos"]}
    settings |= {"eos_token": given["eos"], "unk_token": given["eos"]}
    settings["chat_template"] = "{{ messages[0].content }}"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    sizes = {**TINY, "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 1}
    config = make_config({**sizes, "vocab_size": len(given["tokens"])})
    make_weights(config).save_pretrained(folder)


def write_tokens(folder: Path, texts: list[str], target: Path) -> None:
    """Ids of the folder's own tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    target.write_text(json.dumps(ids), encoding="utf-8")


def make_full_model(folder: Path, kind: str) -> None:
    """7B with random weights; random bits lie on disk first and are never in memory at once."""
    folder.mkdir(parents=True)
    texts = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*/*.py"))
    make_tokenizer(folder, FULL["vocab_size"], texts)
    config = make_config(FULL)
    with torch.device("meta"):
        shapes = {
            name: list(values.shape)
            for name, values in LlamaForCausalLM(config).state_dict().items()
        }
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    stem, suffix = ("pytorch_model", "bin") if kind == "bin" else ("model", "safetensors")
    parts = list(cut(shapes))
    shards = {f"{stem}-{i:05}-of-{len(parts):05}.{suffix}": part for i, part in enumerate(parts, 1)}
    for seed, (file, names) in enumerate(shards.items()):
        write = write_bin if kind == "bin" else write_safetensors
        write(folder / file, {name: shapes[name] for name in names}, seed)
        print(f"{file}: {(folder / file).stat().st_size / 1e9:.2f} GB", flush=True)
    write_index(folder, f"{stem}.{suffix}.index.json", shards)


def cut(shapes: dict[str, list[int]]) -> Iterator[list[str]]:
    """Names of tensors, shard by shard."""
    names: list[str] = []
    size = 0
    for name, shape in shapes.items():
        if size + 2 * math.prod(shape) > SHARD_BYTES:
            yield names
            names, size = [], 0
        names.append(name)
        size += 2 * math.prod(shape)
    yield names


def draw(shape: list[int], random: np.random.Generator) -> Iterator[bytes]:
    """A tensor in F16, some numbers at a time: around 1 for norms, small for matrices."""
    left, is_norm = math.prod(shape), len(shape) == 1
    while left:
        values = random.standard_normal(min(left, BLOCK), np.float32) * (0.05 if is_norm else 0.02)
        left -= values.size
        yield (values + (1.0 if is_norm else 0.0)).astype(np.float16).tobytes()


def write_safetensors(path: Path, shapes: dict[str, list[int]], seed: int) -> None:
    """Header and tensors one after the other."""
    table: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, shape in shapes.items():
        end = at + 2 * math.prod(shape)
        table[name] = {"dtype": "F16", "shape": shape, "data_offsets": [at, end]}
        at = end
    header = json.dumps(table).encode()
    header += b" " * (-len(header) % 8)
    random = np.random.default_rng(seed)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for shape in shapes.values():
            file.writelines(draw(shape, random))


def write_bin(path: Path, shapes: dict[str, list[int]], seed: int) -> None:
    """What ``torch.save`` makes of tensors that lie in a file."""
    raw, random = path.with_suffix(".raw"), np.random.default_rng(seed)
    with raw.open("wb") as file:
        for shape in shapes.values():
            file.writelines(draw(shape, random))
    tensors, at = {}, 0
    for name, shape in shapes.items():
        mapped = np.memmap(raw, np.float16, "r+", offset=at, shape=tuple(shape))
        tensors[name] = torch.from_numpy(mapped)
        at += mapped.nbytes
    torch.save(tensors, path)
    raw.unlink()


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
    place = Path(folder)
    match verb, rest:
        case "model", ():
            make_model(place)
        case "repack", (target, kind):
            repack(place, Path(target), kind)
        case "bpe", (source,):
            make_bpe_model(place, Path(source))
        case "logits", (ids, target):
            write_logits(place, json.loads(ids), Path(target))
        case "heads", (ids, target):
            write_heads(place, json.loads(ids), Path(target))
        case "tokens", (texts, target):
            write_tokens(place, json.loads(texts), Path(target))
        case "full", (kind,):
            make_full_model(place, kind)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(*sys.argv[1:])
