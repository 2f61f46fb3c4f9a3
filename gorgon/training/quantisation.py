"""Training with quantised weights: the forward pass sees Q4_0 values, gradients pass through."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

MatrixType = Literal["F16", "Q8_0", "Q4_0"]
_BLOCK = 32


def round_to(weight: Tensor, kind: MatrixType) -> Tensor:
    """``weight`` [outputs, inputs] as ggml's quantiser would store it, float32.

    Blocks of 32 along the inputs (ggml-quants.c: quantize_row_q4_0_ref, quantize_row_q8_0_ref).
    """
    if kind == "F16":
        return weight.half().float()
    blocks = weight.float().unflatten(-1, (-1, _BLOCK))
    if kind == "Q8_0":
        scale = blocks.abs().amax(-1, keepdim=True) / 127
        levels = (blocks * _inverse(scale)).round()
    else:
        peak = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))
        scale = peak / -8
        levels = (blocks * _inverse(scale) + 8.5).floor().clamp(0, 15) - 8
    return (levels * scale.half().float()).flatten(-2)


def _inverse(scale: Tensor) -> Tensor:
    return torch.where(scale == 0, 0.0, 1.0 / scale)


class _Rounded(nn.Module):
    """Straight-through estimator (Bengio et al., 2013)."""

    def __init__(self, kind: MatrixType) -> None:
        super().__init__()
        self._kind: MatrixType = kind

    def forward(self, weight: Tensor) -> Tensor:
        with torch.no_grad():
            shift = round_to(weight, self._kind) - weight
        return weight + shift


def train_rounded(module: nn.Module, kind: MatrixType) -> None:
    """From here on all matrices of ``module`` are seen rounded to ``kind``."""
    for part in module.modules():
        if isinstance(part, nn.Linear) and not parametrize.is_parametrized(part):
            parametrize.register_parametrization(part, "weight", _Rounded(kind), unsafe=True)
