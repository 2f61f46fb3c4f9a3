"""Attention of one new token per slot over a cache of keys and values, slots of any length.

A Triton kernel on CUDA, where each slot reads only the cells that it has; plain PyTorch elsewhere.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # PyTorch's CPU wheels come without it
    triton = None

_BLOCK = 128
_MIN_ROWS = 16  # the smallest tile that tl.dot takes


def attend(queries: Tensor, keys: Tensor, values: Tensor, lengths: Tensor) -> Tensor:
    """Softmax attention of each slot's one query over its first ``lengths`` cells.

    Args:
        queries: [slots, heads, width]; heads share keys in groups, in order.
        keys: [slots, kv_heads, cells, width], and ``values`` alike, contiguous.
        lengths: cells seen by each slot, at least 1, int32 [slots].

    Returns:
        [slots, heads, width], of the type of ``queries``.
    """
    if queries.is_cuda and triton is not None:
        return attend_with_triton(queries, keys, values, lengths)
    return attend_with_torch(queries, keys, values, lengths)


def attend_with_torch(queries: Tensor, keys: Tensor, values: Tensor, lengths: Tensor) -> Tensor:
    """``attend`` by dense products over all cells."""
    slots, heads, width = queries.shape
    kv_heads, cells = keys.shape[1:3]
    grouped = queries.view(slots, kv_heads, heads // kv_heads, width)
    scores = (grouped @ keys.transpose(-1, -2)).float() * width**-0.5
    hidden = torch.arange(cells, device=lengths.device) >= lengths[:, None]
    scores = scores.masked_fill(hidden[:, None, None], float("-inf"))
    mixed = torch.softmax(scores, -1).to(values.dtype) @ values
    return mixed.reshape(slots, heads, width)


def attend_with_triton(queries: Tensor, keys: Tensor, values: Tensor, lengths: Tensor) -> Tensor:
    """``attend`` with one program per slot and key head; reads each visible cell once."""
    slots, heads, width = queries.shape
    kv_heads, cells = keys.shape[1:3]
    out = torch.empty_like(queries)
    group = heads // kv_heads
    _attend_kernel[(slots, kv_heads)](
        queries.contiguous(),
        keys,
        values,
        lengths,
        out,
        width**-0.5,
        cells,
        kv_heads,
        GROUP=group,
        ROWS=max(_MIN_ROWS, triton.next_power_of_2(group)),
        WIDTH=width,
        BLOCK=_BLOCK,
    )
    return out


def _attend_program(  # type: ignore[no-untyped-def]
    queries,
    keys,
    values,
    lengths,
    out,
    scale,
    cells,
    kv_heads,
    GROUP: tl.constexpr,  # noqa: N803
    ROWS: tl.constexpr,  # noqa: N803
    WIDTH: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
):
    """Online softmax over blocks of cells (FlashAttention, Dao et al., 2022)."""
    pair = tl.program_id(0).to(tl.int64) * kv_heads + tl.program_id(1)
    length = tl.load(lengths + tl.program_id(0))
    rows, lanes = tl.arange(0, ROWS), tl.arange(0, WIDTH)
    places = pair * GROUP * WIDTH + rows[:, None] * WIDTH + lanes[None, :]
    query = tl.load(queries + places, mask=rows[:, None] < GROUP, other=0.0)
    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    mixed = tl.zeros([ROWS, WIDTH], tl.float32)
    for start in range(0, length, BLOCK):
        cell = start + tl.arange(0, BLOCK)
        seen = cell < length
        cell_places = pair * cells * WIDTH + cell[:, None] * WIDTH + lanes[None, :]
        key = tl.load(keys + cell_places, mask=seen[:, None], other=0.0)
        score = tl.dot(query, tl.trans(key)) * scale
        score = tl.where(seen[None, :], score, float("-inf"))
        new_top = tl.maximum(top, tl.max(score, 1))
        shrink = tl.exp(top - new_top)
        weight = tl.exp(score - new_top[:, None])
        value = tl.load(values + cell_places, mask=seen[:, None], other=0.0)
        mixed = mixed * shrink[:, None] + tl.dot(weight.to(value.dtype), value)
        total = total * shrink + tl.sum(weight, 1)
        top = new_top
    result = (mixed / total[:, None]).to(out.dtype.element_ty)
    tl.store(out + places, result, mask=rows[:, None] < GROUP)


_attend_kernel: Any = triton.jit(_attend_program) if triton is not None else None
