"""The loop of a training: steps, looks at the held-out loss, checkpoints, when to stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch

from gorgon.training.batches import Batch
from gorgon.training.trainer import Trainer

_NUM_LOOKS = 20
_CHECKPOINT_SECONDS = 60.0


class Learning:
    """Trains until the schedule ends or the held-out loss has not fallen ``patience`` looks long.

    What is kept is the state of the best look. From where on matrices are rounded only looks
    after that count, as heads that never saw rounding would suffer from it in the file.
    ``best`` is the lowest held-out loss, infinite before the first look.
    """

    def __init__(self, trainer: Trainer, folder: Path, patience: int) -> None:
        self._trainer, self._patience = trainer, patience
        self._last, self._kept = folder / "last.pt", folder / "best.pt"
        self.best, self._misses, self._rounded = float("inf"), 0, False
        if self._last.exists():
            state = trainer.restore(self._last)
            self.best, self._misses = float(state["best"]), int(state["misses"])
            self._rounded = bool(state["rounded"])

    def run(
        self, batches: Iterator[Batch], held_out: Callable[[], Iterable[Batch]]
    ) -> Iterator[float]:
        """Train; yields the training loss at every look.

        Raises:
            TrainingError: when a checkpoint cannot be written.
        """
        try:
            yield from self._steps(batches, held_out)
        except (KeyboardInterrupt, GeneratorExit):  # Ctrl-C, here or in who takes what is yielded
            self._save(self._last)
            raise
        self._save(self._last)
        if self._kept.exists():
            self._trainer.restore(self._kept)

    def _steps(
        self, batches: Iterator[Batch], held_out: Callable[[], Iterable[Batch]]
    ) -> Iterator[float]:
        trainer, saved = self._trainer, time.monotonic()
        num_steps = trainer.schedule.num_steps
        interval = max(1, num_steps // _NUM_LOOKS)
        while trainer.step < num_steps and self._misses < self._patience:
            loss = trainer.learn(next(batches))
            if trainer.step % interval == 0 or trainer.step == num_steps:
                self._look(held_out())
                yield float(loss)
            if time.monotonic() - saved > _CHECKPOINT_SECONDS:
                self._save(self._last)
                saved = time.monotonic()

    def _look(self, batches: Iterable[Batch]) -> None:
        if self._trainer.rounded and not self._rounded:
            self.best, self._misses, self._rounded = float("inf"), 0, True
        with torch.no_grad():
            losses = [(float(self._trainer.loss(batch)), len(batch.tokens)) for batch in batches]
        loss = sum(loss * count for loss, count in losses) / sum(count for _, count in losses)
        self._misses = 0 if loss < self.best else self._misses + 1
        if loss < self.best:
            self.best = loss
            self._save(self._kept)

    def _save(self, path: Path) -> None:
        self._trainer.save(path, best=self.best, misses=self._misses, rounded=self._rounded)
