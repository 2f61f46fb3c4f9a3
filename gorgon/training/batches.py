"""From positions of a corpus to what heads learn from: states, tokens, targets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gorgon.training.corpus import Corpus


@dataclass(frozen=True, slots=True)
class Batch:
    """n positions.

    ``hidden`` [n, 1 + window, num_embd]: states at t, t - 1 ..., zeros before the last prompt
    token, as in serving. ``tokens`` [n, window + depths]: x[t + 1 - window] to x[t + depths].
    ``targets`` [depths, n]: row of the output matrix of the model's greedy choice for
    x[t + 2 + k], ``num_outputs`` where it has no row. ``known`` [depths, n]: whether the text
    reaches so far. ``later`` [depths, n, num_embd]: the states that gave those choices.
    """

    hidden: Tensor
    tokens: Tensor
    targets: Tensor
    known: Tensor
    later: Tensor


class Batches:
    """Makes batches of a corpus on a device.

    Args:
        corpus: texts and states.
        token_map: ids of the output matrix's rows.
        num_vocab: of the base model.
        window, depths: see ``Batch``.
        device: where batches go; the corpus' states may be there already.
    """

    def __init__(
        self,
        corpus: Corpus,
        token_map: npt.NDArray[np.int32],
        num_vocab: int,
        window: int,
        depths: int,
        device: torch.device,
    ) -> None:
        self._states, self._device = corpus.states, device
        self._window, self._depths = window, depths
        row_of = np.full(num_vocab, len(token_map), np.int64)
        row_of[token_map] = np.arange(len(token_map))
        self._row_of = torch.from_numpy(row_of).to(device)
        self._tokens = torch.from_numpy(np.array(corpus.tokens)).to(device)
        self._best = torch.from_numpy(np.array(corpus.best)).to(device)
        lengths = np.diff(corpus.starts)
        firsts = (corpus.starts[:-1] + corpus.given - 1).astype(np.int32)
        lasts = (corpus.starts[1:] - 1).astype(np.int32)
        self._firsts = torch.from_numpy(np.repeat(firsts, lengths)).to(device)
        self._lasts = torch.from_numpy(np.repeat(lasts, lengths)).to(device)

    def at(self, positions: Tensor) -> Batch:
        """The batch for ``positions`` [n], int64."""
        device = self._device
        positions = positions.to(device)
        first, last = self._firsts[positions][:, None], self._lasts[positions][:, None]
        before = positions[:, None] - torch.arange(self._window + 1, device=device)
        hidden = self._take(before.clamp(min=0)) * (before >= first)[..., None]
        around = torch.arange(1 - self._window, self._depths + 1, device=device)
        nearby = positions[:, None] + around
        ahead = positions[:, None] + torch.arange(1, self._depths + 1, device=device)
        known = ahead <= last
        ahead = ahead.minimum(last)
        return Batch(
            hidden=hidden,
            tokens=self._tokens[nearby.clamp(min=0).minimum(last)].long(),
            targets=self._row_of[self._best[ahead].long()].T,
            known=known.T,
            later=self._take(ahead).transpose(0, 1),
        )

    def _take(self, positions: Tensor) -> Tensor:
        if isinstance(self._states, Tensor):
            return self._states[positions]
        rows = self._states[positions.cpu().numpy()]
        return torch.from_numpy(np.asarray(rows)).to(self._device, non_blocking=True)


def shuffled(
    positions: npt.NDArray[np.int64], size: int, seed: int, skip: int = 0
) -> Iterator[Tensor]:
    """Batches of positions without end, every position once per epoch, after ``skip`` batches."""
    per_epoch = max(1, len(positions) // size)
    epoch, skip = divmod(skip, per_epoch)
    while True:
        order = np.random.default_rng([seed, epoch]).permutation(len(positions))
        for i in range(skip, per_epoch):
            yield torch.from_numpy(positions[order[i * size : (i + 1) * size]])
        epoch, skip = epoch + 1, 0


def frequent_tokens(
    best: npt.NDArray[np.int32], num_vocab: int, count: int
) -> npt.NDArray[np.int32]:
    """The ``count`` ids that the model chose most often, most frequent first."""
    frequency = np.bincount(best, minlength=num_vocab)
    return np.argsort(-frequency, kind="stable")[:count].astype(np.int32)
