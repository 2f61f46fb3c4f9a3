"""From JSON Schema to a GBNF grammar whose every text is a valid document.

The grammar may know fewer documents than the schema (properties come in the schema's order, none
are added, numbers have a bounded length), never more. A keyword that cannot be kept is refused by
name: llama-cpp-python's ``json_schema_to_gbnf`` leaves bounds of numbers, ``uniqueItems`` and most
formats out without a word, and fails on bad schemas with an ``AssertionError``.
Knows JSON and grammars, not models.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from gorgon.server import number_ranges
from gorgon.server.schema_node import TYPES, SchemaNode

MAX_CHOICES = 1000  # values of enums and schemas of anyOf, all together: each slows every draw

_DATE = '[1-9][0-9]{3} "-" ("0" [1-9] | "1" [0-2]) "-" ("0" [1-9] | "1" [0-9] | "2" [0-8])'
_TIME = '([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9] ":" [0-5] [0-9] "Z"'
_BYTE = '("25" [0-5] | "2" [0-4] [0-9] | "1" [0-9] [0-9] | [1-9] [0-9] | [0-9])'
_FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f'{_DATE} "T" {_TIME}',
    "uuid": '[0-9a-f]{8} "-" [0-9a-f]{4} "-" [0-9a-f]{4} "-" [0-9a-f]{4} "-" [0-9a-f]{12}',
    "ipv4": f'{_BYTE} "." {_BYTE} "." {_BYTE} "." {_BYTE}',
    "email": '[a-z0-9]{1,24} ("." [a-z0-9]{1,12})? "@" [a-z0-9]{1,24} "." [a-z]{2,6}',
}
_SHARED = {
    "ws": r'(" " | "\n" [ ]{0,16})?',
    "char": r'[^"\\\x00-\x1F\x7F] | "\\" (["\\/bfnrt] | "u" '
    r"([0-9a-cA-CefEF] [0-9a-fA-F]{3} | [dD] [0-7] [0-9a-fA-F]{2}))",
    "string": r'"\"" char* "\""',
    "integer": '"-"? ("0" | [1-9] [0-9]{0,14})',
    "number": '"-"? ("0" | [1-9] [0-9]{0,14}) ("." [0-9]{1,15})? ([eE] [-+]? [0-9]{1,2})?',
    "boolean": '"true" | "false"',
    "null": '"null"',
    "value": "object | array | string | number | boolean | null",
    "object": '"{" ws (string ":" ws value ("," ws string ":" ws value)*)? ws "}"',
    "array": '"[" ws (value ("," ws value)*)? ws "]"',
}
_NAME = re.compile(r"[a-zA-Z0-9]+")


def json_object_grammar() -> str:
    """The grammar of any JSON object."""
    return Grammar().text("object")


def schema_grammar(schema: Mapping[str, Any], field: str) -> str:
    """The grammar of documents that ``schema`` allows.

    Args:
        schema: a JSON Schema object.
        field: where it stood in the request, for error messages.

    Raises:
        RequestError: for what is not a schema, or a keyword that cannot be kept.
    """
    grammar = Grammar()
    return grammar.text(grammar.add(schema, field))


def literal(text: str) -> str:
    """``text`` as a GBNF literal."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    escaped = escaped.replace("\n", "\\n").replace("\r", "\\r").replace("\0", "\\x00")
    return f'"{escaped}"'


