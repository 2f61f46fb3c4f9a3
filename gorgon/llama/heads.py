"""Heads of either variant, loaded for one base model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from gorgon.backend import Drafts, DraftState, Floats, Guesses, Ints, Level, Noted, Terms
from gorgon.config import EngineSettings
from gorgon.errors import HeadsError
from gorgon.llama import ggml
from gorgon.llama.embeddings import Embeddings
from gorgon.llama.heads_conditioned import EMBEDDINGS, EPSILON, ConditionedHeads
from gorgon.llama.heads_file import HeadsInfo, open_heads, read_info, read_token_map
from gorgon.llama.heads_guesses import make_ranking
from gorgon.llama.heads_medusa import MedusaHeads
from gorgon.llama.heads_weights import Device, Matrix, Weights, read_stacks
from gorgon.llama.model import ModelInfo


class Heads(Protocol):
    """What drafts: the part of ``Backend`` that is about heads. Free with ``close``."""

    @property
    def num_heads(self) -> int:
        """How many tokens beyond the root the heads look."""

    @property
    def window(self) -> int:
        """Earlier states and tokens that they want."""

    @property
    def top_k(self) -> int:
        """Guesses per depth."""

    @property
    def size(self) -> int:
        """Bytes of all weights."""

    def propose(self, state: DraftState) -> Guesses:
        """See ``Backend``."""

    def deepen(self, states: Floats, tokens: Ints, depth: int) -> Guesses:
        """See ``Backend``."""

    @property
    def searches(self) -> bool:
        """See ``Backend``."""

    def search(self, state: DraftState) -> list[Level]:
        """See ``Backend``."""

    @property
    def begins(self) -> bool:
        """See ``Backend``."""

    def begin(self, state: DraftState) -> None:
        """See ``Backend``."""

    @property
    def drafts(self) -> bool:
        """See ``Backend``."""

    def draft(
        self, noted: Noted, hidden: int, ids: Sequence[int], tokens: Sequence[int], terms: Terms
    ) -> Drafts:
        """See ``Backend``; ``hidden`` is where the states of the last pass lie in memory."""

    def close(self) -> None:
        """Free weights and graphs."""


def load_heads(
    path: Path,
    base: ModelInfo,
    settings: EngineSettings,
    top_k: int = 10,
    search: bool | None = None,
) -> Heads:
    """The heads in ``path``, on the device of the model.

    Args:
        path: the heads file.
        base: the model that the heads were made for.
        settings: device and threads.
        top_k: guesses per depth.
        search: whether conditioned heads shall search; by default where that is faster.

    Raises:
        HeadsError: when the file is damaged or made for another model, or the device has no room.
    """
    with open_heads(path) as file:
        info = read_info(file, base)
        token_map = read_token_map(file, base.num_vocab)
        device = Device(settings)
        kind = ConditionedHeads if info.variant == "conditioned" else MedusaHeads
        stacks = read_stacks(file, info, base, token_map, kind.stacks(file, info))
    try:
        embeddings = Embeddings(base) if info.variant == "conditioned" else None
        if embeddings is not None and (device.is_gpu if search is None else search):
            stacks[EMBEDDINGS] = [_table(embeddings, info, token_map)]
        weights = Weights(stacks, device)
    except HeadsError:
        device.close()
        raise
    ranking = make_ranking(token_map, info.calibration, min(top_k, info.num_outputs), device)
    if embeddings is not None:
        return ConditionedHeads(info, weights, device, ranking, embeddings)
    return MedusaHeads(info, weights, device, ranking)


def _table(embeddings: Embeddings, info: HeadsInfo, token_map: Ints | None) -> Matrix:
    """Normalised embeddings of the heads' outputs."""
    outputs = np.arange(info.num_outputs, dtype=np.int32)
    rows = embeddings.normalised(outputs if token_map is None else token_map, EPSILON)
    return Matrix(ggml.TYPE_F16, (info.num_embd, info.num_outputs), rows.view(np.uint8))
