"""A request's body becomes a form: bounded before it is read, and what is wrong with it is one sentence."""

from __future__ import annotations

import json
import re
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticCustomError

from rig.errors import RigError

MAX_PIECES = 300_000
"""Values that a body may hold: each takes sixty bytes or more once it is read, and two in the body."""


class BadRequest(RigError):
    """The request is wrong; `status` says in which way."""

    def __init__(self, message: str, status: int = 400, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.param = param


F = TypeVar("F", bound=BaseModel)


def parse_body(kind: type[F], body: bytes) -> F:
    """A request's body as a `kind`. Raises BadRequest with a sentence."""
    if (pieces := count_pieces(body)) > MAX_PIECES:
        raise BadRequest(f"The body holds {pieces:,} values, and may hold {MAX_PIECES:,}.", 413)
    try:
        found = json.loads(body, parse_constant=_no_constant)
    except RecursionError:
        raise BadRequest("The body is nested too deeply.") from None
    except ValueError as error:
        raise BadRequest(f"The body is not valid JSON: {error}.") from None
    if not isinstance(found, dict):
        raise BadRequest("The body must be a JSON object.")
    try:
        return kind.model_validate(found)
    except ValidationError as error:
        raise _sentence(error) from None
    except RecursionError:
        raise BadRequest("The body is nested too deeply.") from None


def count_pieces(body: bytes) -> int:
    """About how many values a JSON text holds, without reading it.

    >>> count_pieces(b'{"a": [1, 2, "x y"], "b": {}}')
    6
    """
    pieces = _count_marks(body)
    if pieces > MAX_PIECES:  # most may stand inside texts, which are one value each
        body = body.replace(rb"\\", b"").replace(rb"\"", b"")
        pieces = _count_marks(re.sub(rb'"[^"]*"', b"", body))
    return pieces


def _count_marks(body: bytes) -> int:
    return body.count(b",") + body.count(b"[") + body.count(b"{")


def measure_value(value: Any, limit: int) -> int:
    """About how many characters `value` has as JSON; stops counting beyond `limit`.

    >>> measure_value({"a": ["bc", 1]}, 100)
    27
    """
    size, left = 0, [value]
    while left and size <= limit:
        one = left.pop()
        size += 6
        if isinstance(one, str):
            size += len(one)
        elif isinstance(one, list):
            left += one
        elif isinstance(one, dict):
            size += sum(map(len, one))
            left += one.values()
        elif isinstance(one, int):
            size += one.bit_length() // 4
    return size


def describe_value(value: Any) -> str:
    """What kind of JSON value it is, in words.

    >>> [describe_value(value) for value in (None, True, 1, 0.5, "a", [], {})]
    ['null', 'a boolean', 'a number', 'a number', 'a text', 'a list', 'an object']
    """
    if value is None:
        return "null"
    words = {bool: "a boolean", str: "a text", list: "a list", dict: "an object"}
    return words.get(type(value), "a number")


def complaint(text: str, *about: object) -> PydanticCustomError:
    """An error of a field that goes on from the field's name: "must be a text, and is {}"."""
    for one in about:
        text = text.replace("{}", str(one), 1)
    return PydanticCustomError("complaint", "{said}", {"said": text})


def _sentence(error: ValidationError) -> BadRequest:
    """The first thing that is wrong, in words a person can use."""
    first = error.errors(include_url=False, include_context=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "complaint":
        return BadRequest(f"{where} {first['msg']}.", param=where)
    message = first["msg"][:1].lower() + first["msg"][1:]
    if first["type"] == "missing":
        return BadRequest(f"{where} is missing.", param=where)
    given = f", and is {describe_value(first['input'])}" if first["type"].endswith("_type") else ""
    return BadRequest(f"{where or 'The body'}: {message}{given}.", param=where or None)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
