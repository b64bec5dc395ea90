"""A JSON schema as people send it becomes one that ends: objects hold what they name, and nothing more.

llama.cpp, Ollama and OpenAI read a schema so; by the letter of the standard an object may have any other keys
as well, and a small model then makes them up until its room is used. One that says otherwise is left open.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

ONE = ("items", "additionalItems", "additionalProperties", "contains", "unevaluatedItems")
"""Keywords that hold a schema."""
SEVERAL = ("anyOf", "oneOf", "allOf", "prefixItems")
"""Keywords that hold a list of them."""
NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
"""Keywords that hold them by name."""
SAYS_OTHERWISE = (
    "additionalProperties",
    "patternProperties",
    "unevaluatedProperties",
    "if",
    "dependentSchemas",
)
"""Where one of these stands, the object may have keys that `properties` does not name."""
PLAIN_KEYS = {
    "type",
    "properties",
    "required",
    "title",
    "description",
    "$ref",
    "default",
    "examples",
}
LOOKS_AROUND = ("(?=", "(?!", "(?<=", "(?<!")
NESTED = 64


def prepare_schema(schema: Any, *, strict: bool = False) -> tuple[Any, list[str]]:
    """The schema that a reply is kept to, and what of the given one is not enforced.

    `strict` closes an object even where the schema would let it have more.

    >>> prepare_schema({"properties": {"a": {"type": "string", "nullable": True}}})[0]
    {'properties': {'a': {'type': ['string', 'null']}}, 'additionalProperties': False}
    """
    root = schema if isinstance(schema, dict) else {}
    notes: list[str] = []
    shared = set(_refs_beside_others(schema))
    return _prepare(schema, root, strict, shared, notes, "#", True), notes


def _prepare(
    schema: Any,
    root: Mapping[str, Any],
    strict: bool,
    shared: set[str],
    notes: list[str],
    where: str,
    close: bool,
) -> Any:
    """One schema and those in it; with `close` its own keys are all there are."""
    if not isinstance(schema, dict):
        return schema
    found = _merge_all_of(schema, root)
    alternatives = [
        one for key in ("anyOf", "oneOf", "allOf") for one in _list(found.get(key)) if _names_keys(one, root)
    ]  # fmt: skip
    together = bool(alternatives) and ("properties" in found or len(_list(found.get("allOf"))) > 1)
    result: dict[str, Any] = {}
    for key, value in found.items():
        inner = (root, strict, shared, notes)
        if key in ONE:
            result[key] = _prepare(value, *inner, f"{where}/{key}", True)
        elif key in SEVERAL and isinstance(value, list):
            own = close and not together if key != "prefixItems" else True
            result[key] = [
                _prepare(one, *inner, f"{where}/{key}/{i}", own) for i, one in enumerate(value)
            ]
        elif key in NAMED and isinstance(value, dict):
            result[key] = {
                name: _prepare(one, *inner, f"{where}/{key}/{name}", f"{where}/{key}/{name}" not in shared)
                for name, one in value.items()
            }  # fmt: skip
        elif key == "pattern" and isinstance(value, str) and any(w in value for w in LOOKS_AROUND):
            notes.append(f"pattern {value[:60]!r} is not enforced: it looks around.")
        else:
            result[key] = value
    if result.pop("nullable", None) is True and isinstance(result.get("type"), str):
        result["type"] = [result["type"], "null"]
    if close and not together and isinstance(result.get("properties"), dict):
        says_otherwise = any(key in result for key in SAYS_OTHERWISE)
        if not says_otherwise or (strict and result.get("additionalProperties") is True):
            result["additionalProperties"] = False
    return result


def _merge_all_of(schema: dict[str, Any], root: Mapping[str, Any]) -> dict[str, Any]:
    """`allOf` of plain objects, as inheritance is written, is one object with the keys of all."""
    parts = schema.get("allOf")
    if (
        not isinstance(parts, list)
        or not parts
        or not set(schema) <= PLAIN_KEYS | {"allOf", "$defs", "definitions"}
    ):
        return schema  # fmt: skip
    if len(parts) == 1 and "properties" not in schema:
        return schema
    own = {key: value for key, value in schema.items() if key != "allOf"}
    properties: dict[str, Any] = {}
    required: list[Any] = []
    for part in [*parts, own]:
        plain = _follow(part, root)
        if (
            not isinstance(plain, dict)
            or not set(plain) <= PLAIN_KEYS | {"$defs", "definitions"}
            or "$ref" in plain
        ):
            return schema  # fmt: skip
        if plain.get("type", "object") != "object" or set(properties) & set(
            plain.get("properties", ())
        ):
            return schema
        properties |= plain.get("properties", {})
        required += [name for name in _list(plain.get("required")) if name not in required]
    merged = {**own, "type": "object", "properties": properties}
    return {**merged, "required": required} if required else merged


def _refs_beside_others(schema: Any) -> Iterator[str]:
    """What is referred to where several schemas bind one object: none of them alone has all its keys."""
    left = [schema]
    root = schema if isinstance(schema, dict) else {}
    while left:
        one = left.pop()
        if isinstance(one, dict):
            members = [part for key in ("allOf", "anyOf", "oneOf") for part in _list(one.get(key))]
            several = len(_list(one.get("allOf"))) > 1 or ("properties" in one and members)
            if several and _merge_all_of(one, root) is one:
                yield from (
                    str(part["$ref"])
                    for part in members
                    if isinstance(part, dict) and "$ref" in part
                )
            left += one.values()
        elif isinstance(one, list):
            left += one


def _names_keys(schema: Any, root: Mapping[str, Any]) -> bool:
    found = _follow(schema, root)
    return isinstance(found, dict) and "properties" in found


def _follow(schema: Any, root: Mapping[str, Any]) -> Any:
    """What a reference within the schema refers to, or the schema itself."""
    for _ in range(NESTED):
        ref = schema.get("$ref") if isinstance(schema, dict) else None
        if not isinstance(ref, str) or not ref.startswith("#/"):
            return schema
        schema = root
        for step in ref[2:].split("/"):
            name = step.replace("~1", "/").replace("~0", "~")
            schema = schema.get(name) if isinstance(schema, dict) else None
    return None


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
