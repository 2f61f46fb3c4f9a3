"""Quantising a GGUF with llama.cpp's own quantiser, in the calling process.

The quantiser is C++ that can abort on damaged input and takes minutes: callers that must live on
run this in a child process (``gorgon.compile.job``).
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gorgon.errors import CompileError
from gorgon.llama.library import collect_errors, llama, logger

Importance = Mapping[str, npt.NDArray[np.float32]]

_MOSTLY = "LLAMA_FTYPE_MOSTLY_"
FILE_TYPES: dict[str, int] = {
    "F32": llama.LLAMA_FTYPE_ALL_F32,
    **{n.removeprefix(_MOSTLY): getattr(llama, n) for n in dir(llama) if n.startswith(_MOSTLY)},
}
_NOT_FOR_WEIGHTS = {"COUNT", "I8", "I16", "I32", "I64", "F64", "Q8_1", "Q8_K"}
TENSOR_TYPES: dict[str, int] = {
    # Of ggml.h, left out by llama_cpp.
    **{"BF16": 30, "TQ1_0": 34, "TQ2_0": 35},
    **{
        name.removeprefix("GGML_TYPE_"): getattr(llama, name)
        for name in dir(llama)
        if name.startswith("GGML_TYPE_") and name.removeprefix("GGML_TYPE_") not in _NOT_FOR_WEIGHTS
    },
}
UNQUANTISED = ("F32", "F16", "BF16")

_TENSOR = re.compile(r"^\[\s*(\d+)/\s*(\d+)\]")
_SIZE = re.compile(r"quant size\s*=\s*([\d.]+) MiB")
_BUFFER_BYTES = 1 << 30  # rows in memory at once: a seventh of llama.cpp's default


@dataclass(frozen=True, slots=True)
class Quantization:
    """What the file is to become.

    Args:
        file_type: a name in ``FILE_TYPES``; mixes such as Q4_K_M choose per tensor.
        output_type: ggml type of the output matrix; the mix's choice if None.
        embedding_type: ggml type of the token embeddings; the mix's choice if None.
        tensor_types: pairs (regular expression on the tensor's name, ggml type); first match wins.
        requantize: take a source that is quantised already, at a loss.

    Raises:
        CompileError: for a name that llama.cpp does not know.
    """

    file_type: str = "Q4_K_M"
    output_type: str | None = None
    embedding_type: str | None = None
    tensor_types: tuple[tuple[str, str], ...] = ()
    requantize: bool = False

    def __post_init__(self) -> None:
        _check_name("--type", self.file_type, FILE_TYPES)
        for option, name in (("output", self.output_type), ("embedding", self.embedding_type)):
            if name is not None:
                _check_name(f"--{option}-type", name, TENSOR_TYPES)
        for pattern, name in self.tensor_types:
            _check_name(f"--tensor-type {pattern}", name, TENSOR_TYPES)
            _check_pattern(pattern)
        if self.tensor_types and self.file_type in UNQUANTISED:
            raise CompileError(
                f"--tensor-type needs a quantised --type; llama.cpp ignores it for {self.file_type}"
            )


def quantize(
    source: Path,
    target: Path,
    options: Quantization,
    *,
    threads: int,
    importance: Importance | None = None,
    on_progress: Callable[[float], None] = lambda fraction: None,
) -> None:
    """Write ``target`` from ``source``; on failure ``target`` may be incomplete.

    Args:
        source: a GGUF, unquantised unless ``options.requantize``.
        target: the file to write.
        options: the types.
        threads: threads of the quantiser.
        importance: mean squared activations per column of each weight, by tensor name.
        on_progress: called with the fraction of tensors begun.

    Raises:
        CompileError: with llama.cpp's reason.
    """
    _run(source, target, options, threads, importance, False, on_progress)


def quantized_size(source: Path, options: Quantization) -> int:
    """Bytes of tensors that ``quantize`` would write, without writing.

    Raises:
        CompileError: with llama.cpp's reason.
    """
    return _run(source, None, options, 1, None, True, lambda fraction: None)


def _run(
    source: Path,
    target: Path | None,
    options: Quantization,
    threads: int,
    importance: Importance | None,
    dry_run: bool,
    on_progress: Callable[[float], None],
) -> int:
    params = _params(options, threads, dry_run)
    keep = [_overrides(options), _importance_data(importance or {})]
    if options.tensor_types:
        params.tt_overrides = keep[0]
    if importance is not None:
        params.imatrix = keep[1]
    listener = _Listener(on_progress)
    with collect_errors() as errors, listener.attached():
        name = b"" if target is None else str(target).encode()
        code = llama.llama_model_quantize(str(source).encode(), name, ctypes.byref(params))
    if code != 0:
        raise CompileError(f"{source}: llama.cpp cannot make {options.file_type}: {_why(errors)}")
    return listener.size


def _params(options: Quantization, threads: int, dry_run: bool) -> Any:
    params = llama.llama_model_quantize_default_params()
    params.nthread = threads
    params.ftype = FILE_TYPES[options.file_type]
    if options.output_type is not None:
        params.output_tensor_type = TENSOR_TYPES[options.output_type]
    if options.embedding_type is not None:
        params.token_embedding_type = TENSOR_TYPES[options.embedding_type]
    params.allow_requantize = options.requantize
    params.dry_run = dry_run
    params.max_buf_size = _BUFFER_BYTES
    return params


def _overrides(options: Quantization) -> Any:
    """The null-terminated array that ``tt_overrides`` points to."""
    array = (llama.llama_model_tensor_override * (len(options.tensor_types) + 1))()
    for item, (pattern, name) in zip(array, options.tensor_types, strict=False):
        item.pattern, item.type = pattern.encode(), TENSOR_TYPES[name]
    return array


def _importance_data(importance: Importance) -> Any:
    """The null-terminated array that ``imatrix`` points to; keeps references to the numbers."""
    array = (llama.llama_model_imatrix_data * (len(importance) + 1))()
    for item, (name, values) in zip(array, importance.items(), strict=False):
        buffer = (ctypes.c_float * values.size).from_buffer_copy(
            values.astype(np.float32).tobytes()
        )
        item.name, item.size = name.encode(), values.size
        item.data = ctypes.cast(buffer, ctypes.POINTER(ctypes.c_float))
    return array


class _Listener(logging.Handler):
    """Reads progress and the final size from what the quantiser logs."""

    def __init__(self, on_progress: Callable[[float], None]) -> None:
        super().__init__(logging.DEBUG)
        self._on_progress = on_progress
        self.size = 0

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if match := _TENSOR.match(text):
            self._on_progress((int(match[1]) - 1) / int(match[2]))
        elif match := _SIZE.search(text):
            self.size = round(float(match[1]) * 2**20)

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        level, propagate = logger.level, logger.propagate
        logger.setLevel(logging.DEBUG)
        logger.propagate = False
        logger.addHandler(self)
        try:
            yield
        finally:
            logger.removeHandler(self)
            logger.setLevel(level)
            logger.propagate = propagate


def _why(errors: list[str]) -> str:
    reasons = [line.strip() for line in errors if line.strip(" =\n")]
    reason = (reasons or ["no reason given"])[-1].split("failed to quantize: ")[-1]
    if "imatrix" in reason or "importance matrix" in reason:
        return f"{reason.rstrip('!')}; give a text with --imatrix"
    if "requantizing" in reason:
        return "it is quantised already; start from the original, or add --requantize"
    return reason


def _check_name(option: str, name: str, names: Mapping[str, int]) -> None:
    if name not in names:
        raise CompileError(
            f"{option}: llama.cpp knows no type '{name}'; one of {' '.join(sorted(names))}"
        )


def _check_pattern(pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise CompileError(f"--tensor-type {pattern}: not a regular expression: {error}") from error
