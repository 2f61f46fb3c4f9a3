"""The loss of one depth: cross-entropy to the model's greedy token and to its distribution."""

from __future__ import annotations

import torch
from torch import Tensor

HARD_SHARE = 0.8  # measured: docs/training.md
DEPTH_DECAY = 0.8  # Medusa, section 2.2.1


def mixed_loss(logits: Tensor, targets: Tensor, teacher: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum over rows of 0.8 hard plus 0.2 soft cross-entropy.

    Args:
        logits: the heads', [rows, outputs].
        targets: the greedy token's row of the output matrix, ``outputs`` where it has none, [rows].
        teacher: the model's own logits for the same outputs, [rows, outputs].
        weights: of each row; 0 where nothing is known, [rows].
    """
    logits = logits.float()
    num_outputs = logits.shape[1]
    log_total = logits.logsumexp(-1)
    known = (targets < num_outputs).float()
    picked = logits.gather(1, targets.clamp(max=num_outputs - 1)[:, None])[:, 0]
    soft = torch.softmax(teacher.float(), -1)
    expected = (soft * logits).sum(-1)
    hard_loss = (log_total - picked) * known
    soft_loss = log_total - expected
    return ((HARD_SHARE * hard_loss + (1 - HARD_SHARE) * soft_loss) * weights).sum()
