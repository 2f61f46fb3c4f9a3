"""Where drafts do not pay the drafter rests, and wakes for texts that are easy to guess.

The drafter alone, on a machine whose every token costs, with texts known beforehand and heads that
are right as often as they say. A look for drafts costs 3 % of a step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from gorgon.backend import Backend, DraftState, Guesses
from gorgon.engine.drafter import Drafter, Limits
from gorgon.engine.sequence import Sequence
from gorgon.engine.states import States
from gorgon.request import Request
from gorgon.speculation.acceptance import Accepted, accept_lossless
from gorgon.speculation.cost import StepCost, StepTimes
from gorgon.speculation.tree import DraftTree, Source

SLOPE, LOOK, HEADS = 0.12, 0.03, 0.05  # seconds; a step of one token takes 1
LENGTH = 800


@dataclass
class World:
    """Requests that write ``texts``, the first token of each being the prompt."""

    texts: list[list[int]]
    skill: float = 0.0  # how often the heads are right
    draft_seconds: float = SLOPE
    now: float = 0.0
    num_heads_calls: int = 0
    sequences: list[Sequence] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.chance = np.random.default_rng(0)
        heads = SimpleNamespace(
            num_heads=1, max_guesses=1, window=0, searches=False, drafts=False, propose=self.propose
        )
        seconds = np.array([[1.0, 1.0 + 63 * SLOPE]])
        cost = StepCost(StepTimes((32,), (1, 64), seconds), 128)
        self.states = States(len(self.texts), 1, 1)
        self.drafter = Drafter(cast(Backend, heads), self.states, cost, clock=self.clock)
        for number, text in enumerate(self.texts):
            request = Request(str(number), (text[0],), len(text) - 1)
            sampler: Any = SimpleNamespace(noise=None)
            sequence = Sequence(request, sampler, number, None, 0.0, 0.0, [text[0]], [])
            self.drafter.start(sequence)
            self.sequences.append(sequence)

    def clock(self) -> float:
        self.now += LOOK / 4  # read when a look begins and ends, and around the heads
        return self.now

    def propose(self, state: DraftState) -> Guesses:
        self.num_heads_calls += 1
        self.now += HEADS
        coming = [self._at(i, 1) for i in range(len(self.sequences))]
        wrong = self.chance.random(len(coming)) >= self.skill
        tokens = np.array(coming, np.int32) + wrong
        probs = np.full((len(coming), 1, 1), max(self.skill, 0.2), np.float32)
        return Guesses(tokens[:, None, None], probs)

    def steps(self, count: int) -> Iterator[list[DraftTree]]:
        """The trees of every step."""
        for _ in range(count):
            began = self.now
            trees = self.drafter.propose(self.sequences, Limits(63, 63, 63), 32.0)
            rows = sum(len(tree) for tree in trees)
            model = plain_seconds(len(trees)) + (rows - len(trees)) * self.draft_seconds
            self.now += model
            accepted = [self._accept(i, tree) for i, tree in enumerate(trees)]
            for sequence, tree, kept in zip(self.sequences, trees, accepted, strict=True):
                self.drafter.learn(sequence, tree, kept)
                sequence.tokens += kept.tokens
            self.states.note(np.ones((1, 1), np.float32), [(s, [0]) for s in self.sequences])
            if not self.drafter.reads_states(self.sequences):
                for sequence in self.sequences:
                    sequence.has_states = False
            tokens = sum(len(kept.tokens) for kept in accepted)
            self.drafter.observe(len(trees), rows, 32.0, tokens, self.now - began, model)
            yield trees

    def _at(self, number: int, ahead: int) -> int:
        return self.texts[number][len(self.sequences[number].tokens) - 1 + ahead]

    def _accept(self, number: int, tree: DraftTree) -> Accepted:
        return accept_lossless(
            tree,
            lambda node: self._at(number, 1 + tree.shape.depths[node]),
            lambda _token, _count: False,
        )


def plain_seconds(num_requests: int) -> float:
    return 1.0 + (num_requests - 1) * SLOPE


def random_texts(count: int, seed: int = 0) -> list[list[int]]:
    tokens = np.random.default_rng(seed).integers(0, 30_000, (count, LENGTH))
    return [[int(token) for token in text] for text in tokens]


def drafts_of(trees: list[DraftTree]) -> list[Source]:
    return [source for tree in trees for source in tree.sources[1:]]


@pytest.mark.parametrize("num_requests", [1, 4, 16])
def test_where_nothing_can_be_guessed_next_to_nothing_is_spent_on_it(num_requests: int) -> None:
    world = World(random_texts(num_requests))
    for _ in world.steps(100):
        pass
    began, calls = world.now, world.num_heads_calls
    drafted = sum(bool(drafts_of(trees)) for trees in world.steps(400))
    assert drafted <= 10
    assert world.num_heads_calls - calls <= 10
    assert world.now - began < 1.005 * 400 * plain_seconds(num_requests)


@pytest.mark.parametrize("num_requests", [1, 4, 16])
def test_a_text_that_begins_to_copy_wakes_it(num_requests: int) -> None:
    texts = random_texts(num_requests)
    texts[-1][400:600] = texts[-1][100:300]
    world = World(texts)
    for _ in world.steps(400):
        pass
    drafted = [
        any(source is Source.LOOKUP for source in drafts_of(trees)) for trees in world.steps(80)
    ]
    assert any(drafted[: 10 + num_requests]), "a match of 8 tokens, and a turn for every request"
    assert len(world.sequences[-1].tokens) > 401 + 150


@pytest.mark.parametrize("num_requests", [1, 4])
def test_heads_that_begin_to_be_right_are_found_out(num_requests: int) -> None:
    world = World(random_texts(num_requests))
    for _ in world.steps(300):
        pass
    world.skill = 0.8
    drafted = [bool(drafts_of(trees)) for trees in world.steps(200)]
    assert any(drafted[:130]), "two looks may be needed"
    assert all(drafted[-20:])


def test_states_are_not_kept_while_it_rests() -> None:
    world = World(random_texts(4))
    for _ in world.steps(200):
        pass
    kept = [world.sequences[0].has_states for _ in world.steps(300)]
    assert 0 < sum(kept) < 40


def test_a_machine_on_which_drafts_grow_dear_is_found_out() -> None:
    """Plain steps take what they took; as long as all steps carry drafts nobody can see that."""
    world = World(random_texts(4), skill=0.7, draft_seconds=0.05)
    assert sum(bool(drafts_of(trees)) for trees in world.steps(150)) > 120
    world.draft_seconds = 0.6
    for _ in world.steps(150):
        pass
    began, before = world.now, sum(len(s.tokens) for s in world.sequences)
    for _ in world.steps(100):
        pass
    made = sum(len(s.tokens) for s in world.sequences) - before
    assert made / (world.now - began) > 0.97 * 4 / plain_seconds(4)
