"""How far a quantised model is from its original: perplexity, KL divergence, top-1 agreement.

Knows logits only. Both models read the same windows of a text; the original's log probabilities
lie in a file, one F32 row of the vocabulary a token, of which a few rows are in memory at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from gorgon.backend import Floats

WINDOW = 256  # tokens that see each other
_BLOCK = 32  # rows of logits in memory at a time, in F64
Decode = Callable[[Sequence[int]], Floats]


@dataclass(frozen=True, slots=True)
class Quality:
    """Means over the scored tokens; natural logarithms.

    ``kl_divergence`` is KL(original || this model), ``top1_agreement`` the fraction of tokens
    where both find the same token likeliest; None for the original itself.
    """

    num_tokens: int
    perplexity: float
    kl_divergence: float | None = None
    top1_agreement: float | None = None


def windows(ids: Sequence[int], bos: int | None, num_tokens: int) -> list[list[int]]:
    """Windows of at most ``WINDOW`` tokens, BOS first where the model has one.

    Args:
        ids: the text, no special tokens.
        bos: the beginning-of-sequence token.
        num_tokens: tokens of the text to use, at most.
    """
    first = [] if bos is None else [bos]
    step = WINDOW - len(first)
    used = ids[:num_tokens]
    parts = [first + list(used[start : start + step]) for start in range(0, len(used), step)]
    return [part for part in parts if len(part) > 1]


def score(
    texts: Sequence[list[int]],
    decode: Decode,
    num_vocab: int,
    reference: Path,
    mode: Literal["write", "compare"],
    on_progress: Callable[[float], None],
) -> Quality:
    """Score a model on ``texts``.

    Args:
        texts: from ``windows``.
        decode: logits [tokens, num_vocab] of a window, valid until its next call.
        num_vocab: width of the logits.
        reference: the file of log probabilities.
        mode: ``write`` it (the original) or ``compare`` with it.
        on_progress: called with the fraction of windows done.
    """
    count = sum(len(text) - 1 for text in texts)
    how: Literal["w+", "r"] = "w+" if mode == "write" else "r"
    rows = np.memmap(reference, np.float32, how, shape=(count, num_vocab))
    loss = divergence = agreed = 0.0
    for at, target, own in _scored(texts, decode, on_progress):
        loss -= float(own[np.arange(len(own)), target].sum())
        if mode == "write":
            rows[at : at + len(own)] = own
        else:
            theirs = rows[at : at + len(own)].astype(np.float64)
            divergence += float(np.sum(np.exp(theirs) * (theirs - own)))
            agreed += float(np.sum(theirs.argmax(-1) == own.argmax(-1)))
    if mode == "write":
        rows.flush()
        return Quality(count, math.exp(loss / count))
    return Quality(count, math.exp(loss / count), max(0.0, divergence / count), agreed / count)


def _scored(
    texts: Sequence[list[int]], decode: Decode, on_progress: Callable[[float], None]
) -> Iterator[tuple[int, npt.NDArray[np.int64], npt.NDArray[np.float64]]]:
    """Blocks of (row number, the tokens that came, log probabilities [rows, vocabulary])."""
    at = 0
    for index, text in enumerate(texts):
        logits, target = decode(text), np.array(text[1:], np.int64)
        for start in range(0, len(target), _BLOCK):
            block = log_softmax(logits[start : min(start + _BLOCK, len(target))])
            # As the file holds them, so that a model compared with itself is at distance 0.
            rounded = block.astype(np.float32).astype(np.float64)
            yield at + start, target[start : start + _BLOCK], rounded
        at += len(target)
        on_progress((index + 1) / len(texts))


def log_softmax(logits: Floats) -> npt.NDArray[np.float64]:
    """Log probabilities, shape as given, in double precision."""
    shifted = logits - logits.max(-1, keepdims=True).astype(np.float64)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)), np.float64)
