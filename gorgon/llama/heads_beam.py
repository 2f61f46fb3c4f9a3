"""Beam search below the roots in one graph, for devices where a call costs its way there and back.

At each depth the ``width`` likeliest guesses of a request, by the product of the probabilities
along their path, are what the next depth goes on from:

    p[k]   = top_k(softmax(output s[k+1])) * p of the beam          [top_k, beams, requests]
    chosen = top_k(p[k], width), over all beams of a request
    s, e   = rows ``chosen`` of the beams' states and of the guesses' embeddings

Knows how beams are chosen; what a block computes is its caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from gorgon.backend import Ints
from gorgon.llama import ggml
from gorgon.llama.heads_graph import best
from gorgon.llama.tensors import shape_of

MOST_BEAMS, MOST_ROWS = (
    4,
    8,
)  # of a request, and of all where there are several: few rows cost as one


def width_for(requests: int) -> int:
    """Beams of each request."""
    return max(1, min(MOST_BEAMS, MOST_ROWS // requests))


# Logits and state of the next depth from state [num_embd, rows] and embedding, same shape.
Block = Callable[[int, int], tuple[int, int]]


def build(
    context: int, embeddings: int, block: Block, start: tuple[int, int], depths: int, top_k: int
) -> Sequence[int]:
    """Add ``depths`` depths to ``context``, each going on from what the one before chose.

    Args:
        context: of the graph.
        embeddings: [num_embd, outputs], a row for each output of the heads.
        block: one depth.
        start: state and embedding of the roots, [num_embd, requests] each.
        depths: how many.
        top_k: guesses of each beam.

    Returns:
        For each depth ids and probabilities, [top_k, beams * requests] each; between two depths
        what is gone on from, [width, requests]: rank-less places among all guesses of a request.
    """
    (state, embedding), outputs = start, []
    num_embd, requests = shape_of(state)
    width, beams, above = width_for(requests), 1, 0
    for depth in range(depths):
        logits, state = block(state, embedding)
        ids, probs = best(context, logits, top_k)
        outputs += [ids, probs]
        if depth + 1 == depths:
            break
        survivals = ggml.mul(context, probs, above) if depth else probs
        count = top_k * beams
        chosen = ggml.top_k(context, ggml.reshape_2d(context, survivals, count, requests), width)
        outputs.append(chosen)
        flat = ggml.reshape_1d(context, ids, count * requests)
        guessed = ggml.get_rows(context, embeddings, flat)
        states = ggml.reshape_3d(context, state, num_embd, 1, beams * requests)
        repeated = ggml.repeat_4d(context, states, num_embd, top_k, beams * requests, 1)

        def pick(tensor: int, size: int, chosen: int = chosen, count: int = count) -> int:
            """Rows ``chosen`` of ``tensor``, which has one for each guess, [size, beams]."""
            rows = ggml.reshape_3d(context, tensor, size, count, requests)
            return int(ggml.get_rows(context, rows, chosen))

        beams = width
        embedding = ggml.reshape_2d(context, pick(guessed, num_embd), num_embd, beams * requests)
        state = ggml.reshape_2d(context, pick(repeated, num_embd), num_embd, beams * requests)
        above = ggml.reshape_3d(context, pick(survivals, 1), 1, 1, beams * requests)
    return outputs


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
