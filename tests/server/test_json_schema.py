"""Schemas become grammars; what they cannot say is refused by name."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gorgon.errors import RequestError
from gorgon.llama import gbnf
from gorgon.server import number_ranges
from gorgon.server.json_schema import json_object_grammar, schema_grammar
from tests.server.schemas import SCHEMAS


def matches(alternatives: str, text: str) -> bool:
    """Whether a rule of digits holds ``text``."""
    patterns = alternatives.replace(" ", "").replace('"-"', "-").replace('"."', r"\.").split("|")
    return any(re.fullmatch(pattern, text) for pattern in patterns)


@given(st.integers(-2000, 2000), st.integers(0, 3000))
def test_integers_are_exactly_those_in_bounds(low: int, span: int) -> None:
    rule = number_ranges.integers(Decimal(low), Decimal(low + span))
    for number in {*range(low - 12, low + 12), *range(low + span - 12, low + span + 12), -1, 0, 1}:
        assert matches(rule, str(number)) == (low <= number <= low + span)


@given(st.decimals(-30, 30, places=2), st.decimals(0, 40, places=1), st.booleans(), st.booleans())
def test_decimals_stay_within_bounds(
    low: Decimal, span: Decimal, open_low: bool, open_high: bool
) -> None:
    high = low + span
    rule = number_ranges.decimals(low, high, open_low=open_low, open_high=open_high)
    for places in (0, 1, 2, 3):
        unit = Decimal(1).scaleb(-places)
        for near in (low, high, Decimal(0), (low + high) / 2):
            for steps in range(-3, 4):
                number = near.quantize(unit) + steps * unit
                text = f"{number:f}"
                above = low < number if open_low else low <= number
                below = number < high if open_high else number <= high
                if matches(rule, text):
                    assert above
                    assert below
                elif above and below:  # left out: "-0", and more decimals than a bound has
                    assert places > 1 or (number == 0 and text.startswith("-"))


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_schema_becomes_a_grammar_that_passes(name: str) -> None:
    gbnf.check(schema_grammar(SCHEMAS[name], "schema"))


def test_any_object_has_a_grammar() -> None:
    gbnf.check(json_object_grammar())


@pytest.mark.parametrize(
    ("schema", "where"),
    [
        ({"type": "string", "pattern": "a+"}, "schema.pattern"),
        ({"type": "text"}, "schema.type"),
        ({"$ref": "https://example.org/x"}, "schema.$ref"),
        ({"$ref": "#/$defs/none"}, "schema.$ref"),
        ({"properties": {"a": {"type": "integer", "multipleOf": 2}}}, "properties.a.multipleOf"),
        ({"type": "array", "uniqueItems": True}, "schema.uniqueItems"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "no number"),
        ({"type": "number", "minimum": "3"}, "schema.minimum"),
        ({"type": "number", "minimum": float("inf")}, "schema.minimum"),
        ({"type": "string", "minLength": 9, "maxLength": 2}, "schema.minLength"),
        ({"type": "string", "format": "color"}, "schema.format"),
        ({"type": "object", "required": ["x"]}, "schema.required"),
        ({"enum": []}, "schema.enum"),
        ({"enum": [1], "type": "string"}, "schema.enum"),
        ({"anyOf": [{"type": "null"}], "properties": {}}, "schema.properties"),
        ({"not": {}}, "schema.not"),
        ({"properties": {"a": {}}, "required": [{}]}, "schema.required"),
        ({"type": [{}]}, "schema.type"),
        ({"const": float("nan")}, "schema holds nan"),
        ({"enum": ["\ud800"]}, "schema holds '\\ud800'"),
        ({"properties": {"\ud800": {}}}, "schema holds '\\ud800'"),
        ({"items": False}, None),
    ],
)
def test_what_a_grammar_cannot_keep_is_refused(schema: dict[str, Any], where: str | None) -> None:
    if where is None:
        gbnf.check(schema_grammar(schema, "schema"))
        return
    with pytest.raises(RequestError) as refusal:
        schema_grammar(schema, "schema")
    assert where in str(refusal.value)


def test_choices_are_limited_in_all() -> None:
    words = {"enum": [f"w{i}" for i in range(600)]}
    schema_grammar({"type": "array", "items": words}, "schema")
    with pytest.raises(RequestError, match=r"b\.enum makes more than 1000 choices"):
        schema_grammar({"type": "object", "properties": {"a": words, "b": words}}, "schema")


def test_endless_nesting_is_refused() -> None:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(200):
        schema = {"type": "array", "items": schema}
    with pytest.raises(RequestError, match="deeper"):
        schema_grammar(schema, "schema")
