"""Beam search below the roots in one graph, for devices where a call costs its way there and back.

At each depth the ``width`` likeliest guesses of a request, by the product of the probabilities
along their path, are what the next depth goes on from:

    p[k]   = top_k(softmax(output s[k+1])) times p of the beam       [top_k, beams, requests]
    chosen = top_k(p[k], width), over all beams of a request
    s, e   = rows ``chosen`` of the beams' states and of the guesses' embeddings

Knows how beams are chosen; what a block computes is its caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from gorgon.backend import Floats, Ints
from gorgon.llama import ggml
from gorgon.llama.heads_graph import pick
from gorgon.llama.tensors import join, shape_of, type_of

MOST_BEAMS, MOST_ROWS = (
    4,
    8,
)  # of a request, and of all where there are several: few rows cost as one


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


def split(found: Floats, requests: int, depths: int, top_k: int) -> Iterator[Floats]:
    """The parts of what ``build`` returned, flat, in order."""
    width = width_for(requests)
    for depth in range(depths):
        rows = requests * (width if depth else 1)
        for size in (rows * top_k, rows * top_k, requests * width if depth + 1 < depths else 0):
            part, found = found[:size], found[size:]
            if size:
                yield part


def locate(chosen: Ints, beams: int, top_k: int) -> tuple[Ints, Ints]:
    """What a depth went on from: rows of the depth above, and places among the guesses there.

    Args:
        chosen: [requests, width], as ``build`` gives it.
        beams: rows that each request had above.
        top_k: guesses of each row.

    Returns:
        Two arrays of shape [requests * width].
    """
    first = beams * np.arange(len(chosen), dtype=np.int32)[:, None]
    return (first + chosen // top_k).ravel(), (chosen % top_k).ravel()
