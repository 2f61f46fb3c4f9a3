"""One set of heads being trained: optimiser, schedule, rounding, checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from gorgon.errors import TrainingError
from gorgon.training.batches import Batch
from gorgon.training.heads import HeadsConfig, make_heads
from gorgon.training.loss import DEPTH_DECAY, mixed_loss
from gorgon.training.quantisation import MatrixType, train_rounded
from gorgon.training.whole_file import write_whole


@dataclass(frozen=True, slots=True)
class Schedule:
    """How fast, how long, and from which share of the steps on with rounded matrices."""

    num_steps: int
    learning_rate: float = 1e-3
    warm_up: int = 100
    rounded_from: float = 0.5
    kind: MatrixType = "Q4_0"

    def rate(self, step: int) -> float:
        """Linear warm-up, then a cosine to zero."""
        warm = min(1.0, (step + 1) / min(self.warm_up, max(1, self.num_steps // 10)))
        return self.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / self.num_steps))


class Trainer:
    """Trains heads on batches; ``step`` counts those seen, ``rounded``
    says whether matrices are seen rounded by now.

    Args:
        config: which heads.
        schedule: see ``Schedule``.
        embedding: the base's token embeddings, [num_vocab, num_embd], in the type to compute in.
        output: the base's output rows for the token map, [num_outputs, num_embd].
    """

    def __init__(
        self, config: HeadsConfig, schedule: Schedule, embedding: Tensor, output: Tensor
    ) -> None:
        device = embedding.device
        self.config, self.schedule, self.step = config, schedule, 0
        self.embedding, self._base_output = embedding, output.to(embedding.dtype)
        self.heads = make_heads(config, output).to(device)
        on_gpu = device.type == "cuda"
        self._optimiser = torch.optim.AdamW(
            self.heads.parameters(), betas=(0.9, 0.98), weight_decay=0.01, fused=True
        )
        self._loss: Callable[..., Tensor] = torch.compile(mixed_loss) if on_gpu else mixed_loss
        self.rounded = False

    def learn(self, batch: Batch) -> Tensor:
        """One step; the mean loss, on the device."""
        self._round_if_due()
        for group in self._optimiser.param_groups:
            group["lr"] = self.schedule.rate(self.step)
        loss = self.loss(batch)
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.heads.parameters(), 1.0)
        self._optimiser.step()
        self.step += 1
        return loss.detach()

    def loss(self, batch: Batch) -> Tensor:
        """The mean over positions of the loss of all depths, the k-th weighted 0.8^k."""
        count = self.config.num_heads
        before = self.config.num_before
        dtype = self.embedding.dtype
        skipped = batch.hidden.shape[1] - 1 - before
        on_halves = torch.autocast(self.embedding.device.type, torch.bfloat16, self._is_half)
        with on_halves, parametrize.cached():  # rounded once, not at every depth
            states = self.heads.states(
                batch.hidden[:, : 1 + before].to(dtype), batch.tokens[:, skipped:], self.embedding
            )
            logits = self.heads.output(states.flatten(0, 1))
        with torch.no_grad():
            teacher = batch.later[:count].flatten(0, 1).to(dtype) @ self._base_output.T
        decay = DEPTH_DECAY ** torch.arange(count, device=logits.device)
        known = batch.known[:count]
        weights = (decay[:, None] * known).flatten() / known[0].sum().clamp(min=1)
        return self._loss(logits, batch.targets[:count].flatten(), teacher, weights)

    @property
    def _is_half(self) -> bool:
        return self.embedding.dtype == torch.bfloat16

    def _round_if_due(self) -> None:
        due = self.step >= self.schedule.rounded_from * self.schedule.num_steps
        if due and not self.rounded:
            train_rounded(self.heads, self.schedule.kind)
            self.rounded = True

    def weights(self) -> dict[str, Tensor]:
        """The trained tensors by module name, not rounded, float32 on the CPU."""
        return {
            _plain_name(name): tensor.float().cpu()
            for name, tensor in self.heads.state_dict().items()
        }

    def save(self, path: Path, **more: Any) -> None:
        """Write a checkpoint with ``more``; it replaces an earlier one only when complete.

        Raises:
            TrainingError: when it cannot be written.
        """
        state = {"step": self.step, "heads": self.weights(), **more}
        state["optimiser"] = self._optimiser.state_dict()
        write_whole(path, lambda part: torch.save(state, part))

    def _load(self, weights: dict[str, Tensor]) -> None:
        """Set the tensors, by their names without rounding."""
        targets = self.heads.state_dict()
        plain = {_plain_name(name): tensor for name, tensor in targets.items()}
        assert plain.keys() == weights.keys()
        for name, tensor in plain.items():
            tensor.copy_(weights[name])
        self._round_if_due()

    def restore(self, path: Path) -> dict[str, Any]:
        """Go on from a checkpoint; returns what else it holds.

        Raises:
            TrainingError: when the file is damaged or of other heads.
        """
        try:
            state: dict[str, Any] = torch.load(path, self.embedding.device, weights_only=True)
            self.step = state.pop("step")
            self._load(state.pop("heads"))
            self._optimiser.load_state_dict(state.pop("optimiser"))
        except Exception as error:
            raise TrainingError(
                f"{path}: not a checkpoint of these heads; remove it to start training over"
            ) from error
        return state


def _plain_name(name: str) -> str:
    """The name of a tensor as it is without a parametrization around it."""
    return name.replace("parametrizations.weight.original", "weight")
