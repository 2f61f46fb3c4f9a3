"""What is asked, and in which order."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from gorgon.bench.answer import Load
from gorgon.bench.party import parse_mode
from gorgon.bench.plan import make_rounds, turn_order
from gorgon.bench.prompts import load_prompts
from gorgon.bench.trees import tree_paths
from gorgon.errors import BenchError
from gorgon.speculation.tree import from_paths
from tests.bench.conftest import make_document


def test_the_built_in_set_is_balanced_and_has_no_twins() -> None:
    prompts = load_prompts()
    assert len({prompt.text for prompt in prompts}) == len({p.id for p in prompts}) == len(prompts)
    assert set(Counter(prompt.category for prompt in prompts).values()) == {3}


def test_a_count_is_spread_over_the_file() -> None:
    every = load_prompts()
    assert load_prompts(count=4) == every[::6]
    assert load_prompts(count=30)[24:] == every[:6]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "holds no prompt"),
        ("{", ":1 is not JSON"),
        ('{"turns": ["a"]}\n[]', ":2: 'turns' must be"),
        ('{"turns": []}', "'turns' must be"),
        ('{"turns": [3]}', "'turns' must be"),
        ('{"prompt": "a"}', "'turns' must be"),
    ],
)
def test_bad_prompt_files_are_named(text: str, fault: str, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(BenchError, match=fault):
        load_prompts(path)
    with pytest.raises(BenchError, match="cannot read"):
        load_prompts(tmp_path / "none.jsonl")


def test_rounds_ask_everything_at_every_load() -> None:
    work = make_document().workload.model_copy(
        update={"clients": [1, 4], "repeats": 2, "waves": 2, "temperatures": [0.0, 0.7]}
    )
    prompts = load_prompts(count=12)
    rounds = list(make_rounds(prompts, work))
    single = [r for r in rounds if r.load.clients == 1 and r.load.temperature == 0.7]
    assert Counter(p.id for r in single for p in r.prompts) == {p.id: 2 for p in prompts}
    assert len({r.key for r in single}) == 24
    assert len({r.group for r in single}) == 12
    many = [r for r in rounds if r.load.clients == 4 and r.load.temperature == 0]
    assert [len(r.prompts) for r in many] == [8] * 4
    assert {p.id for r in many for p in r.prompts} == {p.id for p in prompts}


def test_answers_differ_in_length_as_far_as_they_may_and_alike_for_everybody() -> None:
    prompts = load_prompts()
    work = make_document().workload.model_copy(
        update={"clients": [4], "length": 100, "spread": 0.5, "repeats": 2}
    )
    lengths: dict[str, set[int]] = {}
    for step in make_rounds(prompts, work):
        for prompt in step.prompts:
            lengths.setdefault(prompt.id, set()).add(step.load.length_of(prompt))
        assert step.max_tokens == sum(step.load.length_of(prompt) for prompt in step.prompts)
    every = [length for (length,) in lengths.values()]
    assert min(every) >= 50
    assert max(every) <= 150
    assert len(set(every)) > len(prompts) // 2
    assert work.answers == "50 to 150 new tokens"
    plain = Load(4, 100, natural=False, temperature=0.0, seed=1)
    assert {plain.length_of(prompt) for prompt in prompts} == {100}


def test_every_party_goes_first_equally_often() -> None:
    firsts = Counter(turn_order(3, number)[0] for number in range(9))
    assert firsts == {0: 3, 1: 3, 2: 3}
    assert all(sorted(turn_order(3, number)) == [0, 1, 2] for number in range(9))


def test_modes() -> None:
    assert parse_mode("normal").tree_size == 1
    assert parse_mode("medusa").tree is None
    assert parse_mode("chain:4").tree == ((0,), (0, 0), (0, 0, 0))
    assert parse_mode("paths:0;0,1").tree == ((0,), (0, 1))
    assert parse_mode("tree:8").tree_size == 8


@pytest.mark.parametrize(
    "text", ["", "chain", "chain:1", "tree:65", "tree:x", "paths:a", "normal:3"]
)
def test_other_modes_are_refused(text: str) -> None:
    with pytest.raises(BenchError, match="none of"):
        parse_mode(text)


@pytest.mark.parametrize("size", [2, 4, 8, 16, 32, 64])
def test_trees_of_any_size_are_trees(size: int) -> None:
    shape = from_paths(tree_paths(size))
    assert len(shape) == size
    assert shape.max_depth <= 4
