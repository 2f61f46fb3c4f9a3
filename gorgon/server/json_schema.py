"""From JSON Schema to a GBNF grammar whose every text is a valid document.

The grammar may know fewer documents than the schema (properties come in the schema's order, none
are added, numbers have a bounded length), never more. A keyword that cannot be kept is refused by
name. Knows JSON and grammars, not models.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

from gorgon.errors import RequestError
from gorgon.server import number_ranges

MAX_DEPTH = 48
MAX_CHOICES = 1000  # values of enums and schemas of anyOf, all together: each slows every draw
MAX_REPEATS = 2000  # the most that llama.cpp repeats

_ANNOTATIONS = {
    *("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly"),
    *("$schema", "$id", "$anchor", "$comment", "$defs", "definitions", "strict"),
}
_TYPES = ("object", "array", "string", "integer", "number", "boolean", "null")
_KEYWORDS = {
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items", "prefixItems", "minItems", "maxItems"},
    "string": {"minLength", "maxLength", "format"},
    "integer": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"},
    "number": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"},
    "boolean": set[str](),
    "null": set[str](),
}
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
    grammar = Grammar("response_format")
    return grammar.text("object")


def schema_grammar(schema: Mapping[str, Any], field: str) -> str:
    """The grammar of documents that ``schema`` allows.

    Args:
        schema: a JSON Schema object.
        field: where it stood in the request, for error messages.

    Raises:
        RequestError: for what is not a schema, or a keyword that cannot be kept.
    """
    grammar = Grammar(field)
    return grammar.text(grammar.add(schema))


def literal(text: str) -> str:
    """``text`` as a GBNF literal."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    escaped = escaped.replace("\n", "\\n").replace("\r", "\\r").replace("\0", "\\x00")
    return f'"{escaped}"'


