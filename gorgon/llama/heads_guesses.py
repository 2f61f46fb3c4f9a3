"""From logits in a graph to ranked guesses: order, token ids, calibration.

On the CPU the native library finds and ranks them, if it is there; elsewhere ggml's operations and
NumPy do.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gorgon.backend import Floats, Guesses, Ints, Level
from gorgon.llama import ggml, kernels
from gorgon.llama.heads_file import Knots
from gorgon.llama.heads_graph import SIZES, Port, best
from gorgon.llama.heads_weights import Device
from gorgon.llama.tensors import shape_of


class Ranking:
    """Finds the best outputs of each head, and ranks them.

    Args:
        token_map: token id of each output; None where outputs are token ids.
        calibration: from raw probability to survival by depth; empty for none.
        top_k: guesses of each head.
        device: where the heads run.
    """

    def __init__(
        self, token_map: Ints | None, calibration: tuple[Knots, ...], top_k: int, device: Device
    ) -> None:
        self.top_k = top_k
        self._token_map, self._calibration, self._device = token_map, calibration, device
        self._offsets: npt.NDArray[np.intp] = np.zeros((0, 1), np.intp)

    def find(self, context: int, logits: int) -> tuple[int, ...]:
        """Add to a graph what ``read`` is to be given of ``logits`` [outputs, rows * depths]."""
        return best(context, logits, self.top_k, self._device)

    def read(
        self, ports: Sequence[Port], rows: int, depths: range, states: Floats | None = None
    ) -> Guesses:
        """The guesses of the first ``rows`` rows.

        Args:
            ports: what ``find`` added.
            rows: at most as many as the graph has.
            depths: of the heads in each row, from 1.
            states: passed on.
        """
        shape = (-1, len(depths), self.top_k)
        outputs, probs = (port.array.reshape(shape)[:rows] for port in ports)
        tokens, ranked = self._sorted(outputs, probs)
        for i, depth in enumerate(depths):
            self._calibrate(ranked[:, i], depth)
        return Guesses(tokens, ranked, states)

    def rank_levels(
        self, outputs: Ints | Floats, probs: Floats, levels: Sequence[slice]
    ) -> list[Guesses]:
        """Guesses from ``outputs`` [rows, 1, top_k], in any order, and raw ``probs``.

        ``levels`` are the rows of depth 1, 2 ...
        """
        tokens, ranked = self._sorted(outputs, probs)
        for depth, rows in enumerate(levels, 1):
            self._calibrate(ranked[rows], depth)
        return [Guesses(tokens[rows], ranked[rows]) for rows in levels]

    def _sorted(self, outputs: Ints | Floats, probs: Floats) -> tuple[Ints, Floats]:
        """Token ids and raw probabilities, likeliest first, in the shape that they came in."""
        top_k = probs.shape[-1]
        order = np.negative(probs).reshape(-1, top_k).argsort(kind="stable")
        order += self._offsets_for(len(order), top_k)
        ids = outputs.take(order).astype(np.int32, copy=False)
        return self.tokens(ids).reshape(outputs.shape), probs.take(order).reshape(probs.shape)

    def _calibrate(self, probs: Floats, depth: int) -> None:
        """Make survivals of the raw ``probs`` at ``depth``, in place."""
        if self._calibration:
            knots = self._calibration[depth - 1]
            probs[...] = np.interp(probs, knots.x, knots.y)

    def tokens(self, outputs: Ints) -> Ints:
        """The token ids of ``outputs``."""
        return outputs if self._token_map is None else self._token_map.take(outputs)

    def _offsets_for(self, rows: int, top_k: int) -> npt.NDArray[np.intp]:
        if len(self._offsets) < rows:
            self._offsets = np.arange(0, rows * top_k, top_k, dtype=np.intp)[:, None]
        return self._offsets[:rows]


_PART = 2048  # outputs that one thread searches at a time


class _Map(ctypes.Structure):
    """``struct Map`` of native/guesses.cpp."""

    _fields_ = (("x", ctypes.c_void_p), ("y", ctypes.c_void_p), ("n", ctypes.c_int64))


class NativeRanking(Ranking):
    """The same in two calls of the native library: one in the graph, one behind it."""

    def __init__(
        self,
        native: Any,
        token_map: Ints | None,
        calibration: tuple[Knots, ...],
        top_k: int,
        device: Device,
    ) -> None:
        super().__init__(token_map, calibration, top_k, device)
        self._find = ctypes.cast(native.gorgon_kernels_find_best, ctypes.c_void_p)
        self._rank = native.gorgon_kernels_rank
        self.token_map_address: int | None = None
        if token_map is not None:
            self._token_map = np.ascontiguousarray(token_map, np.int32)
            self.token_map_address = self._token_map.ctypes.data
        self._knots = [
            [np.ascontiguousarray(v, np.float32) for v in (k.x, k.y)] for k in calibration
        ]
        maps = [_Map(x.ctypes.data, y.ctypes.data, len(x)) for x, y in self._knots]
        self._maps = (_Map * len(maps))(*maps)
        self.maps_address = ctypes.addressof(self._maps) if maps else None
        self._make_room(SIZES[-1])

    def find(self, context: int, logits: int) -> tuple[int, ...]:
        """See ``Ranking``; one tensor, whose layout native/guesses.cpp knows."""
        (num_outputs, columns), arguments = shape_of(logits), (ctypes.c_void_p * 1)(logits)
        shape = 1 + 2 * self.top_k, -(-num_outputs // _PART), columns, 1
        kind, tasks = ggml.TYPE_F32, ggml.ALL_TASKS
        return (ggml.custom_4d(context, kind, *shape, arguments, 1, self._find, tasks, None),)

    def read(
        self, ports: Sequence[Port], rows: int, depths: range, states: Floats | None = None
    ) -> Guesses:
        """See ``Ranking``."""
        (port,) = ports
        columns, shape = rows * len(depths), (rows, len(depths), self.top_k)
        if columns > len(self._tokens):
            self._make_room(columns)
        maps, num_maps = None, 0
        if self.maps_address is not None:
            maps = self.maps_address + (depths.start - 1) * ctypes.sizeof(_Map)
            num_maps = len(depths)
        parts, addresses = port.array.shape[-2], self._addresses
        self._rank(
            port.address,
            columns,
            parts,
            self.top_k,
            self.token_map_address,
            maps,
            num_maps,
            *addresses,
        )
        tokens, probs = self._tokens[:columns].copy(), self._probs[:columns].copy()
        return Guesses(tokens.reshape(shape), probs.reshape(shape), states)

    def _make_room(self, columns: int) -> None:
        """For the guesses of ``columns`` heads and rows, in memory that stays."""
        self._tokens = np.empty((columns, self.top_k), np.int32)
        self._probs = np.empty((columns, self.top_k), np.float32)
        self._addresses = self._tokens.ctypes.data, self._probs.ctypes.data


def make_ranking(
    token_map: Ints | None, calibration: tuple[Knots, ...], top_k: int, device: Device
) -> Ranking:
    """The fastest one for ``device``; see ``Ranking``."""
    native = None if device.is_gpu else kernels.functions()
    if native is None:
        return Ranking(token_map, calibration, top_k, device)
    return NativeRanking(native, token_map, calibration, top_k, device)


def merged(pieces: list[Guesses]) -> Guesses:
    """The guesses of several graphs as one, rows in order."""
    if len(pieces) == 1:
        return pieces[0]
    states = [piece.states for piece in pieces if piece.states is not None]
    return Guesses(
        np.concatenate([piece.tokens for piece in pieces]),
        np.concatenate([piece.probs for piece in pieces]),
        np.concatenate(states) if states else None,
    )


def joined(found: list[list[Level]]) -> list[Level]:
    """The levels of several graphs as one, rows in order."""
    if len(found) == 1:
        return found[0]
    levels, rows_above = [], [len(search[0].tokens) for search in found]
    for depth in zip(*found, strict=True):
        starts = np.cumsum([0, *rows_above[:-1]]).astype(np.int32)
        parents = [level.parents + start for level, start in zip(depth, starts, strict=True)]
        guesses, tokens = (
            merged([level.guesses for level in depth]),
            [level.tokens for level in depth],
        )
        levels.append(Level(guesses, np.concatenate(parents), np.concatenate(tokens)))
        rows_above = [len(level.tokens) for level in depth]
    return levels
