"""Prompt lookup: the longest earlier occurrence is found, and its worth is measured."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gorgon.speculation.lookup import MAX_TOKENS, LookupSurvival, Occurrences


def longest_match(text: list[int]) -> int:
    """Length of the longest end of ``text`` that occurs before and is followed by something."""
    for length in range(min(16, len(text) - 1), 0, -1):
        for end in range(length, len(text)):
            if text[end - length : end] == text[-length:]:
                return length
    return 0


@given(st.lists(st.integers(0, 3), max_size=60), st.lists(st.integers(1, 9), max_size=20))
def test_a_match_is_an_earlier_occurrence_and_long_ones_are_found(
    text: list[int], cuts: list[int]
) -> None:
    occurrences = Occurrences()
    end = 0
    for cut in [*cuts, len(text)]:  # as the text grows in steps of any size
        end = min(len(text), end + cut)
        match = occurrences.match(text[:end])
        best = longest_match(text[:end])
        if match is None:
            assert best < 2
            continue
        assert 2 <= match.length <= best
        assert match.length >= 4 or best < 4
        places = [
            place
            for place in range(match.length, end)
            if text[place - match.length : place] == text[end - match.length : end]
        ]
        assert any(tuple(text[p : min(p + MAX_TOKENS, end)]) == match.tokens for p in places)


def test_the_latest_of_equal_occurrences_counts() -> None:
    match = Occurrences().match([1, 2, 7, 1, 2, 8, 1, 2])
    assert match is not None
    assert match.tokens == (8, 1, 2)


def test_how_often_lookups_are_right_is_learnt_by_length() -> None:
    survival = LookupSurvival()
    before = survival.at(2)
    for _ in range(400):
        survival.learn(10, True)
        survival.learn(3, False)
    assert survival.at(9) > 0.98
    assert survival.at(3) < 0.02
    assert survival.at(2) == before


def test_old_lookups_fade() -> None:
    survival = LookupSurvival()
    for right in [True] * 5000 + [False] * 5000:
        survival.learn(4, right)
    assert survival.at(4) < 0.1
