"""Which drafted tokens are kept: walking a tree with the model's own draws or typical acceptance.

Knows trees and numbers, not models: what it needs to draw or to weigh a token is passed in.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gorgon.speculation.tree import DraftTree

Floats = npt.NDArray[np.float32]


class Accepted(NamedTuple):
    """The outcome of one tree.

    ``path`` holds the nodes to keep, root first. ``tokens`` are the new tokens, ``len(path)`` of
    them unless the walk was stopped: the accepted drafts ``path[1:]`` and then ``bonus`` drawn
    from the logits of the last node on the path, the root of the next tree.
    """

    path: tuple[int, ...]
    tokens: tuple[int, ...]

    @property
    def num_drafts(self) -> int:
        """How many drafted tokens were accepted."""
        return len(self.path) - 1


def accept_lossless(
    tree: DraftTree, draw: Callable[[int], int], is_last: Callable[[int, int], bool]
) -> Accepted:
    """Walk down from the root; step to a child when it holds the token that the model draws.

    Every token is drawn from the model's own distribution given all tokens before it, so the
    output has that distribution whatever was drafted (the drafts only decide how many draws one
    forward pass serves). With a greedy ``draw`` this is exact-match verification.

    Args:
        tree: the drafts, with the model's logits of every node at hand.
        draw: ``draw(node)`` gives the next token after ``node``; called once per kept node.
        is_last: ``is_last(token, count)`` tells whether ``token``, the ``count``-th new token of
            this step, ends the request: nothing is drawn after it.
    """
    path, tokens, node = [0], [], 0
    while True:
        token = draw(node)
        tokens.append(token)
        child = tree.child_with(node, token)
        if child is None or is_last(token, len(tokens)):
            return Accepted(tuple(path), tuple(tokens))
        path.append(child)
        node = child


def accept_typical(
    tree: DraftTree,
    log_probs: Callable[[int], Floats],
    draw: Callable[[int], int],
    observe: Callable[[int], None],
    is_last: Callable[[int, int], bool],
    *,
    epsilon: float,
    alpha: float,
) -> Accepted:
    """Typical acceptance (Medusa, section 2.3.1): not lossless, accepts what is plausible.

    A child is plausible when ``p(child) > min(epsilon, alpha * exp(-H(p)))`` with p the model's
    distribution at its parent and H its entropy. The longest plausible path wins, ties go to the
    likelier one; the token after it is drawn by ``draw``.

    Args:
        tree: the drafts.
        log_probs: log-probabilities over the vocabulary, shape [num_vocab], at a node.
        draw: draws the token after a node.
        observe: tells the sampler about an accepted token that it did not draw itself.
        is_last: see ``accept_lossless``.
        epsilon: upper bound of the threshold.
        alpha: scale of the entropy-dependent threshold.
    """
    best = _longest_plausible(tree, log_probs, epsilon, alpha)
    path, tokens = [0], []
    for node in best[1:]:
        token = tree.tokens[node]
        tokens.append(token)
        observe(token)
        if is_last(token, len(tokens)):
            return Accepted(tuple(path), tuple(tokens))
        path.append(node)
    tokens.append(draw(path[-1]))
    return Accepted(tuple(path), tuple(tokens))


def _longest_plausible(
    tree: DraftTree, log_probs: Callable[[int], Floats], epsilon: float, alpha: float
) -> tuple[int, ...]:
    """The path of the deepest plausible node; the likeliest of several."""
    shape = tree.shape
    likelihood: dict[int, float] = {0: 0.0}
    for node in range(len(shape)):
        if node not in likelihood or not shape.children[node]:
            continue
        logs = log_probs(node)
        bar = min(epsilon, alpha * math.exp(-entropy(logs)))
        for child in shape.children[node]:
            log_p = float(logs[tree.tokens[child]])
            if math.exp(log_p) > bar:
                likelihood[child] = likelihood[node] + log_p
    best = max(likelihood, key=lambda node: (shape.depths[node], likelihood[node]))
    return shape.path_to(best)


def log_softmax(logits: Floats, temperature: float) -> Floats:
    """Log-probabilities of ``logits`` [num_vocab] at ``temperature`` > 0."""
    scaled = logits / np.float32(temperature)
    scaled -= scaled.max()
    scaled -= np.log(np.exp(scaled).sum())
    return scaled


def entropy(log_probs: Floats) -> float:
    """Entropy in nats of log-probabilities [num_vocab]; tokens of probability 0 count nothing."""
    probs = np.exp(log_probs)
    return float(-np.sum(probs * np.where(probs > 0, log_probs, 0)))
