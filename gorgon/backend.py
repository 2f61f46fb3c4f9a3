"""The contract between the engine and a model: what one forward pass takes and gives.

``gorgon.llama`` fulfils it with llama.cpp; tests fulfil it with a model of a few lines.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from gorgon.errors import GorgonError
from gorgon.noise import Noise
from gorgon.request import SamplingParams

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]
NUM_TESTED = 3  # first guesses of the heads that are tested by the next token, drafted or not


class BatchRow(NamedTuple):
    """One token of a batch; it sees what ``sequences[0]`` holds up to ``position``."""

    token: int
    position: int
    sequences: Sequence[int]


@dataclass(frozen=True, slots=True)
class Output:
    """What a forward pass gives for each row of its batch; valid until the next one.

    ``logits`` has shape [rows, num_vocab], ``hidden`` [rows, num_embd]: the state after the
    final norm.
    """

    logits: Floats
    hidden: Floats


@dataclass(frozen=True, slots=True)
class DraftState:
    """What the heads read, one row per request.

    ``hidden`` has shape [rows, 1 + window, num_embd]: the state after the final norm at the last
    accepted position t, then at t-1, t-2 ...; zeros where it is not known. ``tokens`` has shape
    [rows, 1 + window]: the root x[t+1], drawn but not computed yet, then x[t], x[t-1] ...; 0
    before the start of the text.
    """

    hidden: Floats
    tokens: Ints


@dataclass(frozen=True, slots=True)
class Guesses:
    """Ranked next tokens and how likely each survives, if everything above it does.

    ``tokens`` and ``probs`` have shape [rows, depths, top_k], likeliest first; ``probs`` is
    calibrated. Independent heads (Medusa) guess for all depths at once: the guesses for depth d
    serve every node at depth d - 1 of the tree, and ``states`` is None. Conditioned heads (Hydra)
    guess for one depth at a time: ``states`` [rows, state_size] lets ``Backend.deepen`` go on
    below a token taken from these guesses.
    """

    tokens: Ints
    probs: Floats
    states: Floats | None = None

    def at(self, rows: Sequence[int]) -> Guesses:
        """Those of ``rows``."""
        states = None if self.states is None else self.states[rows]
        return Guesses(self.tokens[rows], self.probs[rows], states)


@dataclass(frozen=True, slots=True)
class Level:
    """Guesses for one depth below tokens that the heads chose themselves.

    Row i of ``guesses`` holds what comes below ``tokens[i]``, which is among the guesses in row
    ``parents[i]`` of the level above; in the first level it is the root of request ``parents[i]``.
    """

    guesses: Guesses
    parents: Ints
    tokens: Ints


class Terms(NamedTuple):
    """What the drafts of a step may cost, and how far the heads are believed.

    ``asked`` are the requests that the heads are asked about, ``rooms`` say how deep the tree of
    each request may be. ``seconds`` is t(n) for n = 0, 1, ... as far as there is room. Drafts must
    bring ``least_gain`` times as many tokens a second as none. ``shifts`` [asked * num_heads]
    correct what the heads state, see ``speculation.survival``. ``top``, the mean probability of
    best guesses by depth, from 1, learns at ``top_rate``. ``propose`` and ``deepen`` are the base
    and the seconds a row of the heads' calls, and the rate at which they follow what calls take.
    ``chains`` were looked up below requests: tokens below each other, and how probable each is
    once the one before has come. ``noises`` are those of the requests asked about and ``strengths``
    say how much of them counts (``speculation.coupling``), 0 where there is none.
    """

    asked: Sequence[int]
    rooms: Sequence[int]
    seconds: Sequence[float]
    least_gain: float
    shifts: Sequence[float]
    top: array[float]
    top_rate: float
    propose: tuple[float, float, float]
    deepen: tuple[float, float, float]
    chains: Mapping[int, tuple[Sequence[int], Sequence[float]]]
    noises: Sequence[Noise | None]
    strengths: Sequence[float]


class Noted(NamedTuple):
    """The latest hidden states of requests, and which rows of the last ``Output`` come before them.

    ``known`` has shape [ids, 1 + window, num_embd], see ``DraftState.hidden``. The first
    ``sizes[0]`` of ``rows`` belong to sequence ``ids[0]``, the latest first, and so on.
    """

    known: Floats
    ids: Sequence[int]
    sizes: Sequence[int]
    rows: Sequence[int]


class Nodes(NamedTuple):
    """Of a tree, depth first, likelier siblings first; the root's token is 0.

    ``sources`` are 0 for the root, 1 for the heads, 2 for a chain, 3 for both.
    """

    parents: tuple[int, ...]
    tokens: tuple[int, ...]
    probs: tuple[float, ...]
    sources: Sequence[int]


class Drafts(NamedTuple):
    """The drafts that are best for a step: so many, at ``rate`` tokens a second.

    ``spent`` are the seconds that asking should take, ``survival`` is the sum of the drafts'.
    ``trees`` are those of requests that got any. ``tested`` are the ``NUM_TESTED`` likeliest
    guesses about the next token of each request asked about, one request after the other, and
    ``tested_probs`` how probable those of one are together. ``calls`` are the rows and seconds of
    each call.
    """

    num_drafts: int
    rate: float
    spent: float
    survival: float
    trees: Mapping[int, Nodes]
    tested: Sequence[int]
    tested_probs: Sequence[float]
    calls: list[tuple[int, float]]


class Sampler(Protocol):
    """Draws the tokens of one request; every drawn token becomes part of the request."""

    def draw(self, output: Output, row: int) -> int:
        """The next token from the logits of ``row``."""

    def observe(self, token: int) -> None:
        """Take note of a token that was accepted without being drawn here."""

    @property
    def noise(self) -> Noise | None:
        """What the next token will be drawn with; None where nothing is left to chance."""

    @property
    def failure(self) -> GorgonError | None:
        """Why the request cannot go on, if it cannot; what was drawn last is then of no use."""

    def close(self) -> None:
        """Free native memory; the sampler must not be used afterwards."""


class Backend(Protocol):
    """A model with a KV cache and, if ``num_heads`` is not 0, heads that draft."""

    @property
    def num_cells(self) -> int:
        """Cells of the KV cache."""

    @property
    def max_rows(self) -> int:
        """Rows that one forward pass takes."""

    @property
    def max_sequences(self) -> int:
        """Sequence ids are 0 to ``max_sequences - 1``."""

    @property
    def max_position(self) -> int:
        """Positions that the model was trained for."""

    @property
    def eog_ids(self) -> frozenset[int]:
        """Tokens that end a generation."""

    @property
    def num_vocab(self) -> int:
        """Token ids are 0 to ``num_vocab - 1``."""

    @property
    def num_embd(self) -> int:
        """Width of hidden states."""

    @property
    def skips_hidden_cells(self) -> bool:
        """Whether attention costs a token only the cells that it sees, not all that are used."""

    @property
    def captures_graphs(self) -> bool:
        """Whether the device compiles a graph for each batch size, as CUDA does."""

    @property
    def orders_cells(self) -> bool:
        """Whether attention sums in the order of positions, wherever the tokens lie in the cache.

        If not, the order of cells decides the rounding, and a cell freed too early moves logits.
        """

    @property
    def num_heads(self) -> int:
        """How many tokens beyond the root the heads look; 0 if there are none."""

    @property
    def max_guesses(self) -> int:
        """Guesses per head."""

    @property
    def window(self) -> int:
        """Earlier states and tokens that the heads want in ``DraftState``."""

    def prefill(self, rows: Sequence[BatchRow]) -> None:
        """Compute the cells of ``rows``, no output; ``DecodeError`` on failure."""

    def decode(self, rows: Sequence[BatchRow]) -> Output:
        """One forward pass with output for every row; ``DecodeError`` on failure."""

    def propose(self, state: DraftState) -> Guesses:
        """Guesses below the roots: for depth 1, or for every depth if the heads are independent.

        Raises:
            HeadsError: when the device fails.
        """

    def deepen(self, states: Floats, tokens: Ints, depth: int) -> Guesses:
        """Guesses of conditioned heads below drafted nodes, whatever requests they belong to.

        Args:
            states: shape [nodes, state_size], those of the guesses that each node was taken from.
            tokens: shape [nodes], the nodes' tokens.
            depth: of the guesses asked for; ``propose`` gives depth 1, so the first call asks
                for 2, and ``num_heads`` is the last.

        Raises:
            HeadsError: when the device fails.
        """

    @property
    def searches(self) -> bool:
        """Whether ``search`` is there, and the better way to ask the heads."""

    def search(self, state: DraftState) -> list[Level]:
        """What conditioned heads guess for every depth, below the nodes that they find likeliest.

        Raises:
            HeadsError: when the device fails.
        """

    @property
    def begins(self) -> bool:
        """Whether heads can be started before they are asked, beside what this processor does."""

    def begin(self, state: DraftState) -> None:
        """Start on what ``search``, or ``propose`` where there is none, may next be asked.

        They know it by this very ``state``; asked about another one they start anew.

        Raises:
            HeadsError: when there is no room for it.
        """

    @property
    def drafts(self) -> bool:
        """Whether ``draft`` is there, and the best way to ask the heads."""

    def draft(
        self, noted: Noted, ids: Sequence[int], tokens: Sequence[int], terms: Terms
    ) -> Drafts:
        """What conditioned heads and chains draft for a step.

        Args:
            noted: states; what is noted is copied into those known, whatever fails later.
            ids: sequences of the requests asked about.
            tokens: what ``DraftState.tokens`` has of them, one after the other.
            terms: of the step.

        Raises:
            HeadsError: when the device fails.
        """

    def check_sampling(self, params: SamplingParams) -> None:
        """``RequestError`` unless ``make_sampler`` can make a sampler of ``params``."""

    def make_sampler(self, params: SamplingParams, prompt: Sequence[int]) -> Sampler:
        """A fresh sampler for one request."""

    def share(self, source: int, target: int, start: int, end: int) -> None:
        """Let ``target`` hold ``source``'s cells with positions in [start, end)."""

    def remove(self, sequence: int, start: int = 0, end: int = -1) -> None:
        """Take ``sequence`` off its cells in [start, end), -1 meaning the end."""

    def last_position(self, sequence: int) -> int:
        """The highest position that ``sequence`` holds, -1 when it holds nothing."""

    def clear(self) -> None:
        """Forget every cell."""
