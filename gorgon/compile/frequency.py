"""Which tokens a text has most of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from gorgon.config import EngineSettings
from gorgon.errors import HeadsError
from gorgon.llama.model import Model

_PIECE = 1 << 20  # characters tokenised at a time

Ints = npt.NDArray[np.int64]


def count_tokens(base: Path, text: Path, num_vocab: int) -> tuple[Ints, frozenset[int]]:
    """How often each token occurs in ``text``, shape [num_vocab], and the end tokens of the model.

    Raises:
        HeadsError: when the text cannot be read, is no UTF-8, or is empty.
        ModelError: when the base cannot be loaded.
    """
    counts = np.zeros(num_vocab, np.int64)
    model = Model(EngineSettings(gpu_layers=0), base)
    try:
        with text.open(encoding="utf-8") as file:
            while piece := file.read(_PIECE):
                ids = model.tokenize(piece, add_special=False, parse_special=False)
                counts += np.bincount(ids, minlength=num_vocab)
        eog_ids = model.eog_ids
    except OSError as error:
        raise HeadsError(f"{text}: {error.strerror}; give a text file") from error
    except UnicodeDecodeError as error:
        raise HeadsError(f"{text}: no UTF-8 at byte {error.start}; convert it") from error
    finally:
        model.close()
    if not counts.any():
        raise HeadsError(f"{text}: empty; give a text like those that the model writes")
    return counts, eog_ids


def most_frequent(counts: Ints, always: frozenset[int], number: int) -> npt.NDArray[np.int32]:
    """The ``number`` most frequent tokens, those in ``always`` first, then by frequency.

    Where the text has fewer, low ids fill up: vocabularies put common tokens first.
    """
    ranks = counts.astype(np.float64)
    ranks[list(always)] = np.inf
    return np.argsort(-ranks, kind="stable")[:number].astype(np.int32)
