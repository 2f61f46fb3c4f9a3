"""Drafts that the native library chooses by itself against the same choice in Python."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from gorgon.backend import Backend, DraftState
from gorgon.config import EngineSettings
from gorgon.engine.draft_step import DraftStep
from gorgon.engine.heads_calls import HeadsCalls
from gorgon.engine.heads_source import HeadsSource
from gorgon.engine.sequence import Sequence
from gorgon.engine.states import States
from gorgon.errors import HeadsError
from gorgon.llama import kernels
from gorgon.llama.heads import Heads, load_heads
from gorgon.llama.heads_file import Knots
from gorgon.noise import Noise
from gorgon.request import Request
from gorgon.speculation.candidates import Candidates
from gorgon.speculation.cost import CallCost
from gorgon.speculation.rows import Chain
from gorgon.speculation.survival import Correction
from tests.llama.files import EMBD, VOCAB, conditioned_tensors, write_base, write_heads

WINDOW, TOKEN_MAP = 2, np.random.default_rng(3).permutation(VOCAB)[:300].astype(np.int32)
KNOTS = Knots(np.array([0.0, 0.5, 1.0], np.float32), np.array([0.0, 0.7, 0.99], np.float32))


@pytest.fixture(scope="module", params=[0, WINDOW])
def heads(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Heads]:
    if kernels.functions() is None:
        pytest.skip("the native library is left out")
    folder = tmp_path_factory.mktemp("heads")
    base, tensors = write_base(folder / "base.gguf"), conditioned_tensors(request.param)
    path = write_heads(
        folder / "heads.gguf", base, tensors, token_ids=TOKEN_MAP, calibration=(KNOTS,) * 3
    )
    heads = load_heads(path, base, EngineSettings(threads=2, gpu_layers=0))
    yield heads
    heads.close()


class Case:
    """A step as ``data`` has it, and sources that draft for it."""

    def __init__(self, data: st.DataObject, heads: Heads) -> None:
        self.heads, draw = heads, data.draw
        self.count = draw(st.sampled_from([1, 1, 2, 3, 8, 70]))
        self.rooms = draw(st.lists(st.integers(1, 4), min_size=self.count, max_size=self.count))
        self.asked = sorted(draw(st.sets(st.integers(0, self.count - 1), min_size=1)))
        self.rng = np.random.default_rng(draw(st.integers(0, 1000)))
        self.shifts = self.rng.normal(draw(st.floats(-1, 3)), 1.0, (self.count, 17))
        slope, room = draw(st.floats(0.0, 0.1)), draw(st.integers(0, 24))
        rises = self.rng.uniform(0.0, 2.0 * slope / self.count, self.count + room)
        self.curve = [0.0, *np.cumsum([1.0, *rises]).tolist()][: self.count + room + 1]
        self.trust, self.call = draw(st.floats(0.6, 1.0)), draw(st.floats(1e-6, 0.03))
        self.depth = 1 + heads.window
        size = self.count, self.depth, EMBD
        self.earlier, self.last = self.rng.normal(size=(2, *size)).astype(np.float32)
        self.new = self.rng.integers(1, self.depth + 1, self.count).tolist()  # states of the last
        self.tokens = self.rng.integers(0, VOCAB, (self.count, 4)).tolist()
        looked_up = draw(st.sets(st.integers(0, self.count - 1)))
        self.noises = [
            Noise(i, i, draw(st.floats(0.01, 3.0))) if draw(st.booleans()) else None
            for i in range(self.count)
        ]
        self.chains = {root: self._chain(root) for root in sorted(looked_up)}

    def _chain(self, root: int) -> Chain:
        """Some tokens, the first of which the heads are likely to name."""
        size = int(self.rng.integers(1, self.rooms[root] + 1))
        tokens = self.rng.integers(0, VOCAB, size).tolist()
        if root in self.asked and self.rng.random() < 0.7:
            new, last = self.new[root], np.array([self.tokens[root][::-1][: self.depth]], np.int32)
            hidden = np.concatenate([self.last[root, :new], self.earlier[root]])[None, : self.depth]
            named = self.heads.propose(DraftState(hidden, last)).tokens
            tokens[0] = int(named[0, 0, self.rng.integers(0, 3)])
        return Chain(tokens, self.rng.uniform(0.2, 0.99, size).tolist())

    def draft(self, drafts: bool) -> tuple[DraftStep, list[Any], list[float]]:
        """The step, what the heads said of the next tokens, and what the source has learnt."""
        backend = cast(Backend, self._backend(drafts))
        sequences = self._sequences()
        calls = HeadsCalls(backend, self._states(sequences), 1.0, lambda: 0.0)
        calls.propose_cost = CallCost(self.call, self.call / 10, rate=0.0)
        calls.deepen_cost = CallCost(self.call / 2, self.call / 20, rate=0.0)
        source = HeadsSource(backend, calls)
        candidates = Candidates([s.tokens[-1] for s in sequences], self.rooms)
        free = list(range(self.count))
        step = DraftStep(candidates, sequences, free, self.curve, trust=self.trust)
        step.chains.update(self.chains)
        if step.chains:
            step.choose()
        assert source.add(step, self.asked)
        return step, [s.guesses for s in sequences], list(source._top)

    def _backend(self, drafts: bool) -> SimpleNamespace:
        heads = self.heads
        return SimpleNamespace(
            num_heads=heads.num_heads,
            window=heads.window,
            searches=False,
            drafts=drafts,
            propose=heads.propose,
            deepen=heads.deepen,
            draft=lambda noted, *rest: heads.draft(noted, self.last.ctypes.data, *rest),
        )

    def _states(self, sequences: list[Sequence]) -> States:
        """Earlier states of all requests, and noted rows of the last pass."""
        states = States(self.count, self.depth, EMBD)
        rows = [range(i * self.depth, (i + 1) * self.depth) for i in range(self.count)]
        states.note(self.earlier.reshape(-1, EMBD), zip(sequences, rows, strict=True))
        states.settle()
        latest = [row[:new] for row, new in zip(rows, self.new, strict=True)]
        states.note(self.last.reshape(-1, EMBD), zip(sequences, latest, strict=True))
        return states

    def _sequences(self) -> list[Sequence]:
        sequences = []
        for i in range(self.count):
            request = Request(str(i), tuple(self.tokens[i]), 100)
            sampler: Any = SimpleNamespace(noise=self.noises[i])
            sequence = Sequence(request, sampler, i, None, 0.0, 0.0, list(self.tokens[i]), [])
            sequence.heads_correction = Correction(0.0, self.shifts[i].tolist())
            sequences.append(sequence)
        return sequences


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_the_library_chooses_what_python_chooses(heads: Heads, data: st.DataObject) -> None:
    case = Case(data, heads)
    step, guesses, top = case.draft(drafts=True)
    reference, expected_guesses, expected_top = case.draft(drafts=False)
    assert step.trees() == reference.trees()
    event(f"{sum(noise is not None for noise in case.noises) > 0} noise")
    event(f"{max(tree.shape.max_depth for tree in step.trees())} deep")
    event(", ".join(sorted({source for tree in step.trees() for source in tree.sources})))
    event(f"{max(tree.shape.num_branches for tree in step.trees())} wide")
    assert step.choice.num_drafts == reference.choice.num_drafts
    assert step.choice.rate == pytest.approx(reference.choice.rate)
    assert step.spent == pytest.approx(reference.spent)
    assert step.expected() == pytest.approx(reference.expected())
    assert step.gain() == pytest.approx(reference.gain())
    assert guesses == expected_guesses
    assert top == pytest.approx(expected_top)


def test_heads_that_fail_cost_drafts_alone(caplog: pytest.LogCaptureFixture) -> None:
    def fail(*_: object) -> None:
        raise HeadsError("injected")

    backend = SimpleNamespace(num_heads=2, window=0, searches=False, drafts=True, draft=fail)
    calls = HeadsCalls(cast(Backend, backend), States(1, 1, 4), 1.0, lambda: 0.0)
    sampler: Any = SimpleNamespace(noise=None)
    sequence = Sequence(Request("a", (1, 2), 100), sampler, 0, None, 0.0, 0.0, [1, 2], [])
    step = DraftStep(Candidates([2], [9]), [sequence], [0], [0.0, 1.0, 1.0])
    assert not HeadsSource(cast(Backend, backend), calls).add(step, [0])
    assert [len(tree) for tree in step.trees()] == [1]
    assert "injected" in caplog.text
