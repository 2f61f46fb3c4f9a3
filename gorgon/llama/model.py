"""A loaded model: weights and vocabulary. Knows tokens and bytes, not chats, caches or requests."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import struct
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from gorgon.backend import Ints
from gorgon.config import EngineSettings
from gorgon.errors import ModelError, RequestError
from gorgon.llama import kernels
from gorgon.llama.gguf import GgufFile, TensorInfo
from gorgon.llama.library import collect_errors, llama

logger = logging.getLogger("gorgon.llama")

_MAX_LAYERS = _MAX_EXPERTS = 512  # LLAMA_MAX_LAYERS, LLAMA_MAX_EXPERTS
_DAMAGED = "the file is damaged or made by a faulty tool, download or convert it again"


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a GGUF says about itself, read without loading it."""

    path: Path
    name: str
    architecture: str
    num_embd: int
    num_vocab: int
    num_ctx_train: int
    chat_template: str | None
    output_tensor: str
    fingerprint: str
    weights: tuple[TensorInfo, ...]


def inspect(path: Path) -> ModelInfo:
    """Read and check the header of a model.

    Raises:
        ModelError: when it is no model that Gorgon serves.
    """
    with GgufFile(path) as file:
        architecture = file.string("general.architecture") or "unknown"
        if architecture != "llama":
            raise ModelError(
                f"{path}: architecture '{architecture}' is not served; "
                "use a Llama-architecture GGUF (Llama, Vicuna, Mistral, SmolLM2, TinyLlama ...)"
            )
        if file.uint("llama.attention.sliding_window"):
            raise ModelError(f"{path}: sliding-window attention is not served; use another model")
        embedding = file.tensors.get("token_embd.weight")
        norm = file.tensors.get("output_norm.weight")
        if embedding is None or norm is None or len(embedding.shape) != 2:
            raise ModelError(f"{path}: no token_embd.weight or output_norm.weight; not a model")
        _check_hyperparameters(file)
        num_embd, num_vocab = embedding.shape
        return ModelInfo(
            path=path,
            name=file.string("general.name") or path.stem,
            architecture=architecture,
            num_embd=num_embd,
            num_vocab=num_vocab,
            num_ctx_train=file.uint("llama.context_length") or 0,
            chat_template=file.string("tokenizer.chat_template"),
            output_tensor="output.weight" if "output.weight" in file.tensors else embedding.name,
            fingerprint=fingerprint(num_embd, num_vocab, bytes(file.read(norm.name))),
            weights=tuple(file.tensors.values()),
        )


def _check_hyperparameters(file: GgufFile) -> None:
    """Refuse what llama.cpp answers by aborting the process instead of by an error."""
    epsilon = file.float32("llama.attention.layer_norm_rms_epsilon")
    for key, allowed in (
        ("block_count", range(1, _MAX_LAYERS + 1)),
        ("expert_count", range(_MAX_EXPERTS + 1)),
    ):
        value = file.uint(f"llama.{key}")
        if value is not None and value not in allowed:
            raise ModelError(f"{file.path}: llama.{key} is {value}; {_DAMAGED}")
    if epsilon is not None and not 0.0 <= epsilon < 1.0:
        raise ModelError(
            f"{file.path}: llama.attention.layer_norm_rms_epsilon is {epsilon}; {_DAMAGED}"
        )


def fingerprint(num_embd: int, num_vocab: int, output_norm: bytes) -> str:
    """What identifies a model over all its quantisations: shapes and the final norm's weights.

    The norm stays F32 in every quantisation and differs between fine-tunes of one base.
    """
    return hashlib.sha256(struct.pack("<II", num_embd, num_vocab) + output_norm).hexdigest()


def _reason(errors: list[str]) -> str:
    """What llama.cpp said first, without the name of the function that said it."""
    first = errors[0] if errors else "no reason given"
    return " ".join(first.rpartition("error loading model: ")[2].split())


