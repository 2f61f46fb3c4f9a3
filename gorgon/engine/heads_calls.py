"""The heads with a stopwatch: what they are asked, and what asking takes.

What they guess is coupled to the noise that each request's tokens are drawn with. Knows no trees.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from collections.abc import Sequence as Seq
from typing import NamedTuple, TypeVar

import numpy as np

from gorgon.backend import Backend, Drafts, DraftState, Guesses, Level, Terms
from gorgon.engine.sequence import Sequence
from gorgon.engine.states import States
from gorgon.errors import GorgonError
from gorgon.noise import Noise
from gorgon.speculation.cost import CallCost
from gorgon.speculation.coupling import couple, couple_levels

logger = logging.getLogger("gorgon.engine")

_FAILED = "the heads failed, so this step drafts without them: %s"
_Found = TypeVar("_Found")


class Above(NamedTuple):
    """A node that guesses are wanted below: its request, the row it is from, and its token."""

    root: int
    row: int
    token: int


class HeadsCalls:
    """Calls of the heads. One that fails gives None: it costs drafts, not answers.

    Args:
        backend: the heads, if there are any.
        states: what they read.
        typical: seconds of a step of one token, for what calls take before any was made.
        clock: seconds.
    """

    def __init__(
        self, backend: Backend, states: States, typical: float, clock: Callable[[], float]
    ) -> None:
        self._backend, self._states, self._clock = backend, states, clock
        self.propose_cost = CallCost(0.05 * typical, 0.02 * typical)
        self.deepen_cost = CallCost(0.03 * typical, 0.01 * typical)
        self.seconds = 0.0  # in calls, since the caller last set it to zero
        self._begun: _Begun | None = None

    def begin(self, sequences: Seq[Sequence]) -> None:
        """Let the device begin with what is asked next, by ``propose`` or ``search``."""
        began = self._clock()
        state = self._state(sequences)
        try:
            self._backend.begin(state)
        except GorgonError as error:
            logger.warning(_FAILED, error)
        elapsed = self._clock() - began
        self.seconds += elapsed
        self._begun = _Begun(_places(sequences), state, elapsed)

    def propose(self, sequences: Seq[Sequence]) -> Guesses | None:
        """First guesses about ``sequences``, a row each: of all depths from independent heads."""
        found = self._ask(sequences, self._backend.propose)
        return found and couple(found, _noises(sequences))

    def search(self, sequences: Seq[Sequence]) -> Seq[Level] | None:
        """All depths of conditioned heads at once, where the backend searches."""
        found = self._ask(sequences, self._backend.search)
        return found and couple_levels(found, _noises(sequences))

    def _ask(self, sequences: Seq[Sequence], ask: Callable[[DraftState], _Found]) -> _Found | None:
        begun, self._begun = self._begun, None
        if begun is not None and begun.places == _places(sequences):
            state, earlier = begun.state, begun.seconds
        else:
            state, earlier = self._state(sequences), 0.0
        rows, cost = len(sequences), self.propose_cost
        return self._timed(rows, cost, lambda: ask(state), earlier)

    def deepen(
        self, sequences: Seq[Sequence], guesses: Guesses, above: Seq[Above], depth: int
    ) -> Guesses | None:
        """Guesses at ``depth`` below nodes of ``sequences``."""
        assert guesses.states is not None
        states = guesses.states[[node.row for node in above]]
        tokens = np.array([node.token for node in above], np.int32)
        found = self._timed(
            len(above), self.deepen_cost, lambda: self._backend.deepen(states, tokens, depth)
        )
        return found and couple(found, _noises([sequences[node.root] for node in above]), depth)

    def draft(self, sequences: Seq[Sequence], terms: Terms) -> Drafts | None:
        """What conditioned heads draft for the step, where the backend does it by itself."""
        ids: list[int] = []
        tokens: list[int] = []
        for sequence in sequences:
            ids.append(sequence.id)
            tokens += sequence.last_tokens(1 + self._backend.window)
        try:
            found = self._backend.draft(self._states.take(), ids, tokens, terms)
        except GorgonError as error:
            logger.warning(_FAILED, error)
            return None
        cost = self.propose_cost
        for rows, elapsed in found.calls:
            self.seconds += elapsed
            cost.observe(rows, elapsed)
            cost = self.deepen_cost
        return found

    def _state(self, sequences: Seq[Sequence]) -> DraftState:
        tokens = [sequence.last_tokens(1 + self._backend.window) for sequence in sequences]
        return DraftState(self._states.read(sequences), np.array(tokens, np.int32))

    def _timed(
        self, rows: int, cost: CallCost, call: Callable[[], _Found], earlier: float = 0.0
    ) -> _Found | None:
        """What ``call`` gives; what it takes, and ``earlier`` seconds, are a sample of ``cost``."""
        began = self._clock()
        try:
            found = call()
        except GorgonError as error:
            logger.warning(_FAILED, error)
            return None
        elapsed = self._clock() - began
        self.seconds += elapsed
        cost.observe(rows, earlier + elapsed)
        return found


class _Begun(NamedTuple):
    """What the device was told to look at: requests as far as they had come, and its seconds."""

    places: list[tuple[Sequence, int]]
    state: DraftState
    seconds: float


def _places(sequences: Seq[Sequence]) -> list[tuple[Sequence, int]]:
    return [(sequence, len(sequence.tokens)) for sequence in sequences]


def _noises(sequences: Seq[Sequence]) -> list[Noise | None]:
    return [sequence.noise for sequence in sequences]
