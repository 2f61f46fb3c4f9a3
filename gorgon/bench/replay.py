"""Drafts that are right as often as stated, over a model whose text means nothing.

The backend below stands between the engine and a real backend of random weights. The model's
passes, the heads' passes, the sampler's draws, trees, acceptance and bookkeeping all happen; only
their outcome is replaced: the draw by the next token of a script, the guesses by ones that hold
the script's token at rank r as often as the accuracies say. So an engine's speed can be measured
at a size and acceptance for which there are no weights here.

How a guess finds its place in the script: the sampler writes the request's place into the first
number of the hidden state of each row that it draws from, and the engine hands that state back.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from gorgon.backend import (
    Backend,
    BatchRow,
    Drafts,
    DraftState,
    Floats,
    Guesses,
    Ints,
    Level,
    Noted,
    Output,
    Sampler,
    Terms,
)
from gorgon.bench.accuracies import Accuracies
from gorgon.bench.shapes import FIRST_WORD
from gorgon.errors import GorgonError
from gorgon.request import SamplingParams

SCRIPT_LENGTH = 1 << 14
_STRIDE = 4099  # between the places where requests start; prime to the length


class Script:
    """A text without end (it goes round), and for each place what the heads guess there.

    ``tokens`` has shape [length]; ``guesses`` [length, depths, ranks]: those after a root at
    place - 1, so that depth 1 is about place itself.
    """

    def __init__(self, accuracies: Accuracies, num_vocab: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        chances = np.array(accuracies.ranks)
        depths, ranks = chances.shape
        self.tokens: Ints = rng.integers(FIRST_WORD, num_vocab, SCRIPT_LENGTH).astype(np.int32)
        places = np.arange(SCRIPT_LENGTH)[:, None] + np.arange(depths)[None, :]
        truth = self.tokens[places % SCRIPT_LENGTH]
        fillers = truth[..., None] + 1 + np.arange(ranks) - FIRST_WORD
        self.guesses: Ints = (FIRST_WORD + fillers % (num_vocab - FIRST_WORD)).astype(np.int32)
        hit = _draw_ranks(rng, chances)
        place, depth = np.nonzero(hit < ranks)
        self.guesses[place, depth, hit[place, depth]] = truth[place, depth]
        self.probs: Floats = chances.astype(np.float32)

    def token(self, place: int) -> int:
        """The token at a place."""
        return int(self.tokens[place % SCRIPT_LENGTH])


def _draw_ranks(rng: np.random.Generator, chances: npt.NDArray[np.float64]) -> Ints:
    """The rank at which each guess is right, [length, depths]; the number of ranks for never."""
    drawn = rng.random((SCRIPT_LENGTH, len(chances)))
    below = np.cumsum(chances, axis=1)
    ranks: Ints = (drawn[..., None] >= below[None]).sum(axis=-1).astype(np.int32)
    return ranks


class ReplaySampler:
    """Draws with the real sampler, then says what the script says."""

    noise = None  # of which a script knows nothing

    def __init__(self, inner: Sampler, script: Script, place: int) -> None:
        self._inner, self._script, self._place = inner, script, place

    @property
    def failure(self) -> GorgonError | None:
        """See ``Sampler``."""
        return self._inner.failure

    def draw(self, output: Output, row: int) -> int:
        """The script's next token; leaves the place after it in the row's state."""
        self._inner.draw(output, row)
        return self._next(output, row)

    def _next(self, output: Output, row: int) -> int:
        token = self._script.token(self._place)
        self._place = (self._place + 1) % SCRIPT_LENGTH
        output.hidden[row, 0] = self._place
        return token

    def observe(self, token: int) -> None:
        """Not for replays: typical acceptance looks at probabilities, which mean nothing here."""
        raise AssertionError("acceptance can be replayed only where tokens are drawn")

    def close(self) -> None:
        """See ``Sampler``."""
        self._inner.close()


class ReplayBackend:
    """Fulfils ``gorgon.backend.Backend`` on top of one with heads of random weights.

    ``Guesses.states`` holds the place in front of the real heads' states.
    """

    def __init__(self, inner: Backend, accuracies: Accuracies, seed: int = 0) -> None:
        assert inner.num_heads == len(accuracies.ranks)
        self._inner, self._conditioned = inner, accuracies.variant == "conditioned"
        self.script = Script(accuracies, inner.num_vocab, seed)
        self._probs = accuracies.ranks
        self._num_requests = 0
        self.num_cells, self.max_rows = inner.num_cells, inner.max_rows
        self.max_sequences, self.max_position = inner.max_sequences, inner.max_position
        self.eog_ids, self.num_vocab = inner.eog_ids, inner.num_vocab
        self.num_embd, self.orders_cells = inner.num_embd, inner.orders_cells
        self.skips_hidden_cells = inner.skips_hidden_cells
        self.captures_graphs = inner.captures_graphs
        self.num_heads, self.window = inner.num_heads, inner.window
        self.searches, self.drafts = inner.searches, False
        self.begins, self.begin = inner.begins, inner.begin
        self.max_guesses = self.script.guesses.shape[-1]
        self.prefill, self.check_sampling = inner.prefill, inner.check_sampling
        self.share, self.remove = inner.share, inner.remove
        self.last_position, self.clear = inner.last_position, inner.clear

    def decode(self, rows: Sequence[BatchRow]) -> Output:
        """See ``Backend``."""
        return self._inner.decode(rows)

    def make_sampler(self, params: SamplingParams, prompt: Sequence[int]) -> Sampler:
        """A sampler at a place of the script that depends on how many came before."""
        place = self._num_requests * _STRIDE % SCRIPT_LENGTH
        self._num_requests += 1
        return ReplaySampler(self._inner.make_sampler(params, prompt), self.script, place)

    def propose(self, state: DraftState) -> Guesses:
        """What the real heads compute, with the script's outcome."""
        computed = self._inner.propose(state)
        return self._replace(computed, _places(state), 1)

    def search(self, state: DraftState) -> list[Level]:
        """As wide as the real heads search, from the nodes that the script's would go on from."""
        levels: list[Level] = []
        found, places = self._inner.search(state), _places(state)
        beams = _beams(self._probs, len(places), len(found[1].tokens)) if len(found) > 1 else []
        for depth, level in enumerate(found, 1):
            parents, tokens = level.parents, level.tokens
            if levels:
                parents, ranks = beams[depth - 2]
                tokens = levels[-1].guesses.tokens[parents, 0, ranks]
                places = places[parents]
            levels.append(Level(self._replace(level.guesses, places, depth), parents, tokens))
        return levels

    def draft(
        self, noted: Noted, ids: Sequence[int], tokens: Sequence[int], terms: Terms
    ) -> Drafts:
        """Never called: what the heads would choose by themselves is not what is replayed."""
        raise AssertionError("replayed drafts are chosen by the engine")

    def deepen(self, states: Floats, tokens: Ints, depth: int) -> Guesses:
        """See ``Backend``; guesses below a wrong token are as good, nobody will look at them."""
        computed = self._inner.deepen(np.ascontiguousarray(states[:, 1:]), tokens, depth)
        return self._replace(computed, states[:, 0].astype(np.int32), depth)

    def _replace(self, computed: Guesses, places: Ints, depth: int) -> Guesses:
        if not self._conditioned:
            guesses = self.script.guesses[places]
            return Guesses(guesses, np.broadcast_to(self.script.probs, guesses.shape))
        guesses = self.script.guesses[places, depth - 1][:, None]
        probs = np.broadcast_to(self.script.probs[depth - 1], guesses.shape)
        if computed.states is None:
            return Guesses(guesses, probs)
        marks = places.astype(np.float32)[:, None]
        return Guesses(guesses, probs, np.hstack([marks, computed.states]))


@functools.cache
def _beams(
    probs: tuple[tuple[float, ...], ...], num_requests: int, num_rows: int
) -> list[tuple[Ints, Ints]]:
    """What a search goes on from at each depth but the last: rows, and ranks in them.

    Args:
        probs: by depth and rank, the same in every row.
        num_requests: that the search is about.
        num_rows: that it has at depths beyond the first.
    """
    found, beams, width = [], np.ones(1), num_rows // num_requests
    for ranks in probs[:-1]:
        survivals = beams[:, None] * np.array(ranks)
        chosen = np.argsort(-survivals, axis=None, kind="stable")[:width]
        row, rank = np.unravel_index(chosen, survivals.shape)
        rows = np.arange(num_requests)[:, None] * len(beams) + row
        found.append((rows.ravel().astype(np.int32), np.tile(rank, num_requests).astype(np.int32)))
        beams = survivals[row, rank]
    return found


def _places(state: DraftState) -> Ints:
    """Where in the script each request is, as its sampler left it."""
    return state.hidden[:, 0, 0].astype(np.int32) % SCRIPT_LENGTH
