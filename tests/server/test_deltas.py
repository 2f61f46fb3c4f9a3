"""What a step gave, as text and log-probabilities of an answer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from gorgon.request import FinishReason, StepResult
from gorgon.server.generation import Generator
from gorgon.server.openai.deltas import _Answer
from tests.server.test_text import ByteVocabulary

END = 0  # the token that ends a text


def answer() -> _Answer:
    vocabulary: Any = ByteVocabulary()
    vocabulary.eog_ids = frozenset({END})
    return _Answer(cast(Generator, SimpleNamespace(model=vocabulary)), (), special=False)


def test_the_token_that_ends_a_text_is_counted_but_not_shown() -> None:
    out = answer()
    text, _ = out.push(StepResult("r", (*b"ab", END), (1, 2, 0), FinishReason.STOP))
    assert (text, out.stream.num_tokens) == ("ab", 3)


@pytest.mark.parametrize("finish", [None, FinishReason.LENGTH])
def test_a_text_told_to_go_on_goes_on_behind_it(finish: FinishReason | None) -> None:
    """Also where both come from one accepted path, in the last step."""
    out = answer()
    text, _ = out.push(StepResult("r", (*b"a", END, *b"b"), (1, 2, 0), finish))
    assert text.replace("\0", "") == "ab"
    assert out.stream.num_tokens == 3
