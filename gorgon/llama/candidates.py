"""The array of tokens that llama.cpp's samplers choose from, kept for many draws."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from gorgon.backend import Floats
from gorgon.llama import kernels
from gorgon.llama.library import llama
from gorgon.noise import Noise, gumbel

_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("prob", np.float32)])


class Candidates:
    """A ``llama_token_data_array`` that samplers work on."""

    def __init__(self, size: int) -> None:
        self._ids = np.arange(size, dtype=np.int32)
        self._entries = np.zeros(size, _CANDIDATE)
        data = self._entries.ctypes.data_as(ctypes.POINTER(llama.llama_token_data))
        self._array = llama.llama_token_data_array(data, size, -1, False)

    def fill(self, logits: Floats) -> None:
        """All tokens of the vocabulary with ``logits`` [size]."""
        self._entries["id"] = self._ids
        self._entries["logit"] = logits
        self._reset(len(self._entries))

    def fill_near(self, logits: Floats, gap: float) -> None:
        """Tokens with ``logits`` [size]; those ``gap`` below the highest may be left out."""
        is_near = logits >= logits.max() - gap
        if np.count_nonzero(is_near) > len(logits) // 4:  # gathering many takes longer than all
            self.fill(logits)
        else:
            near = is_near.nonzero()[0]
            self._entries["id"][: len(near)] = near
            self._entries["logit"][: len(near)] = logits[near]
            self._reset(len(near))

    def fill_one(self, token: int) -> None:
        """One token; the candidates must have size 1."""
        self._entries["id"], self._entries["logit"] = token, 0.0
        self._reset(1)

    def forbid(self, tokens: Any) -> None:
        """Take ``tokens`` out; to be called before anything reorders the candidates."""
        self._entries["logit"][tokens] = -np.inf

    @property
    def are_all_out(self) -> bool:
        """Whether none is left."""
        return bool(np.isneginf(self._entries["logit"]).all())

    def apply(self, sampler: Any) -> None:
        """Let ``sampler`` change them."""
        llama.llama_sampler_apply(sampler, ctypes.byref(self._array))

    def draw(self, noise: Noise) -> int:
        """The token whose logit, at the temperature already, is largest with ``noise`` added."""
        native, size = kernels.functions(), self._array.size
        if native is None:
            entries = self._entries[:size]
            place = (entries["logit"] + gumbel(*noise.key(), entries["id"])).argmax()
        else:
            address = self._entries.ctypes.data
            place = native.gorgon_kernels_draw_among(noise.seed, noise.place, address, size)
        return int(self._entries["id"][place])

    @property
    def selected(self) -> int:
        """The token that a greedy sampler took."""
        assert 0 <= self._array.selected < self._array.size
        return int(self._entries["id"][self._array.selected])

    def _reset(self, size: int) -> None:
        self._array.size, self._array.selected = size, -1
        self._array.sorted = False
