"""A JSON Schema being read: what its keywords say, or a refusal that names the place.

Knows which keywords a grammar can keep, not how grammars are written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, NamedTuple

from gorgon.errors import RequestError
from gorgon.server import number_ranges

MAX_DEPTH = 48
MAX_REPEATS = 2000  # the most that llama.cpp repeats

_ANNOTATIONS = {
    *("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly"),
    *("$schema", "$id", "$anchor", "$comment", "$defs", "definitions", "strict"),
}
_BOUNDS = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}
TYPES: dict[str, set[str]] = {
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items", "prefixItems", "minItems", "maxItems"},
    "string": {"minLength", "maxLength", "format"},
    "integer": _BOUNDS,
    "number": _BOUNDS,
    "boolean": set(),
    "null": set(),
}


class Range(NamedTuple):
    """Numbers between two bounds; an open one is itself left out."""

    low: Decimal
    high: Decimal
    open_low: bool
    open_high: bool


@dataclass(frozen=True, slots=True)
class SchemaNode:
    """A schema and where it stands.

    Args:
        value: what stands there.
        whole: the document that ``$ref`` points into.
        path: where it stands in the request, for error messages.
        depth: schemas around it.
    """

    value: Any
    whole: Any
    path: str
    depth: int = 0

    def below(self, value: Any, *steps: str | int) -> SchemaNode:
        """A schema inside this one.

        Raises:
            RequestError: when it is nested too deep.
        """
        path = ".".join((self.path, *map(str, steps)))
        inner = SchemaNode(value, self.whole, path, self.depth + 1)
        if inner.depth > MAX_DEPTH:
            raise inner.refusal(f"is nested deeper than {MAX_DEPTH}")
        return inner

    def refusal(self, problem: str, keyword: str = "") -> RequestError:
        """The error that names this place, or ``keyword`` in it."""
        where = f"{self.path}.{keyword}" if keyword else self.path
        return RequestError(f"{where} {problem}", field=where)

    @property
    def is_anything(self) -> bool:
        """Whether every value fits."""
        return self.value is True or self.value == {}

    def keywords(self) -> dict[str, Any]:
        """What the schema says.

        Raises:
            RequestError: when it is no object; ``false``, which nothing fits, included.
        """
        if not isinstance(self.value, dict):
            raise self.refusal("is false" if self.value is False else "must be an object")
        return self.value

    def allow(self, names: set[str]) -> None:
        """Refuse all other keywords that mean something."""
        for name in self.keywords():
            if name not in names and name not in _ANNOTATIONS:
                raise self.refusal("is not supported here; leave it out", name)

    def types(self) -> list[str]:
        """Names in ``TYPES``: those given, or what the keywords are about, or all."""
        given = self.value.get("type")
        if given is None:
            found = [kind for kind, names in TYPES.items() if names & self.value.keys()]
            if not found:
                return list(TYPES)
            return [found[0]] if found[0] != "integer" else ["number"]
        kinds = given if isinstance(given, list) else [given]
        if not kinds or any(kind not in list(TYPES) for kind in kinds):
            raise self.refusal(f"must be one of {', '.join(TYPES)}, or a list", "type")
        return list(dict.fromkeys(kinds))

    def list_of(self, keyword: str, what: str) -> list[Any]:
        """A list that may not be empty."""
        values = self.value[keyword]
        if not isinstance(values, list) or not values:
            raise self.refusal(f"must be a list of one {what} or more", keyword)
        return values

    def target(self) -> SchemaNode:
        """What ``$ref`` names."""
        ref = self.value["$ref"]
        if not isinstance(ref, str) or not (ref == "#" or ref.startswith("#/")):
            raise self.refusal("must begin with '#/'; others are not fetched", "$ref")
        found = self.whole
        for part in ref.split("/")[1:]:
            name = part.replace("~1", "/").replace("~0", "~")
            if not isinstance(found, dict) or name not in found:
                raise self.refusal(f"names '{ref}', which is not there", "$ref")
            found = found[name]
        return SchemaNode(found, self.whole, self.path, self.depth).below(found)

    def properties(self) -> tuple[dict[str, Any], set[str]]:
        """Properties in their order, and the names of the required ones."""
        properties = self.value.get("properties", {})
        required = self.value.get("required", [])
        if not isinstance(properties, dict):
            raise self.refusal("must be an object", "properties")
        if not isinstance(required, list) or any(name not in list(properties) for name in required):
            raise self.refusal("must be a list of names of properties", "required")
        return properties, set(required)

    def counts(self, least_name: str, most_name: str) -> tuple[int, int | None]:
        """How many at least, and at most if there is a limit."""
        least, most = self._count(least_name) or 0, self._count(most_name)
        if least > MAX_REPEATS or (most is not None and least > most):
            raise self.refusal(f"must be at most {MAX_REPEATS} and the maximum", least_name)
        return least, None if most is None else min(most, MAX_REPEATS)

    def _count(self, name: str) -> int | None:
        count = self.value.get(name)
        if count is None:
            return None
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise self.refusal("must be an integer of 0 or more", name)
        return count

    def range(self) -> Range | None:
        """The numbers allowed; None where there are no bounds."""
        if not _BOUNDS & self.value.keys():
            return None
        limit = number_ranges.LARGEST
        low, open_low = self._bound("minimum", "exclusiveMinimum", max, -limit)
        high, open_high = self._bound("maximum", "exclusiveMaximum", min, limit)
        return Range(low, high, open_low, open_high)

    def _bound(
        self,
        inclusive: str,
        exclusive: str,
        stricter: Callable[[Iterable[Decimal]], Decimal],
        unbounded: Decimal,
    ) -> tuple[Decimal, bool]:
        """The stricter of two bounds, and whether it is itself left out."""
        found = [
            (self._number(name), is_open)
            for name, is_open in ((inclusive, False), (exclusive, True))
            if name in self.value
        ]
        if not found:
            return unbounded, False
        strictest = stricter(bound for bound, _ in found)
        return strictest, (strictest, True) in found

    def _number(self, name: str) -> Decimal:
        number = self.value[name]
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise self.refusal("must be a number", name)
        bound = Decimal(str(number))
        if not abs(bound) <= number_ranges.LARGEST or len(bound.as_tuple().digits) > 18:
            raise self.refusal("must be within 10^15, of 18 digits at most", name)
        return bound
