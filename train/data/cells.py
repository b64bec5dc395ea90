"""What a cell holds, however it was put there: a prompt, or the answers that are accepted.

Nested columns are named by a dotted path. Lists and dictionaries may be printed into a cell, as JSON or as
Python prints them. What can't be read says why, and never becomes a prompt or a gold as it was printed.
"""

from __future__ import annotations

import ast
import json
import re
import struct
from collections.abc import Sequence
from typing import Any

from rig.errors import suggest_name
from rig.model.chat_template import Message
from train.data import answers

LONGEST_WORDS = 100
"""Characters up to which a gold answer that is no number counts as a final answer."""
ROLES = {
    "human": "user", "prompter": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant",
    "model": "assistant", "ai": "assistant",
}  # fmt: skip
"""What other tools call the speakers."""
GOLD_FIELDS = (
    "ground_truth", "final_answer", "answer", "gold", "target", "value", "text", "label", "solution",
)  # fmt: skip
"""Fields in which a dictionary's answer stands, the surest first."""
QUESTION_FIELDS = ("question", "problem", "text", "content", "value", "query")
NOTHING = ("nan", "none", "null", "n/a", "")

_PRINTED = re.compile(r"""\s*(?:\[\s*)?\{\s*["']|\s*\[\s*["']|\s*array\(""")
_MESSAGES = re.compile(r"""\s*\[\s*\{\s*["'](?:role|content|from|value)["']""")


class Unreadable(ValueError):
    """Why a cell can't be read, to stand after "the first is line 7:"."""


def pick(row: dict[str, Any], path: str) -> Any:
    """Return what stands at a dotted path, None where there is nothing; a column of that name comes first.

    >>> pick({"reward_model": {"ground_truth": "3"}}, "reward_model.ground_truth")
    '3'
    >>> pick({"messages": [{"content": "2+2?"}, {"content": "4"}]}, "messages.-1.content")
    '4'
    """
    if path in row:
        return row[path]
    here: Any = row
    for name in path.split("."):
        here = unprint(here)
        if isinstance(here, dict):
            here = here.get(name)
        elif isinstance(here, list) and re.fullmatch(r"-?[0-9]{1,9}", name):
            at = int(name)
            here = here[at] if -len(here) <= at < len(here) else None
        else:
            return None
    return here


def missing_column(rows: Sequence[dict[str, Any]], path: str) -> str | None:
    """Say that no row has the column `path`, and which there are; None where one has it.

    >>> missing_column([{"meta": {"gold": "3"}}], "meta.glod")
    "no field 'glod' in the column 'meta'; did you mean 'gold'?"
    """
    columns = {name: None for row in rows for name in row}
    if path in columns:
        return None
    first, dot, rest = path.partition(".")
    if not dot or first not in columns:
        return f"no column {path!r}; {suggest_name(path, columns)}"
    if any(pick(row, path) is not None for row in rows):
        return None
    inside = [unprint(row.get(first)) for row in rows]
    fields = {name: None for one in inside if isinstance(one, dict) for name in one}
    return f"no field {rest!r} in the column {first!r}; {suggest_name(rest, fields)}"