class Model:
    """Weights in memory, with the vocabulary functions; free with ``close``.

    Raises:
        ModelError: when the file cannot be loaded or is out of scope.
    """

    def __init__(self, settings: EngineSettings, path: Path) -> None:
        self.info = inspect(path)
        params = llama.llama_model_default_params()
        params.n_gpu_layers = settings.gpu_layers if settings.gpu_layers >= 0 else 999
        native = settings.cpu_kernels == "native"
        kernels.take(weights=native, attention=native)  # before llama.cpp's first model
        params.use_extra_bufts = settings.cpu_kernels != "plain"
        if self._is_packed(settings):
            # Packed weights are copies: mapped, the file would stay in memory beside them.
            params.load_mode = llama.LLAMA_LOAD_MODE_NONE
        with collect_errors() as errors:
            self.handle = llama.llama_model_load_from_file(os.fsencode(path), params)
        if not self.handle:
            raise ModelError(f"{path}: llama.cpp cannot load it ({_reason(errors)}); {_DAMAGED}")
        self._refuse_unserved()
        self.vocab = llama.llama_model_get_vocab(self.handle)
        assert llama.llama_vocab_n_tokens(self.vocab) == self.info.num_vocab

    def _is_packed(self, settings: EngineSettings) -> bool:
        on_gpu = settings.gpu_layers != 0 and llama.llama_supports_gpu_offload()
        if on_gpu or settings.cpu_kernels != "native":
            return False
        return any(kernels.packs(w.type, w.shape) for w in self.info.weights)

    def _refuse_unserved(self) -> None:
        kinds = {
            "recurrent": llama.llama_model_is_recurrent(self.handle),
            "hybrid": llama.llama_model_is_hybrid(self.handle),
            "encoder": llama.llama_model_has_encoder(self.handle),
            "sliding-window": llama.llama_model_n_swa(self.handle) > 0,
        }
        for kind, found in kinds.items():
            if found:
                self.close()
                raise ModelError(f"{self.info.path}: {kind} models are not served")

    def close(self) -> None:
        """Free the weights; contexts made of the model must be closed before."""
        if self.handle:
            llama.llama_model_free(self.handle)
            self.handle = None

    @cached_property
    def eog_ids(self) -> frozenset[int]:
        """All end-of-generation tokens."""
        is_eog = llama.llama_vocab_is_eog
        return frozenset(t for t in range(self.info.num_vocab) if is_eog(self.vocab, t))

    @property
    def size(self) -> int:
        """Bytes of all weights."""
        return int(llama.llama_model_size(self.handle))

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids of ``text``.

        Args:
            text: any Unicode text.
            add_special: put BOS (and EOS) where the model wants them.
            parse_special: read ``<|im_start|>`` and the like as control tokens.

        Raises:
            RequestError: if the text holds lone surrogates, which no UTF-8 can carry.
        """
        try:
            raw = text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise RequestError("prompt is not valid Unicode: lone surrogate", "prompt") from error
        size = len(raw) + 8
        while True:
            ids = (llama.llama_token * size)()
            count = llama.llama_tokenize(
                self.vocab, raw, len(raw), ids, size, add_special, parse_special
            )
            if count >= 0:
                return list(ids[:count])
            size = -count

    @cached_property
    def unwritable_ids(self) -> Ints:
        """Tokens that no grammar may take: control tokens, which add no text, and pieces with NUL.

        ``llama-grammar.cpp`` matches control tokens by their written form, and stops reading a
        piece at NUL where it tests a token but not where it accepts one.
        """
        is_control = llama.llama_vocab_is_control
        unwritable = [
            token
            for token in range(self.info.num_vocab)
            if (is_control(self.vocab, token) and token not in self.eog_ids)
            or b"\0" in self.piece(token)
        ]
        return np.asarray(unwritable, np.int32)

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """The bytes that ``token`` adds to a text; control tokens add none unless ``special``."""
        buffer = ctypes.create_string_buffer(64)
        count = llama.llama_token_to_piece(self.vocab, token, buffer, 64, 0, special)
        if count < 0:
            buffer = ctypes.create_string_buffer(-count)
            count = llama.llama_token_to_piece(self.vocab, token, buffer, -count, 0, special)
        return buffer.raw[:count]

    def control_text(self, token: int) -> str:
        """The written form of any token, control tokens included."""
        return bytes(llama.llama_vocab_get_text(self.vocab, token)).decode("utf-8", "replace")

    @property
    def bos(self) -> int | None:
        """The beginning-of-sequence token, if the model has one."""
        token = int(llama.llama_vocab_bos(self.vocab))
        return token if token >= 0 else None

    @property
    def eos(self) -> int | None:
        """The end-of-sequence token, if the model has one."""
        token = int(llama.llama_vocab_eos(self.vocab))
        return token if token >= 0 else None
