"""The drafter on made-up machines and texts, with a clock that counts what they would take.

Every token costs t(n), every call of the heads its time, and heads say more or less than the
truth. What comes out is tokens a second against plain decoding of the same text.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from gorgon.backend import Backend, DraftState, Floats, Guesses, Ints
from gorgon.engine.drafter import Drafter, Limits
from gorgon.engine.sequence import Sequence
from gorgon.engine.states import States
from gorgon.request import Request
from gorgon.speculation.acceptance import Accepted, accept_lossless
from gorgon.speculation.cost import StepCost, StepTimes
from gorgon.speculation.tree import DraftTree

NUM_HEADS, TOP_K = 4, 4


@dataclass
class Machine:
    """A clock, a text, and heads whose best guess is right as often as ``truth`` of a place says.

    ``misjudge`` is added to the logit of what they state; ``heads_seconds`` is one call's time;
    ``change`` is what a step takes on top when its size is not that of the step before.
    """

    chance: np.random.Generator
    slope: float
    misjudge: float
    conditioned: bool
    skill: float
    heads_seconds: float
    change: float = 0.0
    now: float = 0.0
    place: int = 0  # of the root in the text
    texts: Ints = field(init=False)
    truths: Floats = field(init=False)

    def __post_init__(self) -> None:
        self.texts = self.chance.integers(0, 30_000, 4000).astype(np.int32)
        a, b = 3.0 * self.skill, 3.0 * (1.0 - self.skill)
        self.truths = self.chance.beta(a, b, 4000).astype(np.float32)

    @property
    def backend(self) -> Backend:
        return cast(
            Backend,
            SimpleNamespace(
                num_heads=NUM_HEADS,
                max_guesses=TOP_K,
                window=0,
                searches=False,
                drafts=False,
                propose=self.propose,
                deepen=self.deepen,
            ),
        )

    def clock(self) -> float:
        return self.now

    def propose(self, state: DraftState) -> Guesses:
        self.now += self.heads_seconds
        depths = 1 if self.conditioned else NUM_HEADS
        levels = [self._guess(self.place + 1 + depth) for depth in range(depths)]
        tokens, probs = zip(*levels, strict=True)
        states = np.array([[self.place + 1]], np.float32) if self.conditioned else None
        return Guesses(np.array([tokens], np.int32), np.array([probs], np.float32), states)

    def deepen(self, states: Floats, tokens: Ints, depth: int) -> Guesses:
        self.now += self.heads_seconds
        rows = [
            self._guess(int(place) + 1, token)
            for (place,), token in zip(states, tokens, strict=True)
        ]
        above, probs = zip(*rows, strict=True)
        return Guesses(
            np.array(above, np.int32)[:, None], np.array(probs, np.float32)[:, None], states + 1
        )

    def _guess(self, place: int, parent: int | None = None) -> tuple[list[int], list[float]]:
        """Ranked guesses for ``place``; what they state is not what holds."""
        truth = float(self.truths[place])
        right = self.chance.random() < truth
        if parent is not None and parent != self.texts[place - 1]:
            right = False
        best = int(self.texts[place]) if right else 40_000
        return [best, 40_001, 40_002, 40_003], [self._state(truth), 0.05, 0.03, 0.01]

    def _state(self, truth: float) -> float:
        p = min(max(truth, 1e-3), 1 - 1e-3)
        return 1 / (1 + (1 - p) / p * math.exp(-self.misjudge))


def simulate(machine: Machine, num_tokens: int) -> float:
    """Tokens a second over those of plain decoding."""
    t1 = 1.0
    sizes = (1, 64)
    times = StepTimes((32,), sizes, np.array([[t1, t1 * (1 + 63 * machine.slope)]]))
    cost = StepCost(times, 80, machine.change)
    states = States(2, 1, 1)
    drafter = Drafter(machine.backend, states, cost, clock=machine.clock)
    made = 0
    while made < num_tokens:
        made += _run_request(machine, drafter, states, min(256, num_tokens - made))
    return made * t1 / machine.now


def _run_request(machine: Machine, drafter: Drafter, states: States, length: int) -> int:
    machine.place = int(machine.chance.integers(0, 3000))
    root = int(machine.texts[machine.place])
    request = Request("r", (root,), length)
    sampler: Any = SimpleNamespace(noise=None)
    sequence = Sequence(request, sampler, 1, None, 0.0, 0.0, [root], [])
    drafter.start(sequence)
    while sequence.num_remaining > 0:
        began, cost, last = machine.now, drafter.cost, drafter.cost.last_size
        (tree,) = drafter.propose([sequence], Limits(63, 63, 63), 32.0)
        model = float(cost.times.seconds[0][0]) * (1 + (len(tree) - 1) * machine.slope)
        model += machine.change * (len(tree) != last)
        machine.now += model
        accepted = _accept(machine, tree, sequence.num_remaining)
        drafter.learn(sequence, tree, accepted)
        drafter.observe(1, len(tree), 32.0, len(accepted.tokens), machine.now - began, model)
        states.note(np.ones((1, 1), np.float32), [(sequence, [0])])
        sequence.count(tree, accepted)
        sequence.tokens += accepted.tokens
        machine.place += len(accepted.tokens)
    drafter.end(sequence)
    return length


def _accept(machine: Machine, tree: DraftTree, remaining: int) -> Accepted:
    return accept_lossless(
        tree,
        lambda node: int(machine.texts[machine.place + 1 + tree.shape.depths[node]]),
        lambda _token, count: count >= remaining,
    )


@pytest.mark.parametrize("seed", range(24))
def test_wrong_confidences_never_cost_more_than_three_percent(seed: int) -> None:
    chance = np.random.default_rng(seed)
    machine = Machine(
        chance,
        slope=float(chance.choice([0.02, 0.1, 0.3, 0.6, 1.0])),
        misjudge=float(chance.uniform(-3, 4)),
        conditioned=bool(chance.integers(2)),
        skill=float(chance.choice([0.02, 0.2, 0.5, 0.8])),
        heads_seconds=float(chance.choice([0.01, 0.05, 0.1])),
        change=float(chance.choice([0.0, 0.05, 0.15])),
    )
    assert simulate(machine, 1500) >= 0.97, machine


@pytest.mark.parametrize("conditioned", [False, True])
def test_good_heads_on_a_flat_machine_pay(conditioned: bool) -> None:
    machine = Machine(np.random.default_rng(0), 0.05, 0.0, conditioned, 0.8, 0.02)
    assert simulate(machine, 1500) > 1.8
