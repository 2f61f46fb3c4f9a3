"""Grammars on the real model: with drafts as without, never a token too much, never an abort."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator

import pytest

from gorgon.config import EngineSettings
from gorgon.engine.engine import Engine
from gorgon.errors import RequestError
from gorgon.llama.backend import LlamaBackend
from gorgon.request import FinishReason, Request, SamplingParams, SpeculationParams
from tests.engine.driver import flat_cost

PERSON = r"""
root ::= "{" ws "\"name\":" ws text "," ws "\"age\":" ws [0-9]{1,3} ws "}"
text ::= "\"" [a-zA-Z ]{1,20} "\""
ws ::= " "?
"""
TREES = [None, ((0,), (0, 0), (1,)), ((0,), (0, 0), (0, 0, 0), (0, 1), (1,), (1, 0), (2,))]
_ids = itertools.count()


@pytest.fixture(scope="module")
def backend() -> Iterator[LlamaBackend]:
    backend = LlamaBackend(EngineSettings(threads=1, num_cells=1024))
    yield backend
    backend.close()


@pytest.fixture
def engine(backend: LlamaBackend) -> Iterator[Engine]:
    settings = EngineSettings(threads=1, num_cells=1024)
    engine = Engine(backend, settings, flat_cost())
    yield engine
    engine.check_integrity()
    engine.pool.forget_prefixes()


def generate(
    engine: Engine,
    sampling: SamplingParams,
    tree: tuple[tuple[int, ...], ...] | None = None,
    max_tokens: int = 64,
    prompt: str = "A person as JSON:",
) -> tuple[str, FinishReason, int]:
    """Text, reason of its end, accepted drafts."""
    model = engine.backend.model  # type: ignore[attr-defined]
    ids = model.tokenize(prompt, add_special=True, parse_special=False)
    mode = SpeculationParams("normal") if tree is None else SpeculationParams("fixed", tree)
    engine.submit(Request(f"g{next(_ids)}", tuple(ids), max_tokens, sampling, mode))
    text, finish, accepted = b"", None, 0
    while engine.has_work:
        for result in engine.step():
            assert result.error is None
            text += b"".join(model.piece(token) for token in result.tokens)
            accepted += sum(depth > 0 for depth in result.depths)
            finish = result.finish
    assert finish is not None
    return text.decode(), finish, accepted


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_drafts_change_nothing_under_a_grammar(engine: Engine, temperature: float) -> None:
    sampling = SamplingParams(temperature=temperature, seed=7, grammar=PERSON)
    answers = [generate(engine, sampling, tree) for tree in TREES]
    assert all(finish is FinishReason.STOP for _, finish, _ in answers)
    assert {text for text, _, _ in answers} == {answers[0][0]}
    assert set(json.loads(answers[0][0])) == {"name", "age"}
    assert answers[2][2] > 0


def test_a_grammar_holds_from_its_trigger_on(engine: Engine) -> None:
    prompt = "The colour of the sky"
    free, _, _ = generate(engine, SamplingParams(), prompt=prompt)
    word = " sound"
    sampling = SamplingParams(grammar='root ::= "GREEN!"', grammar_trigger=word)
    text, finish, _ = generate(engine, sampling, TREES[1], prompt=prompt)
    assert text == free.partition(word)[0] + word + "GREEN!"
    assert finish is FinishReason.STOP


@pytest.mark.parametrize(
    "grammar",
    ['root ::= "a" [^\\x00-\\U0010FFFF]', 'root ::= "ab" [\\x00]', 'root ::= "" | "zq"'],
)
def test_a_text_that_nothing_can_continue_ends(engine: Engine, grammar: str) -> None:
    for temperature in (0.0, 1.0):
        sampling = SamplingParams(temperature=temperature, grammar=grammar)
        _, finish, _ = generate(engine, sampling, TREES[2])
        assert finish is FinishReason.STOP


def test_letters_outside_ascii_come_whole(engine: Engine) -> None:
    sampling = SamplingParams(temperature=1.0, seed=3, grammar='root ::= [日本語😀é]{6} "."')
    text, finish, _ = generate(engine, sampling, TREES[2])
    assert finish is FinishReason.STOP
    assert re.fullmatch("[日本語😀é]{6}[.]", text)


def test_a_bad_grammar_is_refused_on_submission(engine: Engine) -> None:
    with pytest.raises(RequestError, match="left-recursive"):
        generate(engine, SamplingParams(grammar='root ::= root "a"'))
    assert not engine.has_work


def test_a_bias_forces_and_forbids_tokens(engine: Engine) -> None:
    model = engine.backend.model  # type: ignore[attr-defined]
    (token,) = model.tokenize(" cat", add_special=False, parse_special=False)
    forced, _, _ = generate(engine, SamplingParams(logit_bias=((token, 100.0),)), max_tokens=3)
    assert forced == " cat cat cat"
    free, _, _ = generate(engine, SamplingParams(), max_tokens=1)
    (first,) = model.tokenize(free, add_special=False, parse_special=False)
    banned, _, _ = generate(engine, SamplingParams(logit_bias=((first, -100.0),)), max_tokens=1)
    assert banned != free
    with pytest.raises(RequestError, match="logit_bias"):
        generate(engine, SamplingParams(logit_bias=((10**6, 1.0),)))
