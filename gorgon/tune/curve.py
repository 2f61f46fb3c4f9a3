"""What t(n) is worth: tokens a second to be expected from it, alone and in company."""

from __future__ import annotations

import math

import numpy as np

from gorgon.speculation.cost import StepCost, StepTimes

# Tokens a step that a greedy tree of n nodes yields with released Medusa heads (Vicuna-7B).
_NODES = (1, 2, 3, 4, 6, 8, 16, 32, 64)
_YIELD = (1.0, 1.56, 1.74, 1.85, 1.96, 2.04, 2.21, 2.32, 2.38)
_CONTEXT = 512
_COMPANY = 8


def single_rate(times: StepTimes) -> float:
    """Tokens a second of one request whose trees are as large as pays."""
    seconds = StepCost(times, 64).seconds(_CONTEXT)[1:]
    yields = np.interp(np.arange(1, 65), _NODES, _YIELD)
    return float((yields / seconds).max())


def batch_rate(times: StepTimes) -> float:
    """Tokens a second of eight requests without drafts."""
    return float(_COMPANY / StepCost(times, 64).seconds(_CONTEXT)[_COMPANY])


def score(times: StepTimes) -> float:
    """One number to compare settings by: the geometric mean of both rates."""
    return math.sqrt(single_rate(times) * batch_rate(times))


def fixed_sizes(times: StepTimes, change: float, captures_graphs: bool) -> tuple[int, ...]:
    """Batch sizes to keep to where graphs are captured and cost a tenth of a step; else none.

    They grow by a half, so that filling one up costs little. On a processor a change costs that
    much, too, but there a choice at every step gains more than it loses by changes.
    """
    if not captures_graphs or change < 0.1 * float(times.seconds[0][0]):
        return ()
    return (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
