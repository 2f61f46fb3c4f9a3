"""Fifty schemas as people write them."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]


def _object(required: str = "", **properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": required.split()}


def _array(items: Schema, least: int = 0, most: int = 3) -> Schema:
    return {"type": "array", "items": items, "minItems": least, "maxItems": most}


TEXT: Schema = {"type": "string", "maxLength": 12}
INT: Schema = {"type": "integer", "minimum": 0, "maximum": 120}
NUMBER: Schema = {"type": "number", "minimum": -2.5, "maximum": 99.5}
FLAG: Schema = {"type": "boolean"}
NULL: Schema = {"type": "null"}
COLOUR: Schema = {"enum": ["red", "green", "blue"]}
POINT = _object("x y", x=NUMBER, y=NUMBER)
_NODE = {"type": "object", "properties": {"v": INT}, "required": ["v"]}

_PLAIN: list[Schema] = [
    TEXT,
    INT,
    NUMBER,
    FLAG,
    NULL,
    COLOUR,
    {"const": "yes"},
    {"const": {"a": [1, None, "é"]}},
    {"enum": [1, "two", None, True, {"three": 3}]},
    {"type": "integer", "exclusiveMinimum": -3, "exclusiveMaximum": 3},
    {"type": "integer", "minimum": 1000, "maximum": 1999},
    {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    {"type": "number", "minimum": -0.25, "maximum": -0.05},
    {"type": "string", "minLength": 3, "maxLength": 5},
    {"type": ["string", "null"], "maxLength": 8},
    {"type": "string", "format": "date"},
    {"type": "string", "format": "date-time"},
    {"type": "string", "format": "uuid"},
    {"type": "string", "format": "ipv4"},
    {"type": "string", "format": "email"},
]
_ARRAYS: list[Schema] = [
    _array(INT),
    _array(TEXT, 2, 2),
    _array(COLOUR, 1, 4),
    _array(_array(INT, 1, 2), 1, 2),
    _array(POINT, 1, 2),
    {"type": "array", "prefixItems": [TEXT, INT], "items": False, "minItems": 2},
    {"type": "array", "prefixItems": [FLAG], "items": INT, "maxItems": 3},
    {"type": "array", "maxItems": 0},
    _array({"anyOf": [INT, NULL]}, 1, 3),
    _array({"type": "string", "enum": ["a", "b"]}, 1, 3),
]
_OBJECTS: list[Schema] = [
    _object("name age", name=TEXT, age=INT),
    _object("", name=TEXT, age=INT),
    _object("age", name=TEXT, age=INT, alive=FLAG),
    _object("b", a=FLAG, b=FLAG, c=FLAG, d=FLAG),
    _object("name tags", name=TEXT, tags=_array(COLOUR)),
    _object("where", where=POINT, note=TEXT),
    _object("a", a=_object("b", b=_object("c", c=_object("d", d=INT)))),
    {"type": "object", "properties": {"größe": INT, "名前": TEXT}, "required": ["größe", "名前"]},
    {"type": "object", "properties": {'a "b" \\c': FLAG}, "required": ['a "b" \\c']},
    {"type": "object", "properties": {"😀": COLOUR, "": INT}, "required": ["😀", ""]},
    _object("kind", kind={"const": "circle"}, radius=NUMBER),
    _object("id mail", id={"type": "string", "format": "uuid"}, mail=TEXT),
    {"type": "object", "additionalProperties": False},
    _object("score", score={"type": ["number", "null"], "minimum": 0, "maximum": 10}),
    _object("v", v={"anyOf": [_object("a", a=INT), _object("b", b=TEXT)]}),
    _object("v", v={"oneOf": [{"const": 1}, {"const": "x"}, POINT]}),
]
_REFERENCES: list[Schema] = [
    {"$ref": "#/$defs/p", "$defs": {"p": POINT}},
    {**_object("a b", a={"$ref": "#/$defs/n"}, b={"$ref": "#/$defs/n"}), "$defs": {"n": _NODE}},
    {**_object("v", v=INT, next={"anyOf": [{"$ref": "#"}, NULL]}), "title": "List"},
    {**_object("c", c={"allOf": [{"$ref": "#/definitions/c"}]}), "definitions": {"c": COLOUR}},
]
_ALL = [*_PLAIN, *_ARRAYS, *_OBJECTS, *_REFERENCES]
assert len(_ALL) == 50
SCHEMAS: dict[str, Schema] = {f"{i:02}": schema for i, schema in enumerate(_ALL)}