def unprint(value: Any) -> Any:
    """Return the list or dictionary that was printed into a cell; anything else as it is.

    >>> unprint("[{'role': 'user'}]"), unprint('{"a": 1}'), unprint("[1, 2)"), unprint("[3,4]")
    ([{'role': 'user'}], {'a': 1}, '[1, 2)', '[3,4]')
    """
    if hasattr(value, "tolist") and not isinstance(value, str):
        value = value.tolist()  # an array of a Parquet file
    if not isinstance(value, str) or not _PRINTED.match(value):
        return value
    for read in (json.loads, ast.literal_eval, _numpy):
        try:
            found = read(value.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        return found if isinstance(found, (list, dict)) else value
    return value


def is_list(value: Any) -> bool:
    """Whether a cell holds a list, printed or not."""
    return isinstance(unprint(value), list)


def _numpy(text: str) -> Any:
    """Dictionaries as an array of them is printed: one a line, without commas."""
    return ast.literal_eval(re.sub(r"\}\s*\n\s*\{", "}, {", text))


# ----------------------------------------------------------------------------------------------------------
# Prompts


def read_messages(value: Any) -> list[Message] | str:
    """Return the messages of a cell, or the question that it is.

    Raises:
        Unreadable: when it is neither.
    """
    found = unprint(value)
    if isinstance(found, dict) and isinstance(found.get("messages"), list):
        found = found["messages"]
    if isinstance(found, list):
        return _messages(found)
    if isinstance(found, dict):
        return _text(_field(found, QUESTION_FIELDS, "question"))
    text = "" if found is None else str(found).strip()
    if text.lower() in NOTHING:
        raise Unreadable("it has no question")
    if _MESSAGES.match(text):
        raise Unreadable("it looks like a list of messages and is neither JSON nor Python's")
    return text


def _messages(found: list[Any]) -> list[Message]:
    if not found:
        raise Unreadable("it has no question")
    if all(isinstance(one, str) for one in found):
        raise Unreadable("its prompt is a list of texts, where messages have role and content")
    ready = []
    for one in found:
        if not isinstance(one, dict):
            raise Unreadable("a message is no object with role and content")
        role = one.get("role") or one.get("from")
        content = one.get("content") if "content" in one else one.get("value")
        if not isinstance(role, str) or content is None:
            raise Unreadable(
                f"a message has {', '.join(map(repr, one)) or 'nothing'} instead of role and content"
            )
        ready.append({"role": ROLES.get(role.lower(), role.lower()), "content": _text(content)})
    return ready


def without_reply(messages: list[Message]) -> list[Message]:
    """Return the messages up to the last that the user says: what comes after it is the reply to learn.

    >>> without_reply([{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}])
    [{'role': 'user', 'content': '2+2?'}]
    """
    last = max((at for at, one in enumerate(messages) if one["role"] == "user"), default=-1)
    if last < 0:
        raise Unreadable("none of its messages is the user's")
    if not messages[last]["content"].strip():
        raise Unreadable("it has no question")
    return messages[: last + 1]


def _text(content: Any) -> str:
    """The text of a message, whose content may be a list of parts."""
    if isinstance(content, list):
        return "\n".join(map(_part, content))
    if isinstance(content, dict):
        return _part(content)
    return str(content)


def _part(part: Any) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, dict) and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    raise Unreadable(f"a message holds a part of type {kind!r}, and only text is read")


# ----------------------------------------------------------------------------------------------------------
# Golds


def read_gold(value: Any) -> str | None:
    """Return the bare final answer of a cell; None where there is none. Of a list any entry is accepted.

    >>> [read_gold(cell) for cell in ("7 = 7\\n#### 7", ["2", "2 cups"], ["half", "0.5"], 42.0)]
    ['7', '2', '["half", "0.5"]', '42']
    >>> read_gold({"value": "2", "unit": "cups"}), read_gold(" "), read_gold(0.10000000149011612)
    ('2', None, '0.1')

    Raises:
        Unreadable: when it is a dictionary without a field for it.
    """
    found = unprint(value)
    if isinstance(found, dict):
        return read_gold(_field(found, GOLD_FIELDS, "answer"))
    if isinstance(found, (list, tuple)):
        golds = [gold for one in found if (gold := read_gold(one)) is not None]
        flat = [one for gold in golds for one in answers.accepted_answers(gold)]
        return answers.join_answers(flat) if flat else None
    if isinstance(found, float):
        return _plain_float(found)
    text = "" if found is None else answers.extract_gold_answer(str(found))
    if text.lower() in NOTHING:
        return None
    short = "\n" not in text and len(text) <= LONGEST_WORDS
    return text if short or answers.parse_number(text) is not None else None


def _plain_float(value: float) -> str | None:
    """A float as a person would write it: 42.0 is 42, and 0.1 that went through 32 bits is 0.1."""
    if value != value:
        return None
    if value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    try:
        (single,) = struct.unpack("f", struct.pack("f", value))
    except OverflowError:
        return repr(value)
    if single != value:
        return repr(value)
    shown = (f"{value:.{digits}g}" for digits in range(1, 10))
    return next(text for text in shown if struct.pack("f", float(text)) == struct.pack("f", value))


def _field(found: dict[str, Any], known: Sequence[str], what: str) -> Any:
    for name in known:
        if found.get(name) is not None:
            return found[name]
    fields = ", ".join(map(str, found)) or "none"
    raise Unreadable(
        f"its {what} is a dictionary (fields: {fields}); name one by a dotted path, as data.{what} = "
        f'"column.{next(iter(found), "field")}"'
    )
