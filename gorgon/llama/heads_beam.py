"""Beam search below the roots in one graph, for devices where a call costs its way there and back.

At each depth the ``width`` likeliest guesses of a request, by the product of the probabilities
along their path, are what the next depth goes on from:

    p[k]   = top_k(softmax(output s[k+1])) times p of the beam       [top_k, beams, requests]
    chosen = top_k(p[k], width), over all beams of a request
    s, e   = rows ``chosen`` of the beams' states and of the guesses' embeddings

Knows how beams are chosen; what a block computes is its caller's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gorgon.backend import Ints
from gorgon.llama import ggml
from gorgon.llama.heads_graph import pick
from gorgon.llama.tensors import join, shape_of, type_of

MOST_BEAMS, MOST_ROWS = 4, 8  # of a request, and of several together: few rows cost as one


Places = npt.NDArray[np.intp]


def width_for(requests: int) -> int:
    """Beams of each request."""
    return max(1, min(MOST_BEAMS, MOST_ROWS // requests))


# Ids and probabilities of the next depth's guesses, and its state, from state and embedding
# [num_embd, rows] each; ids as integers or floats.
Block = Callable[[int, int], tuple[int, int, int]]


def build(
    context: int, embeddings: int, block: Block, start: tuple[int, int], depths: int
) -> Sequence[int]:
    """Add ``depths`` depths to ``context``, each going on from what the one before chose.

    Args:
        context: of the graph.
        embeddings: [num_embd, outputs], a row for each output of the heads.
        block: one depth.
        start: state and embedding of the roots, [num_embd, requests] each.
        depths: how many.

    Returns:
        One vector of floats, to be fetched at once. For each depth it holds ids and probabilities,
        [rows, top_k] each in NumPy's order; between two depths what is gone on from,
        [requests, width]: places among all guesses of a request.
    """
    (state, embedding), found = start, []
    num_embd, requests = shape_of(state)
    width, beams, above = width_for(requests), 1, 0
    for depth in range(depths):
        ids, probs, state = block(state, embedding)
        found += [ids, probs]
        if depth + 1 == depths:
            break
        top_k, rows = shape_of(ids)
        survivals = ggml.mul(context, probs, above) if depth else probs
        survivals = ggml.reshape_2d(context, survivals, top_k * beams, requests)
        chosen = ggml.top_k(context, survivals, width)
        found.append(chosen)
        flat = ggml.reshape_1d(context, ids, top_k * rows)
        guessed = ggml.get_rows(context, embeddings, _with_type(context, flat, ggml.TYPE_I32))
        states = ggml.reshape_3d(context, state, num_embd, 1, rows)
        repeated = ggml.repeat_4d(context, states, num_embd, top_k, rows, 1)
        embedding, state = (
            ggml.reshape_2d(
                context,
                ggml.get_rows(
                    context, ggml.reshape_3d(context, x, num_embd, top_k * beams, requests), chosen
                ),
                num_embd,
                width * requests,
            )
            for x in (guessed, repeated)
        )
        above = pick(context, survivals, chosen)
        above = ggml.reshape_3d(context, above, 1, 1, width * requests)
        beams = width
    return [join(context, [_flat(context, x) for x in found], 0)]


def _flat(context: int, x: int) -> int:
    size = ggml.nelements(x)
    return _with_type(context, ggml.reshape_2d(context, x, size, 1), ggml.TYPE_F32)


def _with_type(context: int, x: int, kind: int) -> int:
    return x if type_of(x) == kind else int(ggml.cast(context, x, kind))


class Rows(NamedTuple):
    """Those of one depth: ``width`` of each request, from ``start`` on."""

    start: int
    width: int


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the parts of what ``build`` returned lie in it.

    ``ids`` and ``probs`` have shape [rows of all depths, top_k], ``chosen`` [depths - 1, requests,
    width].
    """

    ids: Places
    probs: Places
    chosen: Places
    levels: tuple[Rows, ...]


@functools.cache
def layout(requests: int, depths: int, top_k: int) -> Layout:
    """That of a search about so many requests."""
    width, first, place = width_for(requests), 0, 0
    ids, probs, chosen, levels = list[Places](), list[Places](), list[Places](), list[Rows]()
    for depth in range(depths):
        beams = width if depth else 1
        levels.append(Rows(first, beams))
        first, size = first + requests * beams, requests * beams * top_k
        ids.append(np.arange(place, place + size))
        probs.append(ids[-1] + size)
        place += 2 * size
        if depth + 1 < depths:
            chosen.append(np.arange(place, place + requests * width))
            place += requests * width
    return Layout(
        np.concatenate(ids).reshape(-1, top_k),
        np.concatenate(probs).reshape(-1, top_k),
        np.array(chosen, np.intp).reshape(depths - 1, requests, width),
        tuple(levels),
    )


def locate(chosen: Ints, top_k: int) -> tuple[Ints, Ints]:
    """What each depth but the last went on from, [depths - 1, requests * width] twice.

    Args:
        chosen: [depths - 1, requests, width], as ``build`` gives it.
        top_k: guesses of each row.

    Returns:
        Rows of the depth, and places among the guesses there.
    """
    depths, requests, width = chosen.shape
    first = np.arange(requests, dtype=np.int32)[:, None] * np.ones(depths, np.int32)[:, None, None]
    first[1:] *= width  # beams of a request; at the roots there is one
    shape = depths, requests * width
    return (first + chosen // top_k).reshape(shape), (chosen % top_k).reshape(shape)
