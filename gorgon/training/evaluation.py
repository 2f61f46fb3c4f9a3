"""How good heads are on texts that they were not trained on, and what their confidence is worth.

Everything is measured on greedy answers of the model itself: "right" is the token that came.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gorgon.training.batches import Batches
from gorgon.training.calibration import Calibration
from gorgon.training.corpus import Corpus
from gorgon.training.heads import Heads

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Longs = npt.NDArray[np.int64]

NUM_RANKS = 10
_BEAM = 4
_CHILDREN = 8
_CHUNK = 1024


@dataclass(frozen=True, slots=True)
class Survey:
    """What heads guess on paths that are right so far.

    ``confidence`` and ``right`` have shape [depths, positions, NUM_RANKS], likeliest first;
    ``known`` [depths, positions]: whether the text reaches so far.
    """

    confidence: Floats
    right: Bools
    known: Bools

    def accuracy(self) -> Floats:
        """Share of positions where one of the first 1 to NUM_RANKS guesses is right, per depth."""
        hits = self.right.cumsum(-1) > 0
        counts = self.known.sum(-1, keepdims=True)
        return np.asarray((hits & self.known[..., None]).sum(1) / np.maximum(counts, 1))

    def accepted(self, length: int) -> Longs:
        """Right tokens of a chain of ``length`` first guesses, at each position."""
        first = (self.right[:length, :, 0] & self.known[:length]).astype(np.int64)
        return np.asarray(first.cumprod(0).sum(0))


@dataclass(frozen=True, slots=True)
class Subject:
    """Heads with the base model's embeddings that they read, and the tokens of their rows."""

    heads: Heads
    embedding: Tensor
    token_ids: Tensor


@torch.no_grad()
def survey(subject: Subject, batches: Batches, positions: Longs) -> Survey:
    """The heads' guesses at all ``positions``, which ``batches`` must be made for."""
    confidences, rights, knowns = [], [], []
    for chunk in torch.from_numpy(positions).split(_CHUNK):
        batch = batches.at(chunk)
        hidden = batch.hidden.to(subject.embedding.dtype)
        states = subject.heads.states(hidden, batch.tokens, subject.embedding)
        probs = torch.softmax(subject.heads.output(states).float(), -1)
        best = probs.topk(NUM_RANKS, -1)
        right = best.indices == batch.targets[..., None]
        confidences.append(best.values.cpu().numpy())
        rights.append((right & batch.known[..., None]).cpu().numpy())
        knowns.append(batch.known.cpu().numpy())
    return Survey(
        np.concatenate(confidences, 1).astype(np.float64),
        np.concatenate(rights, 1),
        np.concatenate(knowns, 1),
    )


@torch.no_grad()
def accepted_by_trees(
    subject: Subject,
    batches: Batches,
    positions: Longs,
    calibration: Sequence[Calibration],
    sizes: Sequence[int],
) -> dict[int, Longs]:
    """Right tokens at each position of a tree of so many tokens, the root counted in its size.

    A tree holds the nodes of highest survival among those that a beam of 4 finds.
    """
    maps = [_to_tensors(knots, subject.embedding.device) for knots in calibration]
    found: dict[int, list[Tensor]] = {size: [] for size in sizes}
    for chunk in torch.from_numpy(positions).split(_CHUNK // _BEAM):
        survival, right = _grow(subject, batches, chunk, maps)
        order = survival.argsort(-1, descending=True)
        ranked = right.gather(1, order).cumsum(-1).cpu()
        for size in sizes:
            found[size].append(ranked[:, size - 2])
    return {size: torch.cat(counts).numpy() for size, counts in found.items()}


def tokens_per_step(corpus: Corpus, texts: Longs, accepted: Longs) -> float:
    """Tokens that one step yields when whole answers are generated, one more than accepted.

    Args:
        corpus: the answers.
        texts: which of them.
        accepted: at ``corpus.positions(texts)``, drafted tokens that were right.
    """
    lengths = corpus.starts[texts + 1] - corpus.starts[texts] - corpus.given[texts]
    steps, begin = 0, 0
    for length in np.maximum(lengths, 0).tolist():
        at = 0
        while at < length:
            at += int(accepted[begin + at]) + 1
            steps += 1
        begin += length
    return float(lengths.sum() / max(steps, 1))


def _grow(
    subject: Subject, batches: Batches, positions: Tensor, maps: Sequence[tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """Survival of all nodes that a beam finds, and which are right, [positions, nodes]."""
    heads, embedding = subject.heads, subject.embedding
    batch = batches.at(positions)
    count, before = len(positions), heads.config.num_before
    state, carried = heads.start(
        batch.hidden.to(embedding.dtype), batch.tokens[:, :before], embedding
    )
    states, tokens = state[:, None], batch.tokens[:, before, None]
    path = torch.ones(count, 1, device=state.device)
    is_right = torch.ones_like(path, dtype=torch.bool)
    survivals, rights = [], []
    for depth, knots in enumerate(maps):
        width = states.shape[1]
        shared = None if carried is None else carried.repeat_interleave(width, 0)
        deeper = heads.deepen(states.flatten(0, 1), shared, tokens.flatten(), embedding, depth)
        probs = torch.softmax(heads.output(deeper).float(), -1)
        best = probs.topk(_CHILDREN, -1)
        survival = (
            path[..., None] * _mapped(best.values, knots).unflatten(0, (count, width))
        ).flatten(1)
        target = batch.targets[depth, :, None, None]
        same = best.indices.unflatten(0, (count, width)) == target
        right = (same & is_right[..., None] & batch.known[depth, :, None, None]).flatten(1)
        survivals.append(survival)
        rights.append(right)
        path, kept = survival.topk(min(_BEAM, survival.shape[1]), -1)
        is_right = right.gather(1, kept)
        tokens = subject.token_ids[best.indices].view(count, -1).gather(1, kept)
        rows = torch.arange(count, device=kept.device)[:, None]
        states = deeper.unflatten(0, (count, width))[rows, kept // _CHILDREN]
    return torch.cat(survivals, 1), torch.cat(rights, 1).long()


def _to_tensors(knots: Calibration, device: torch.device) -> tuple[Tensor, Tensor]:
    x = torch.from_numpy(knots.x).float().to(device)
    return x, torch.from_numpy(knots.y).float().to(device)


def _mapped(values: Tensor, knots: tuple[Tensor, Tensor]) -> Tensor:
    """``Calibration`` on tensors."""
    x, y = knots
    right = torch.searchsorted(x, values.contiguous()).clamp(1, len(x) - 1)
    left = right - 1
    share = (values - x[left]) / (x[right] - x[left])
    return y[left] + share.clamp(0, 1) * (y[right] - y[left])
