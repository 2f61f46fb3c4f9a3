"""Replayed drafts are right as often as stated, in the engine itself."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from gorgon.backend import BatchRow, DraftState
from gorgon.bench.accuracies import (
    VICUNA_CONDITIONED,
    VICUNA_MEDUSA,
    Accuracies,
    load_accuracies,
)
from gorgon.bench.answer import Load
from gorgon.bench.document import PartyInfo
from gorgon.bench.inprocess import EngineParty
from gorgon.bench.prompts import Prompt
from gorgon.bench.replay import SCRIPT_LENGTH, ReplayBackend, Script
from gorgon.bench.trees import tree_paths
from gorgon.config import EngineSettings
from gorgon.engine.engine import Engine
from gorgon.errors import BenchError
from gorgon.request import SamplingParams, SpeculationParams
from tests.engine.driver import flat_cost
from tests.fake import FakeBackend, ToyModel

PROMPTS = [Prompt(str(i), "all", "abc"[: 1 + i % 3]) for i in range(6)]


class Letters:
    def piece(self, token: int) -> bytes:
        return b"%d " % token


def test_published_yields_come_out_of_the_published_accuracies() -> None:
    expected = {2: 1.56, 3: 1.74, 4: 1.85, 6: 1.96, 8: 2.04, 16: 2.21, 32: 2.32, 64: 2.38}
    for nodes, tokens in expected.items():
        assert VICUNA_MEDUSA.expected_tokens(nodes) == pytest.approx(tokens, rel=0.02)
    assert VICUNA_CONDITIONED.expected_tokens(64) == pytest.approx(3.26, rel=0.01)


@pytest.mark.parametrize("accuracies", [VICUNA_MEDUSA, VICUNA_CONDITIONED])
def test_guesses_hold_the_truth_as_often_as_stated(accuracies: Accuracies) -> None:
    script = Script(accuracies, 32_000, seed=5)
    for depth, chances in enumerate(accuracies.ranks):
        truth = np.roll(script.tokens, -depth)
        hits = script.guesses[:, depth] == truth[:, None]
        assert np.allclose(hits.mean(axis=0), chances, atol=4 * (0.25 / SCRIPT_LENGTH) ** 0.5)
        assert hits.sum(axis=1).max() == 1
    assert all(len(set(guesses)) == len(guesses) for guesses in script.guesses[:50, 0].tolist())


def make_party(accuracies: Accuracies, size: int) -> tuple[EngineParty, ReplayBackend]:
    model = ToyModel(num_vocab=1024)
    fake = FakeBackend(model, num_cells=2048, max_guesses=4, num_heads=len(accuracies.ranks))
    backend = ReplayBackend(fake, accuracies)
    engine = Engine(backend, EngineSettings(num_cells=2048), flat_cost())
    speculation = SpeculationParams(tree=tree_paths(size))
    info = PartyInfo(name="t", kind="engine", version="", settings={}, replayed=True)
    party = EngineParty(info, engine, Letters(), lambda text: list(text.encode()), speculation)
    return party, backend


def test_the_engine_yields_what_the_accuracies_promise() -> None:
    party, backend = make_party(VICUNA_MEDUSA, 8)
    answers = party.run(PROMPTS, Load(3, 200, natural=False, temperature=0.0, seed=0))
    tokens = sum(answer.tokens for answer in answers)
    steps = sum(answer.drafts.steps or 0 for answer in answers)
    assert tokens == 1200
    assert tokens / steps == pytest.approx(VICUNA_MEDUSA.expected_tokens(8), rel=0.08)
    wanted = [backend.script.token(place) for place in range(200)]
    assert answers[0].text.split() == [str(token) for token in wanted]
    party.engine.check_integrity()


def test_answers_are_as_long_as_the_load_says() -> None:
    party, _ = make_party(VICUNA_MEDUSA, 8)
    load = Load(3, 60, natural=False, temperature=0.0, seed=0, spread=0.5)
    answers = party.run(PROMPTS, load)
    assert [a.tokens for a in answers] == [load.length_of(prompt) for prompt in PROMPTS]
    assert len({answer.tokens for answer in answers}) > 1


def test_a_search_goes_on_where_the_accuracies_say() -> None:
    num_heads = len(VICUNA_CONDITIONED.ranks)
    fake = FakeBackend(
        ToyModel(num_vocab=1024),
        max_guesses=4,
        num_heads=num_heads,
        conditioned=True,
        searches=True,
        agreement=0.0,
    )
    backend = ReplayBackend(fake, VICUNA_CONDITIONED)
    sampler = backend.make_sampler(SamplingParams(), (1, 2))
    backend.prefill([BatchRow(1, 0, (0,))])
    output = backend.decode([BatchRow(2, 1, (0,))])
    token = sampler.draw(output, 0)
    state = DraftState(output.hidden[None, :1], np.array([[token]], np.int32))
    levels = backend.search(state)
    assert [len(level.tokens) for level in levels] == [1, 2, 2, 2]
    for above, level in itertools.pairwise(levels):
        found = above.guesses.tokens[level.parents, 0]
        assert (found == level.tokens[:, None]).any(axis=1).all()
    # The two likeliest paths of each depth, and what the script guesses there.
    assert levels[1].tokens.tolist() == levels[0].guesses.tokens[0, 0, :2].tolist()
    for depth, level in enumerate(levels):
        script = backend.script.guesses[1, depth]
        assert (level.guesses.tokens[:, 0] == script).all()


def test_where_the_steps_spent_their_time_is_known() -> None:
    party, _ = make_party(VICUNA_MEDUSA, 4)
    party.run(PROMPTS[:2], Load(2, 20, natural=False, temperature=0.0, seed=0))
    share = party.take_step_share()
    assert share is not None
    assert share.num_steps > 5
    assert share.total["p50"] >= share.outside["p50"] > 0
    assert party.take_step_share() is None


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("{", "nor a JSON file"),
        ("[]", "variant"),
        ('{"variant": "eagle"}', "variant"),
        ('{"variant": "medusa"}', "ranks"),
        ('{"variant": "medusa", "ranks": []}', "1 to 16"),
        ('{"variant": "medusa", "ranks": [[0.6, 0.6]]}', "at most 1"),
        ('{"variant": "medusa", "ranks": [[-0.1]]}', "at most 1"),
        ('{"variant": "medusa", "ranks": [[0.5], [0.4, 0.1]]}', "as many"),
    ],
)
def test_bad_accuracies_are_named(text: str, fault: str, tmp_path: Path) -> None:
    path = tmp_path / "heads.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(BenchError, match=fault):
        load_accuracies(str(path))


def test_accuracies_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text('{"variant": "medusa", "ranks": [[0.5, 0.1], [0.4, 0.1]]}', encoding="utf-8")
    found = load_accuracies(str(path))
    assert (found.name, found.ranks) == ("mine", ((0.5, 0.1), (0.4, 0.1)))
