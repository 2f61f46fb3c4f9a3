"""Checks a GBNF grammar before llama.cpp sees it.

llama.cpp takes grammars on trust: ``x{3,1}`` makes it loop 2^64 times, deep parentheses overflow
its stack, and left recursion through a rule that may be empty grows a stack without end. Whatever
passes here neither hangs nor aborts it. Knows grammars as text; neither tokens nor models.

The syntax is that of ``llama-grammar.cpp``, without token references (``<token>``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter

from gorgon.errors import RequestError

MAX_CHARS = 262_144
MAX_DEPTH = 64  # parentheses within each other
MAX_REPEATS = 2000  # llama.cpp's own limit for the counts of {m,n}
MAX_VANISHING = 16  # symbols in a row that may be empty: each doubles the ways to read a text
MAX_ELEMENTS = 500_000  # what all repetitions unfold to, in elements of 8 bytes

_ESCAPE = r'\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[trn"\\\[\]-])'
_SYNTAX = re.compile(
    rf"""
    (?P<space>[ \t]+ | \#[^\r\n]*)
  | (?P<newline>\r\n|\r|\n)
  | (?P<define>[a-zA-Z0-9-]+[ \t]*::=)
  | (?P<name>[a-zA-Z0-9-]+)
  | (?P<literal>"(?:{_ESCAPE}|[^"\\\0])*")
  | (?P<chars>\[\^?(?:{_ESCAPE}|[^\]\\\0])*\])
  | (?P<repeat>[*+?] | \{{[ \t]*[0-9]{{1,9}}[ \t]*(?:,[ \t]*(?:[0-9]{{1,9}})?[ \t]*)?\}})
  | (?P<mark>[|().])
    """,
    re.VERBOSE,
)
_UNIT = re.compile(rf"{_ESCAPE}|.", re.DOTALL)


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    line: int


@dataclass(slots=True)
class _Symbol:
    """One symbol of a sequence: the rule it names or nothing, and how large it is unfolded."""

    size: int
    rule: str | None = None
    is_empty: bool = False
    is_optional: bool = False
    repeats_forever: bool = False
    most: int = 1


@dataclass(slots=True)
class _Rules:
    """Alternatives of every rule; ``(`` makes rules of its own, named with a ``_``."""

    alternatives: dict[str, list[list[_Symbol]]] = field(default_factory=dict)
    sizes: int = 0

    def nullable(self) -> set[str]:
        """Rules that match the empty text.

        Each rule is looked at again when one that it names turns out to be nullable.
        """
        users: dict[str, list[str]] = {}
        for name, symbols in self.sequences():
            for symbol in symbols:
                if symbol.rule is not None:
                    users.setdefault(symbol.rule, []).append(name)
        found: set[str] = set()
        to_check = list(self.alternatives)
        while to_check:
            name = to_check.pop()
            alternatives = self.alternatives[name]
            if name not in found and any(_all_may_vanish(seq, found) for seq in alternatives):
                found.add(name)
                to_check += users.get(name, ())
        return found

    def sequences(self) -> Iterator[tuple[str, list[_Symbol]]]:
        """Every alternative with the rule that it belongs to."""
        for name, alternatives in self.alternatives.items():
            for symbols in alternatives:
                yield name, symbols


def check(grammar: str) -> None:
    """Refuse what llama.cpp would refuse, hang on or die of.

    Raises:
        RequestError: with the line and what is wrong with it.
    """
    if len(grammar) > MAX_CHARS:
        raise _refusal(f"is longer than {MAX_CHARS:,} characters")
    rules = _Parser(grammar).parse()
    if "root" not in rules.alternatives:
        raise _refusal("has no rule named 'root'")
    for _, symbols in rules.sequences():
        for symbol in symbols:
            if symbol.rule is not None and symbol.rule not in rules.alternatives:
                raise _refusal(f"names the rule '{symbol.rule}', which is not there")
    nullable = rules.nullable()
    _refuse_left_recursion(rules, nullable)
    _refuse_vanishing(rules, nullable)


def _may_vanish(symbol: _Symbol, nullable: set[str]) -> bool:
    return symbol.is_empty or symbol.is_optional or symbol.rule in nullable


def _all_may_vanish(symbols: list[_Symbol], nullable: set[str]) -> bool:
    return all(_may_vanish(symbol, nullable) for symbol in symbols)


def _refuse_left_recursion(rules: _Rules, nullable: set[str]) -> None:
    leftmost: dict[str, set[str]] = {name: set() for name in rules.alternatives}
    for name, symbols in rules.sequences():
        for symbol in symbols:
            if symbol.repeats_forever and (symbol.is_empty or symbol.rule in nullable):
                raise _refusal(f"repeats what may be empty without end, in '{_own(name)}'")
            if symbol.rule is not None:
                leftmost[name].add(symbol.rule)
            if not _may_vanish(symbol, nullable):
                break
    try:
        TopologicalSorter(leftmost).prepare()
    except CycleError as error:
        names = {_own(name) for name in error.args[1]}
        raise _refusal(f"is left-recursive in {', '.join(sorted(names))}") from error


def _refuse_vanishing(rules: _Rules, nullable: set[str]) -> None:
    """llama.cpp follows all readings at once and tries every token with each of them."""
    vanishing = {
        name: [seq for seq in rules.alternatives[name] if _all_may_vanish(seq, nullable)]
        for name in nullable
    }
    uses = {
        name: {s.rule for seq in found for s in seq if s.rule in nullable}
        for name, found in vanishing.items()
    }
    sizes: dict[str | None, int] = {}
    for name in TopologicalSorter(uses).static_order():
        assert name is not None
        lengths = [sum(_vanishing_size(s, sizes) for s in seq) for seq in vanishing[name]]
        sizes[name] = min(max(1, *lengths), MAX_ELEMENTS)
    for name, symbols in rules.sequences():
        run = 0
        for symbol in symbols:
            vanishes = _may_vanish(symbol, nullable)
            run = run + _vanishing_size(symbol, sizes) if vanishes else 0
            if run > MAX_VANISHING:
                raise _refusal(
                    f"has more than {MAX_VANISHING} symbols in a row that may be empty, in "
                    f"'{_own(name)}': there are too many ways to read a text"
                )


def _vanishing_size(symbol: _Symbol, sizes: dict[str | None, int]) -> int:
    """How many symbols a symbol stands for when it vanishes."""
    return sizes[symbol.rule] * symbol.most if symbol.rule in sizes else 1


def _own(name: str) -> str:
    """The rule as its author named it."""
    return name.split("_", maxsplit=1)[0]


class _Parser:
    """Recursive descent over the tokens of one grammar."""

    def __init__(self, grammar: str) -> None:
        self._tokens = [*_scan(grammar), _Token("end", "", grammar.count("\n") + 1)]
        self._at = 0
        self._rules = _Rules()

    def parse(self) -> _Rules:
        self._skip("newline")
        while self._peek.kind != "end":
            token = self._take()
            if token.kind != "define":
                raise _refusal(f"expects a rule, not '{token.text}'", token.line)
            self._skip("newline")
            name = token.text.removesuffix("::=").rstrip()
            self._rules.alternatives[name] = self._alternatives(name, 0)
            if self._peek.kind not in ("newline", "end"):
                raise _refusal(f"has a stray '{self._peek.text}'", self._peek.line)
            self._skip("newline")
        return self._rules

    @property
    def _peek(self) -> _Token:
        return self._tokens[self._at]

    def _take(self) -> _Token:
        token = self._tokens[self._at]
        self._at += 1
        return token

    def _skip(self, kind: str) -> None:
        while self._peek.kind == kind:
            self._at += 1

    def _alternatives(self, name: str, depth: int) -> list[list[_Symbol]]:
        found = [self._sequence(name, depth)]
        while self._peek.text == "|":
            self._take()
            self._skip("newline")
            found.append(self._sequence(name, depth))
        return found

    def _sequence(self, name: str, depth: int) -> list[_Symbol]:
        symbols: list[_Symbol] = []
        while True:
            if depth:
                self._skip("newline")
            token = self._peek
            if token.kind == "repeat":
                self._take()
                if not symbols or symbols[-1].is_empty:
                    raise _refusal(f"has nothing before '{token.text}'", token.line)
                self._repeat(symbols[-1], token)
            elif token.kind in ("literal", "chars", "name") or token.text in ("(", "."):
                symbols.append(self._symbol(name, depth))
            else:
                return symbols

    def _symbol(self, name: str, depth: int) -> _Symbol:
        token = self._take()
        if token.kind == "name":
            return _Symbol(1, rule=token.text)
        if token.text == "(":
            return self._group(name, depth + 1, token)
        size = len(_UNIT.findall(token.text)) - 2 if token.text != "." else 1
        return _Symbol(size, is_empty=size == 0)

    def _group(self, name: str, depth: int, opening: _Token) -> _Symbol:
        if depth > MAX_DEPTH:
            raise _refusal(f"nests parentheses deeper than {MAX_DEPTH}", opening.line)
        inner = f"{name}_{len(self._rules.alternatives)}_{self._at}"
        self._rules.alternatives[inner] = self._alternatives(name, depth)
        if self._take().text != ")":
            raise _refusal("has a '(' that is not closed", opening.line)
        return _Symbol(1, rule=inner)

    def _repeat(self, symbol: _Symbol, token: _Token) -> None:
        least, most = _counts(token)
        if most is None and symbol.is_optional:
            raise _refusal("repeats what may be empty without end", token.line)
        symbol.is_optional = symbol.is_optional or least == 0
        symbol.repeats_forever = symbol.repeats_forever or most is None
        symbol.most = max(1, most or 1)
        symbol.size *= max(least, symbol.most)
        self._rules.sizes += symbol.size
        if self._rules.sizes > MAX_ELEMENTS:
            raise _refusal("unfolds to too much; repeat less", token.line)


def _counts(token: _Token) -> tuple[int, int | None]:
    """How often at least and at most; None is without end."""
    if token.text in "*+?":
        return {"*": (0, None), "+": (1, None), "?": (0, 1)}[token.text]
    first, comma, second = token.text.strip("{}").partition(",")
    least = int(first)
    most = int(second) if second.strip() else None if comma else least
    if max(least, most or 0) > MAX_REPEATS:
        raise _refusal(f"repeats more than {MAX_REPEATS} times: {token.text}", token.line)
    if most is not None and most < least:
        raise _refusal(f"repeats at most fewer times than at least: {token.text}", token.line)
    return least, most


def _scan(grammar: str) -> Iterator[_Token]:
    at, line = 0, 1
    while at < len(grammar):
        match = _SYNTAX.match(grammar, at)
        if match is None:
            raise _refusal(f"cannot be read at '{grammar[at : at + 20]}'", line)
        if match.lastgroup != "space":
            assert match.lastgroup is not None
            yield _Token(match.lastgroup, match[0], line)
        line += match.lastgroup == "newline"
        at = match.end()


def _refusal(problem: str, line: int | None = None) -> RequestError:
    where = "" if line is None else f" (line {line})"
    return RequestError(f"grammar {problem}{where}", field="grammar")