class Grammar:
    """Rules made of schemas."""

    def __init__(self) -> None:
        self._rules: dict[str, str] = {}
        self._refs: dict[tuple[int, str], str] = {}
        self._num_choices = 0

    def add(self, schema: Any, path: str) -> str:
        """The name of a rule for ``schema``, which stands at ``path`` in the request."""
        return self._visit(SchemaNode(schema, schema, path))

    def rule(self, path: str, body: str) -> str:
        """The name of a new rule with ``body``, for what stands at ``path``."""
        name = f"r{len(self._rules)}-{''.join(_NAME.findall(path.rpartition('.')[2]))[:20]}"
        self._rules[name] = body
        return name

    def text(self, root: str) -> str:
        """The whole grammar, starting at the rule or expression ``root``."""
        rules = {"root": root, **_SHARED, **self._rules}
        return "\n".join(f"{name} ::= {body}" for name, body in rules.items())

    # -- schemas ----------------------------------------------------------------------------------

    def _visit(self, node: SchemaNode) -> str:
        if node.is_anything:
            return "value"
        keywords = node.keywords()
        for keyword, visit in self._combinators().items():
            if keyword in keywords:
                node.allow({keyword, *({"type"} if keyword in ("enum", "const") else ())})
                return visit(node)
        return self._typed(node)

    def _combinators(self) -> dict[str, Callable[[SchemaNode], str]]:
        return {
            "$ref": self._ref,
            "const": lambda node: self.rule(node.path, _constant(node, node.value["const"])),
            "enum": self._enum,
            "anyOf": lambda node: self._any_of(node, "anyOf"),
            "oneOf": lambda node: self._any_of(node, "oneOf"),
            "allOf": self._all_of,
        }

    def _ref(self, node: SchemaNode) -> str:
        target = node.target()
        key = (id(node.whole), node.value["$ref"])
        if key not in self._refs:
            self._refs[key] = self.rule(key[1].replace("/", "."), "")
            self._rules[self._refs[key]] = self._visit(target)
        return self._refs[key]

    def _enum(self, node: SchemaNode) -> str:
        values = node.list_of("enum", "value")
        if "type" in node.value:
            types = node.types()
            values = [value for value in values if any(_is_a(value, kind) for kind in types)]
            if not values:
                raise node.refusal("has no value of the type", "enum")
        self._count_choices(node, "enum", len(values))
        return self.rule(node.path, " | ".join(_constant(node, value) for value in values))

    def _count_choices(self, node: SchemaNode, keyword: str, count: int) -> None:
        self._num_choices += count
        if self._num_choices > MAX_CHOICES:
            problem = f"makes more than {MAX_CHOICES} choices in the whole schema"
            raise node.refusal(problem, keyword)

    def _any_of(self, node: SchemaNode, keyword: str) -> str:
        choices = node.list_of(keyword, "schema")
        self._count_choices(node, keyword, len(choices))
        names = [self._visit(node.below(choice, keyword, i)) for i, choice in enumerate(choices)]
        return self.rule(node.path, " | ".join(names))

    def _all_of(self, node: SchemaNode) -> str:
        parts = node.list_of("allOf", "schema")
        if len(parts) != 1:
            raise node.refusal("can only hold one schema; merge them into one", "allOf")
        return self._visit(node.below(parts[0], "allOf", 0))

    def _typed(self, node: SchemaNode) -> str:
        types = node.types()
        node.allow({"type"}.union(*(TYPES[kind] for kind in types)))
        makers: dict[str, Callable[[SchemaNode], str]] = {
            "object": self._object,
            "array": self._array,
            "string": self._string,
            "integer": self._integer,
            "number": self._number,
            "boolean": lambda _: "boolean",
            "null": lambda _: "null",
        }
        names = [makers[kind](node) for kind in types]
        return names[0] if len(names) == 1 else self.rule(node.path, " | ".join(names))

    # -- types ------------------------------------------------------------------------------------

    def _object(self, node: SchemaNode) -> str:
        properties, required = node.properties()
        if not properties:
            return self._map(node)
        pairs = [
            (
                f'{_constant(node, name)} ":" ws '
                + self._visit(node.below(value, "properties", name)),
                name in required,
            )
            for name, value in properties.items()
        ]
        return self.rule(node.path, f'"{{" ws {self._pairs(pairs, node.path)} ws "}}"')

    def _pairs(self, pairs: list[tuple[str, bool]], path: str) -> str:
        """Pairs in their order, optional ones left out or not, commas only between them.

        ``first`` is what may follow while none has been written, ``further`` after that.
        """
        first, further = '""', '""'
        for pair, is_required in reversed(pairs):
            here = self.rule(path, pair)
            begun, more = f"{here} {further}", f'"," ws {here} {further}'
            first = begun if is_required else self.rule(path, f"{begun} | {first}")
            further = self.rule(path, more if is_required else f"{more} | {further}")
        return first

    def _map(self, node: SchemaNode) -> str:
        values = node.value.get("additionalProperties", True)
        if values is False:
            return self.rule(node.path, '"{" ws "}"')
        value = self._visit(node.below(values, "additionalProperties"))
        pair = self.rule(node.path, f'string ":" ws {value}')
        return self.rule(node.path, f'"{{" ws ({pair} ("," ws {pair})*)? ws "}}"')

    def _array(self, node: SchemaNode) -> str:
        heads = node.value.get("prefixItems", [])
        if not isinstance(heads, list):
            raise node.refusal("must be a list", "prefixItems")
        least, most = node.counts("minItems", "maxItems")
        names = [self._visit(node.below(head, "prefixItems", i)) for i, head in enumerate(heads)]
        tail = node.value.get("items", not heads)
        if tail is False:
            if least > len(heads):
                raise node.refusal("is more than there are items", "minItems")
            most = len(heads) if most is None else min(most, len(heads))
        item = "" if tail is False else self._visit(node.below(tail, "items"))
        items = self._items(names, item, least, most, node.path)
        return self.rule(node.path, f'"[" ws {items} ws "]"')

    def _items(self, heads: list[str], item: str, least: int, most: int | None, path: str) -> str:
        """Heads, then any number of ``item``, between ``least`` and ``most`` in all."""
        heads = heads if most is None else heads[:most]
        rest = ""
        if item and (most is None or most > len(heads)):
            low = max(0, least - len(heads) - (not heads))
            high = "" if most is None else str(most - len(heads) - (not heads))
            if not heads:
                items = f'{item} ("," ws {item}){{{low},{high}}}'
                return items if least else f"({items})?"
            rest = self.rule(path, f'("," ws {item}){{{low},{high}}}')
        pairs = [(head, i < least) for i, head in enumerate(heads)]
        text = rest or '""'
        for i, (head, is_required) in reversed(list(enumerate(pairs))):
            comma = '"," ws ' if i else ""
            body = f"{comma}{head} {text}"
            text = self.rule(path, body if is_required else f'{body} | ""')
        return text

    def _string(self, node: SchemaNode) -> str:
        least, most = node.counts("minLength", "maxLength")
        if (kind := node.value.get("format")) is not None:
            if not isinstance(kind, str) or kind not in _FORMATS:
                raise node.refusal(f"must be one of {', '.join(_FORMATS)}", "format")
            if {"minLength", "maxLength"} & node.value.keys():
                raise node.refusal("goes with neither minLength nor maxLength", "format")
            return self.rule(node.path, f'"\\"" {_FORMATS[kind]} "\\""')
        if least == 0 and most is None:
            return "string"
        high = "" if most is None else most
        return self.rule(node.path, f'"\\"" char{{{least},{high}}} "\\""')

    def _integer(self, node: SchemaNode) -> str:
        found = node.range()
        if found is None:
            return "integer"
        low, high, open_low, open_high = found
        low += open_low and low == low.to_integral_value()
        high -= open_high and high == high.to_integral_value()
        return self._numbers(node, number_ranges.integers(low, high))

    def _number(self, node: SchemaNode) -> str:
        found = node.range()
        if found is None:
            return "number"
        low, high, open_low, open_high = found
        body = number_ranges.decimals(low, high, open_low=open_low, open_high=open_high)
        return self._numbers(node, body)

    def _numbers(self, node: SchemaNode, body: str) -> str:
        if not body:
            raise node.refusal("has bounds with no number between them")
        return self.rule(node.path, body)


def _constant(node: SchemaNode, value: Any) -> str:
    """A value of ``node`` as JSON."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        text.encode()
    except ValueError as error:  # NaN, infinity, half of a surrogate pair
        raise node.refusal(f"holds {value!r}, which JSON cannot carry") from error
    return literal(text)


def _is_a(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    kinds: dict[str, type | tuple[type, ...]] = {
        "object": dict,
        "array": list,
        "string": str,
        "integer": int,
        "number": (int, float),
        "null": type(None),
        "boolean": bool,
    }
    return isinstance(value, kinds[kind])
