"""Grammars: what llama.cpp would hang on or die of is refused with its line."""

from __future__ import annotations

import pytest

from gorgon.errors import RequestError
from gorgon.llama import gbnf

GOOD = [
    'root ::= "a"',
    'root ::= "a" |\n  "b" # a comment\nother ::= [a-z]*',
    r'root ::= "\"" [^"\\\x00-\x1F]* "\""',
    'root ::= ("a"\n | "b"\n root)+',
    'root ::= ("a" root)*',
    "root ::= item{2,5} item{3,} item{1}\nitem ::= [^\\]\\\\é-ü]",
    'root ::= "" | "a"',
    "root ::= . .?",
    'root ::= pair\n\n\npair ::= "x" rest?\nrest ::= pair',
]
BAD = [
    ("", "root"),
    ('start ::= "a"', "root"),
    ("root ::= other", "other"),
    ('root ::= "a', "line 1"),
    ("root ::= [a", "line 1"),
    ('root ::= "\\q"', "line 1"),
    ('root ::= "a"\nnonsense', "line 2"),
    ('root ::= ("a"', "closed"),
    ('root ::= "a")', "stray"),
    ("root ::= *", "nothing before"),
    ('root ::= "a"{3,1}', "fewer"),
    ('root ::= "a"{2001}', "2000"),
    ("root ::= " + '"a"' * 1000 + '"' + "b" * 1000 + '"{2000}', "unfolds"),
    ("root ::= " + "(" * 5000 + ")" * 5000, "deeper"),
    ('root ::= root "a" | "b"', "left-recursive"),
    ('root ::= a root "y" | "x"\na ::= b\nb ::= ""', "left-recursive"),
    ('root ::= ("a"?)*', "without end"),
    ('root ::= "a"?*', "without end"),
    ("root ::= a+\na ::= b b\nb ::= [x]?", "without end"),
    ("root ::= <[5]>", "cannot be read"),
    ("root ::= a_b", "cannot be read"),
    ("root ::= " + "x" * 300_000, "longer"),
    ('root ::= "\0"', "cannot be read"),
]


@pytest.mark.parametrize(
    "grammar",
    [
        "root ::= " + "x " * 17 + "\nx ::= [a-z ]*",
        "root ::= " + '"a"? ' * 17,
        "root ::= a{0,17}\na ::= " + '"b" | ""',
        "root ::= r0\n"
        + "\n".join(f"r{i} ::= r{i + 1} r{i + 1}" for i in range(5))
        + '\nr5 ::= "a" | ""',
    ],
)
def test_too_many_ways_to_read_a_text_are_refused(grammar: str) -> None:
    with pytest.raises(RequestError, match="too many ways"):
        gbnf.check(grammar)


def test_a_long_chain_of_rules_is_checked_at_once() -> None:
    rules = [f"r{i} ::= r{i + 1}" for i in range(8000)]
    gbnf.check("\n".join(["root ::= r0", *rules, 'r8000 ::= ""']))


@pytest.mark.parametrize("grammar", GOOD)
def test_good_grammars_pass(grammar: str) -> None:
    gbnf.check(grammar)


@pytest.mark.parametrize(("grammar", "message"), BAD)
def test_bad_grammars_are_refused_with_a_reason(grammar: str, message: str) -> None:
    with pytest.raises(RequestError, match=message) as refusal:
        gbnf.check(grammar)
    assert refusal.value.field == "grammar"
