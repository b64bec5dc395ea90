"""pytest tests/test_serve_workbench_schema.py: schemas as clients send them, and what becomes of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field

from serve.engine.sampling import SamplerParams
from serve.workbench.schema import prepare_schema
from support import serve_gguf
from support.serve_desk import TEXT, Desk
from support.serve_server import Server

A, B = {"type": "string"}, {"type": "integer"}
CLOSED = {"additionalProperties": False}

BECOMES: dict[str, tuple[Any, Any]] = {
    "an object": ({"properties": {"a": A}}, {"properties": {"a": A}, **CLOSED}),
    "an object in an object": (
        {"properties": {"a": {"properties": {"b": B}}}},
        {"properties": {"a": {"properties": {"b": B}, **CLOSED}}, **CLOSED},
    ),
    "an object in a list": (
        {"type": "array", "items": {"properties": {"a": A}}},
        {"type": "array", "items": {"properties": {"a": A}, **CLOSED}},
    ),
    "one that says that it is open": (
        {"properties": {"a": A}, "additionalProperties": True},
        {"properties": {"a": A}, "additionalProperties": True},
    ),
    "one with other keys of a kind": (
        {"properties": {"a": A}, "additionalProperties": {"properties": {"b": B}}},
        {"properties": {"a": A}, "additionalProperties": {"properties": {"b": B}, **CLOSED}},
    ),
    "one with keys by pattern": (
        {"properties": {"a": A}, "patternProperties": {"^x": A}},
        {"properties": {"a": A}, "patternProperties": {"^x": A}},
    ),
    "one that names no keys": ({"type": "object"}, {"type": "object"}),
    "words in an enum are no schema": (
        {"enum": [{"properties": {"a": 1}}]},
        {"enum": [{"properties": {"a": 1}}]},
    ),
    "a key called properties": (
        {"properties": {"properties": A}},
        {"properties": {"properties": A}, **CLOSED},
    ),
    "alternatives": (
        {"anyOf": [{"properties": {"a": A}}, {"type": "null"}]},
        {"anyOf": [{"properties": {"a": A}, **CLOSED}, {"type": "null"}]},
    ),
    "alternatives beside keys": (
        {"properties": {"a": A}, "anyOf": [{"properties": {"b": B}}, {"required": ["a"]}]},
        {"properties": {"a": A}, "anyOf": [{"properties": {"b": B}}, {"required": ["a"]}]},
    ),
    "inheritance": (
        {
            "allOf": [{"$ref": "#/$defs/a"}, {"properties": {"b": B}, "required": ["b"]}],
            "$defs": {"a": {"type": "object", "properties": {"a": A}, "required": ["a"]}},
        },
        {
            "type": "object",
            "properties": {"a": A, "b": B},
            "required": ["a", "b"],
            "$defs": {"a": {"type": "object", "properties": {"a": A}, "required": ["a"], **CLOSED}},
            **CLOSED,
        },
    ),
    "a reference on its own": (
        {"properties": {"a": {"$ref": "#/$defs/a"}}, "$defs": {"a": {"properties": {"b": B}}}},
        {
            "properties": {"a": {"$ref": "#/$defs/a"}},
            "$defs": {"a": {"properties": {"b": B}, **CLOSED}},
            **CLOSED,
        },
    ),
    "what is bound by several is left open": (
        {
            "allOf": [{"$ref": "#/$defs/a"}, {"anyOf": [{"properties": {"b": B}}]}],
            "$defs": {"a": {"properties": {"a": A}}},
        },
        {
            "allOf": [{"$ref": "#/$defs/a"}, {"anyOf": [{"properties": {"b": B}}]}],
            "$defs": {"a": {"properties": {"a": A}}},
        },
    ),
    "nullable": ({"type": "string", "nullable": True}, {"type": ["string", "null"]}),
    "true": (True, True),
}


@pytest.mark.parametrize("name", BECOMES)
def test_objects_hold_what_they_name_unless_the_schema_says_otherwise(name: str) -> None:
    given, expected = BECOMES[name]
    before = json.dumps(given)
    assert prepare_schema(given) == (expected, [])
    assert json.dumps(given) == before, "what was given is as it was"


def test_a_strict_schema_is_closed_even_where_it_would_be_open() -> None:
    given = {"properties": {"a": A}, "additionalProperties": True}
    assert prepare_schema(given, strict=True)[0] == {"properties": {"a": A}, **CLOSED}


NOTED = {
    "a format nobody knows": ({"type": "string", "format": "path"}, "Unknown format: path"),
    "another one": ({"type": "string", "format": "x-colour"}, "Unknown format: x-colour"),
    "a set": ({"type": "array", "items": {"enum": [1]}, "uniqueItems": True, "maxItems": 2}, "uniqueItems"),
    "names of keys": ({"properties": {"a": {"const": 1}}, "propertyNames": {}}, "propertyNames"),
    "not": ({"enum": [1, 2], "not": {"const": 2}}, "not"),
    "if": ({"enum": [1], "if": {"const": 1}, "then": {"const": 1}}, "if"),
    "oneOf": ({"oneOf": [{"const": 1}, {"enum": [1, 2]}]}, "oneOf"),
    "a look around": ({"type": "string", "pattern": "^(?!x)", "maxLength": 3}, "looks around"),
}  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("schema")
    with Server(serve_gguf.write(folder / "plain.gguf"), folder / "home") as server:
        yield server


def ask(server: Server, schema: Any, **more: Any) -> dict[str, Any]:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, **more}}
    answer = server.chat("hi", response_format=form, max_tokens=400, seed=3, temperature=1)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


@pytest.mark.parametrize("name", NOTED)
def test_what_can_t_be_enforced_is_noted_and_the_rest_is_kept(server: Server, name: str) -> None:
    schema, note = NOTED[name]
    made = ask(server, schema, strict=True)
    assert note in " ".join(made["notes"])
    assert made["choices"][0]["finish_reason"] in ("stop", "length")
    if made["choices"][0]["finish_reason"] == "stop":
        json.loads(made["choices"][0]["message"]["content"])


def test_a_schema_that_is_enforced_whole_has_no_notes(server: Server) -> None:
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "x",
        "title": "Person",
        "type": "object",
        "properties": {
            "born": {"type": "string", "format": "date", "description": "a day", "examples": [1]},
            "kind": {"oneOf": [{"const": "a"}, {"const": 2}], "default": "a", "deprecated": True},
        },
        "required": ["born", "kind"],
        "x-order": 5,
    }
    made = ask(server, schema)
    assert "notes" not in made
    assert set(json.loads(made["choices"][0]["message"]["content"])) == {"born", "kind"}


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Wheel(BaseModel):
    kind: Literal["wheel"]
    size: Literal[20, 26] = 20


class Bell(BaseModel):
    kind: Literal["bell"]
    loud: bool


class Bicycle(BaseModel):
    """As pydantic's users write them: options, enums, unions, sets, formats of its own."""

    name: str = Field(max_length=8, pattern="^[a-z]*$")
    colour: Colour
    path: Path | None = None
    tags: set[Literal["old", "new"]] = Field(default_factory=set, max_length=2)
    part: Wheel | Bell = Field(discriminator="kind")


@pytest.mark.parametrize("seed", range(3))
def test_what_pydantic_sends_ends_with_what_pydantic_takes(tmp_path: Path, seed: int) -> None:
    schema = Bicycle.model_json_schema()
    schema["properties"]["path"]["anyOf"][0]["maxLength"] = 5  # random weights never end a text
    desk = Desk(serve_gguf.write(tmp_path / "m.gguf"))
    matcher = desk.grammars.make_matcher({"schema": schema})
    sampling = SamplerParams(temperature=1.0, seed=seed)
    said = desk.ask(TEXT, max_tokens=400, sampling=sampling, matcher=matcher)
    assert said.finish == "stop"
    assert set(json.loads(said.text)) <= set(Bicycle.model_fields)
    Bicycle.model_validate_json(said.text)
