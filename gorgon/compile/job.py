"""The child's side of ``gorgon.compile.child``: one job, JSON lines on standard output."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from gorgon.compile.measure import measure
from gorgon.compile.progress import OnProgress
from gorgon.errors import GorgonError
from gorgon.llama import importance
from gorgon.llama.quantize import Quantization, quantize, quantized_size

Arguments = dict[str, Any]


def _quantize(arguments: Arguments, on_progress: OnProgress) -> Arguments:
    matrix = arguments["importance"]
    quantize(
        Path(arguments["source"]),
        Path(arguments["target"]),
        _options(arguments),
        threads=arguments["threads"],
        importance=None if matrix is None else _load(Path(matrix)),
        on_progress=on_progress,
    )
    return {}


def _quantized_size(arguments: Arguments, _on_progress: OnProgress) -> Arguments:
    return {"size": quantized_size(Path(arguments["source"]), _options(arguments))}


def _importance(arguments: Arguments, on_progress: OnProgress) -> Arguments:
    """From a text, or from a file of llama-imatrix, to the form that ``_load`` reads."""
    source, target = Path(arguments["source"]), Path(arguments["target"])
    raw = source.read_bytes()
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        values = importance.read(source)
    else:
        model = Path(arguments["model"])
        values = importance.measure(model, text, arguments["threads"], on_progress)
    with target.open("wb") as file:
        np.savez(file, **values)  # type: ignore[arg-type, unused-ignore]
    return {"entries": len(values)}


def _measure(arguments: Arguments, on_progress: OnProgress) -> Arguments:
    measured = measure(
        Path(arguments["model"]),
        arguments["text"],
        arguments["num_tokens"],
        Path(arguments["reference"]),
        arguments["mode"],
        arguments["threads"],
        on_progress,
    )
    return measured.as_json()


def _options(arguments: Arguments) -> Quantization:
    given = arguments["options"]
    pairs = tuple((pattern, name) for pattern, name in given["tensor_types"])
    return Quantization(**{**given, "tensor_types": pairs})


def _load(path: Path) -> importance.Values:
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


JOBS: dict[str, Callable[[Arguments, OnProgress], Arguments]] = {
    "quantize": _quantize,
    "quantized_size": _quantized_size,
    "importance": _importance,
    "measure": _measure,
}


def _say(**message: Any) -> None:
    print(json.dumps(message), flush=True)


def main(name: str, arguments: str) -> int:
    """Run job ``name``; 0, or 1 with the error said."""
    logging.getLogger("gorgon").setLevel(logging.ERROR)
    try:
        result = JOBS[name](json.loads(arguments), lambda fraction: _say(progress=fraction))
    except GorgonError as error:
        _say(error=str(error))
        return 1
    except OSError as error:
        _say(error=f"{error.filename or 'a file'}: {error.strerror or error}")
        return 1
    _say(result=result)
    return 0


if __name__ == "__main__":
    sys.stdout.flush()
    code = main(*sys.argv[1:])
    sys.stdout.flush()
    os._exit(code)  # nothing of the native libraries is worth unwinding