class Grammar:
    """Rules made of schemas; ``field`` is where they stood in the request."""

    def __init__(self, field: str) -> None:
        self._field = field
        self._rules: dict[str, str] = {}
        self._refs: dict[tuple[int, str], str] = {}
        self._num_choices = 0

    def add(self, schema: Any, path: str = "") -> str:
        """The name of a rule for ``schema``, ``path`` being where it stands below ``field``."""
        return self._visit(schema, schema, path, 0)

    def rule(self, hint: str, body: str) -> str:
        """The name of a new rule with ``body``."""
        name = f"r{len(self._rules)}-{''.join(_NAME.findall(hint.rpartition('.')[2]))[:20]}"
        self._rules[name] = body
        return name

    def text(self, root: str) -> str:
        """The whole grammar, starting at the rule or expression ``root``."""
        rules = {"root": root, **_SHARED, **self._rules}
        return "\n".join(f"{name} ::= {body}" for name, body in rules.items())

    # -- schemas ----------------------------------------------------------------------------------

    def _visit(self, schema: Any, whole: Any, path: str, depth: int) -> str:
        if schema is True or schema == {}:
            return "value"
        if not isinstance(schema, dict):
            raise self._refusal(path, "must be an object" if schema is not False else "is false")
        if depth > MAX_DEPTH:
            raise self._refusal(path, f"is nested deeper than {MAX_DEPTH}")
        for keyword, visit in self._combinators().items():
            if keyword in schema:
                self._allow(
                    schema, {keyword, *({"type"} if keyword in ("enum", "const") else ())}, path
                )
                return visit(schema, whole, path, depth)
        return self._typed(schema, whole, path, depth)

    def _combinators(self) -> dict[str, Callable[[dict[str, Any], Any, str, int], str]]:
        return {
            "$ref": self._ref,
            "const": self._const,
            "enum": self._enum,
            "anyOf": self._any_of,
            "oneOf": self._any_of,
            "allOf": self._all_of,
        }

    def _ref(self, schema: dict[str, Any], whole: Any, path: str, depth: int) -> str:
        ref = schema["$ref"]
        if not isinstance(ref, str) or not (ref == "#" or ref.startswith("#/")):
            raise self._refusal(f"{path}.$ref", "must begin with '#/'; others are not fetched")
        key = (id(whole), ref)
        if key not in self._refs:
            target = self._resolve(ref, whole, path)
            self._refs[key] = self.rule(ref, "")
            self._rules[self._refs[key]] = self._visit(target, whole, path, depth + 1)
        return self._refs[key]

    def _resolve(self, ref: str, whole: Any, path: str) -> Any:
        target = whole
        parts = [part.replace("~1", "/").replace("~0", "~") for part in ref.split("/")[1:]]
        for part in parts:
            if not isinstance(target, dict) or part not in target:
                raise self._refusal(f"{path}.$ref", f"names '{ref}', which is not there")
            target = target[part]
        return target

    def _const(self, schema: dict[str, Any], _whole: Any, path: str, _depth: int) -> str:
        return self.rule(path, _constant(schema["const"]))

    def _enum(self, schema: dict[str, Any], _whole: Any, path: str, _depth: int) -> str:
        values = schema["enum"]
        if not isinstance(values, list) or not values:
            raise self._refusal(f"{path}.enum", "must be a list of one value or more")
        if "type" in schema:
            types = self._types(schema, path)
            values = [value for value in values if any(_is_a(value, kind) for kind in types)]
            if not values:
                raise self._refusal(f"{path}.enum", "has no value of the type")
        self._count_choices(len(values), f"{path}.enum")
        return self.rule(path, " | ".join(map(_constant, values)))

    def _count_choices(self, count: int, path: str) -> None:
        self._num_choices += count
        if self._num_choices > MAX_CHOICES:
            raise self._refusal(path, f"makes more than {MAX_CHOICES} choices in the whole schema")

    def _any_of(self, schema: dict[str, Any], whole: Any, path: str, depth: int) -> str:
        keyword = "anyOf" if "anyOf" in schema else "oneOf"
        choices = schema[keyword]
        if not isinstance(choices, list) or not choices:
            raise self._refusal(f"{path}.{keyword}", "must be a list of one schema or more")
        self._count_choices(len(choices), f"{path}.{keyword}")
        names = [
            self._visit(choice, whole, f"{path}.{keyword}.{i}", depth + 1)
            for i, choice in enumerate(choices)
        ]
        return self.rule(path, " | ".join(names))

    def _all_of(self, schema: dict[str, Any], whole: Any, path: str, depth: int) -> str:
        parts = schema["allOf"]
        if not isinstance(parts, list) or len(parts) != 1:
            raise self._refusal(f"{path}.allOf", "can only hold one schema; merge them into one")
        return self._visit(parts[0], whole, f"{path}.allOf.0", depth + 1)

    def _typed(self, schema: dict[str, Any], whole: Any, path: str, depth: int) -> str:
        types = self._types(schema, path)
        allowed = set().union(*(_KEYWORDS[kind] for kind in types))
        self._allow(schema, {"type"} | allowed, path)
        makers: dict[str, Callable[[], str]] = {
            "object": lambda: self._object(schema, whole, path, depth),
            "array": lambda: self._array(schema, whole, path, depth),
            "string": lambda: self._string(schema, path),
            "integer": lambda: self._number(schema, path, whole_numbers=True),
            "number": lambda: self._number(schema, path, whole_numbers=False),
            "boolean": lambda: "boolean",
            "null": lambda: "null",
        }
        names = [makers[kind]() for kind in types]
        return names[0] if len(names) == 1 else self.rule(path, " | ".join(names))

    def _types(self, schema: dict[str, Any], path: str) -> list[str]:
        given = schema.get("type")
        if given is None:
            found = [kind for kind in _TYPES if _KEYWORDS[kind] & schema.keys()]
            if not found:
                return list(_TYPES)
            return [found[0]] if found[0] != "integer" else ["number"]
        kinds = given if isinstance(given, list) else [given]
        if not kinds or any(kind not in _TYPES for kind in kinds):
            raise self._refusal(f"{path}.type", f"must be one of {', '.join(_TYPES)}, or a list")
        return list(dict.fromkeys(kinds))

    # -- types ------------------------------------------------------------------------------------

    def _object(self, schema: dict[str, Any], whole: Any, path: str, depth: int) -> str:
        properties = schema.get("properties", {})
        required = schema.get("required", [])
        if not isinstance(properties, dict):
            raise self._refusal(f"{path}.properties", "must be an object")
        if not isinstance(required, list) or any(name not in properties for name in required):
            raise self._refusal(f"{path}.required", "must be a list of names of properties")
        if not properties:
            return self._map(schema.get("additionalProperties", True), whole, path, depth)
        pairs = [
            (
                literal(json.dumps(name, ensure_ascii=False))
                + ' ":" ws '
                + self._visit(value, whole, f"{path}.properties.{name}", depth + 1),
                name in required,
            )
            for name, value in properties.items()
        ]
        return self.rule(path, f'"{{" ws {self._pairs(pairs, path)} ws "}}"')

    def _pairs(self, pairs: list[tuple[str, bool]], path: str) -> str:
        """Pairs in their order, optional ones left out or not, commas only between them.

        ``first`` is what may follow while none has been written, ``further`` after that.
        """
        first, further = '""', '""'
        for pair, is_required in reversed(pairs):
            here = self.rule(path, pair)
            begun, more = f"{here} {further}", f'"," ws {here} {further}'
            first = begun if is_required else self.rule(path, f"{begun} | {first}")
            further = more if is_required else self.rule(path, f"{more} | {further}")
            further = self.rule(path, further) if is_required else further
        return first

    def _map(self, values: Any, whole: Any, path: str, depth: int) -> str:
        if values is False:
            return self.rule(path, '"{" ws "}"')
        value = self._visit(values, whole, f"{path}.additionalProperties", depth + 1)
        pair = self.rule(path, f'string ":" ws {value}')
        return self.rule(path, f'"{{" ws ({pair} ("," ws {pair})*)? ws "}}"')

    def _array(self, schema: dict[str, Any], whole: Any, path: str, depth: int) -> str:
        heads = schema.get("prefixItems", [])
        if not isinstance(heads, list):
            raise self._refusal(f"{path}.prefixItems", "must be a list")
        least = self._count(schema, "minItems", path) or 0
        most = self._count(schema, "maxItems", path)
        names = [
            self._visit(head, whole, f"{path}.prefixItems.{i}", depth + 1)
            for i, head in enumerate(heads)
        ]
        tail = schema.get("items", not heads)
        if tail is False:
            if least > len(heads):
                raise self._refusal(f"{path}.minItems", "is more than there are items")
            most = len(heads) if most is None else min(most, len(heads))
        self._check_counts(least, most, path, "minItems")
        item = "" if tail is False else self._visit(tail, whole, f"{path}.items", depth + 1)
        return self.rule(path, f'"[" ws {self._items(names, item, least, most, path)} ws "]"')

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

    def _string(self, schema: dict[str, Any], path: str) -> str:
        kind = schema.get("format")
        least = self._count(schema, "minLength", path) or 0
        most = self._count(schema, "maxLength", path)
        if kind is not None:
            if not isinstance(kind, str) or kind not in _FORMATS:
                raise self._refusal(f"{path}.format", f"must be one of {', '.join(_FORMATS)}")
            if {"minLength", "maxLength"} & schema.keys():
                raise self._refusal(f"{path}.format", "goes with neither minLength nor maxLength")
            return self.rule(path, f'"\\"" {_FORMATS[kind]} "\\""')
        if least == 0 and most is None:
            return "string"
        self._check_counts(least, most, path, "minLength")
        high = "" if most is None else most
        return self.rule(path, f'"\\"" char{{{least},{high}}} "\\""')

    def _number(self, schema: dict[str, Any], path: str, *, whole_numbers: bool) -> str:
        if not _KEYWORDS["number"] & schema.keys():
            return "integer" if whole_numbers else "number"
        low, open_low = self._bound(schema, "minimum", "exclusiveMinimum", path, max)
        high, open_high = self._bound(schema, "maximum", "exclusiveMaximum", path, min)
        if whole_numbers:
            low += open_low and low == low.to_integral_value()
            high -= open_high and high == high.to_integral_value()
            body = number_ranges.integers(low, high)
        else:
            body = number_ranges.decimals(low, high, open_low=open_low, open_high=open_high)
        if not body:
            raise self._refusal(path, "has bounds with no number between them")
        return self.rule(path, body)

    def _bound(
        self,
        schema: dict[str, Any],
        inclusive: str,
        exclusive: str,
        path: str,
        stricter: Callable[[list[Decimal]], Decimal],
    ) -> tuple[Decimal, bool]:
        """The stricter of two bounds, and whether it is itself left out."""
        found: list[tuple[Decimal, bool]] = []
        for name, is_open in ((inclusive, False), (exclusive, True)):
            if name not in schema:
                continue
            number = schema[name]
            if isinstance(number, bool) or not isinstance(number, int | float):
                raise self._refusal(f"{path}.{name}", "must be a number")
            bound = Decimal(str(number))
            if not abs(bound) <= number_ranges.LARGEST or len(bound.as_tuple().digits) > 18:
                raise self._refusal(f"{path}.{name}", "must be within 10^15, of 18 digits at most")
            found.append((bound, is_open))
        if not found:
            limit = number_ranges.LARGEST
            return (-limit if stricter is max else limit), False
        strictest = stricter([bound for bound, _ in found])
        return strictest, (strictest, True) in found

    # -- checks -----------------------------------------------------------------------------------

    def _allow(self, schema: dict[str, Any], keywords: set[str], path: str) -> None:
        for name in schema:
            if name not in keywords and name not in _ANNOTATIONS:
                raise self._refusal(f"{path}.{name}", "is not supported here; leave it out")

    def _count(self, schema: dict[str, Any], name: str, path: str) -> int | None:
        count = schema.get(name)
        if count is None:
            return None
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise self._refusal(f"{path}.{name}", "must be an integer of 0 or more")
        return count if name.startswith("min") else min(count, MAX_REPEATS)

    def _check_counts(self, least: int, most: int | None, path: str, name: str) -> None:
        if least > MAX_REPEATS or (most is not None and least > most):
            raise self._refusal(f"{path}.{name}", f"must be at most {MAX_REPEATS} and the maximum")

    def _refusal(self, path: str, problem: str) -> RequestError:
        where = f"{self._field}.{path.lstrip('.')}".rstrip(".")
        return RequestError(f"{where} {problem}", field=where)


def _constant(value: Any) -> str:
    return literal(json.dumps(value, ensure_ascii=False, separators=(",", ":")))


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
