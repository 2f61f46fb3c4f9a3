"""Prompt lookup as a source of drafts: what came after the longest earlier occurrence."""

from __future__ import annotations

from collections.abc import Sequence as Seq

from gorgon.engine.draft_step import DraftStep
from gorgon.engine.sequence import Sequence
from gorgon.speculation.lookup import LookupSurvival, Match
from gorgon.speculation.rows import Chain

_LONG, _LIKELY = 8, 0.5  # matches and probabilities that are worth waking for


class LookupSource:
    """Adds what a text's own repetitions suggest, and counts how often that is right."""

    def __init__(self) -> None:
        self._survival = LookupSurvival()
        self._turn = 0

    def repeats(self, sequences: Seq[Sequence]) -> bool:
        """Whether the text of one request, another one each time, is likely to go on repeating.

        A look at all of them costs more than it finds: who copies does so for many steps.
        """
        self._turn += 1
        sequence = sequences[self._turn % len(sequences)]
        match = self._look(sequence)
        return match is not None and match.length >= _LONG and sequence.match_prob >= _LIKELY

    def add(self, step: DraftStep) -> None:
        """Add a chain below each root whose text has occurred before, if it may pay."""
        floor: float | None = None
        for root in step.free:
            sequence = step.sequences[root]
            match = self._look(sequence)
            if match is None:
                continue
            floor = step.floor() if floor is None else floor
            if sequence.match_prob >= floor:
                rates, places = self._survival.classes(match)
                rates = sequence.lookup_correction.apply_each(rates, 1)
                probs = [rates[place] for place in places]
                room = step.candidates.room_below(root)
                step.chains[root] = Chain(match.tokens[:room], probs[:room])

    def learn(self, sequence: Sequence, came: int) -> None:
        """Compare the match of this step, drafted or not, with the token that came."""
        match = sequence.match
        if match is None:
            return
        right = match.tokens[0] == came
        sequence.lookup_correction.learn(sequence.match_prob, 1, right)
        self._survival.learn(match.length, right)
        sequence.match = None

    def _look(self, sequence: Sequence) -> Match | None:
        """Look up the end of the text, and note how probable the first token found is."""
        match = sequence.match = sequence.occurrences.match(sequence.tokens)
        if match is not None:
            stated = self._survival.at(match.length)
            sequence.match_prob = sequence.lookup_correction.apply(stated, 1)
        return match
