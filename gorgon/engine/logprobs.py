"""Log-probabilities of the tokens that a step gave, from the model's own logits.

Costs a pass over the vocabulary for every token, so it is done only for requests that ask.
"""

from __future__ import annotations

import numpy as np

from gorgon.backend import Floats
from gorgon.request import TokenLogprob
from gorgon.speculation.acceptance import log_softmax


def token_logprob(logits: Floats, token: int, num_top: int) -> TokenLogprob:
    """How likely ``token`` was by ``logits`` [num_vocab], beside the ``num_top`` likeliest."""
    logs = log_softmax(logits, 1.0)
    return TokenLogprob(token, float(logs[token]), _top(logs, num_top))


def _top(logs: Floats, count: int) -> tuple[tuple[int, float], ...]:
    if count == 0:
        return ()
    count = min(count, len(logs))
    likeliest = np.argpartition(-logs, count - 1)[:count]
    ranked = likeliest[np.lexsort((likeliest, -logs[likeliest]))]
    return tuple((int(token), float(logs[token])) for token in ranked)
