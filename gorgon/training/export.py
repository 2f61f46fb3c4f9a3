"""From trained modules to a heads file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
from torch import Tensor

from gorgon.compile.sidecar import Sidecar, write
from gorgon.llama.model import ModelInfo
from gorgon.training.heads import WINDOW_WIDTH, HeadsConfig
from gorgon.training.quantisation import MatrixType

_NAMES = {
    "window_in.weight": "window.in.weight",
    "window_state.weight": "window.state.weight",
    "window_gate.weight": "window.gate.weight",
    "gate.weight": "block.gate.weight",
    "up.weight": "block.up.weight",
    "down.weight": "block.down.weight",
    "output.weight": "output.weight",
}


def export(
    target: Path,
    config: HeadsConfig,
    weights: Mapping[str, Tensor],
    token_ids: npt.NDArray[np.int32],
    base: ModelInfo,
    kinds: Mapping[str, MatrixType],
    provenance: Mapping[str, str | int | float],
) -> None:
    """Write ``target``, without calibration; it appears under its name only when complete.

    Args:
        target: the heads file.
        config: what was trained.
        weights: module tensors by name, float.
        token_ids: the token of each output row.
        base: the model they were trained for.
        kinds: type of the matrices: ``output.weight`` and, as ``block``, of all others.
        provenance: what becomes ``medusa.training.*``.

    Raises:
        HeadsError: when the file cannot be written; nothing is left behind.
    """
    tensors = {_final_name(name): weight.float().numpy() for name, weight in weights.items()}
    types = {name: kinds.get(name, kinds["block"]) for name in tensors}
    numbers = {}
    if config.variant == "conditioned":
        numbers = {"hidden_length": config.num_hidden, "window": config.window}
        if config.window:
            numbers["window_length"] = WINDOW_WIDTH
    sidecar = Sidecar(
        variant=config.variant,
        num_heads=config.num_heads,
        output="own",
        tensors=tensors,
        token_ids=token_ids,
        numbers=numbers,
        provenance=provenance,
    )
    by_name = {name: gguf.GGMLQuantizationType[kind] for name, kind in types.items()}
    write(target, sidecar, base, by_name)


def _final_name(name: str) -> str:
    if name in _NAMES:
        return _NAMES[name]
    _, head, kind = name.split(".")  # blocks.{head}.weight or .bias
    return f"head.{head}.block.0.{kind}"
