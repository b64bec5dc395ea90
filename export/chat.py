"""A chat template at work: the text of a conversation, and the fixed pieces around each turn."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.sandbox

from rig.errors import RigError
from rig.prompts import Message

Template = str | list[dict[str, str]] | None


class ChatTemplateError(RigError):
    """The template does not take such a conversation, or is damaged."""


def default_template(template: Template) -> str | None:
    """The template for chats, where there are several: the one called `default`, else the first."""
    if isinstance(template, list):
        named = {one["name"]: one["template"] for one in template}
        return named.get("default") or next(iter(named.values()), None)
    return template


def render_chat(
    template: str, messages: Sequence[Message], *, bos: str, eos: str, ask: bool = True
) -> str:
    """The text of a conversation, as transformers renders it; `ask`: up to where the assistant speaks."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = lambda value, **more: json.dumps(
        value, ensure_ascii=False, **more
    )
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        return environment.from_string(template).render(
            messages=list(messages),
            add_generation_prompt=ask,
            bos_token=bos,
            eos_token=eos,
            tools=None,
            documents=None,
        )
    except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
        raise ChatTemplateError(f"The chat template failed: {error}.") from error


@dataclass(frozen=True)
class ChatTurns:
    """The fixed text of a chat form; a conversation is these pieces with what was said between them."""

    start: str
    """Before everything, such as <|begin_of_text|>."""
    system: tuple[str, str]
    """Before and after the system prompt."""
    user: tuple[str, str]
    assistant: tuple[str, str]


def split_turns(template: str, *, bos: str, eos: str) -> ChatTurns | None:
    """Take a template apart by letting it render marks; None when it is not made of fixed pieces."""
    marks = [f"mark{letter}" for letter in "SUAV"]
    said = [
        {"role": role, "content": mark}
        for role, mark in zip(("system", "user", "assistant", "user"), marks, strict=True)
    ]
    try:
        whole = render_chat(template, said, bos=bos, eos=eos)
        quiet = render_chat(template, said, bos=bos, eos=eos, ask=False)
        alone = render_chat(template, said[1:2], bos=bos, eos=eos, ask=False)
    except ChatTemplateError:
        return None
    if any(whole.count(mark) != 1 for mark in marks) or not whole.startswith(quiet):
        return None
    head, rest = whole.split(marks[0])
    after_system, rest = rest.split(marks[1])
    after_user, rest = rest.split(marks[2])
    after_assistant, end = rest.split(marks[3])
    opening = whole[len(quiet) :]
    user_end = end.removesuffix(opening)
    if not opening or not after_user.startswith(user_end):
        return None
    start = bos if bos and head.startswith(bos) else ""
    before_user = _common_end(after_system, after_assistant)
    own = alone.removeprefix(start).split(marks[1])[0]
    if after_system.endswith(own) and after_assistant.endswith(own):
        before_user = own
    elif user_end and before_user.startswith(user_end):
        before_user = before_user.removeprefix(user_end)  # a turn's end belongs to the turn
    found = ChatTurns(
        start,
        (head.removeprefix(start), after_system.removesuffix(before_user)),
        (before_user, user_end),
        (opening, after_assistant.removesuffix(before_user)),
    )
    built = (
        found.start
        + marks[0].join(found.system)
        + marks[1].join(found.user)
        + marks[2].join(found.assistant)
        + marks[3].join(found.user)
        + opening
    )
    return found if built == whole else None


def _common_end(one: str, other: str) -> str:
    size = 0
    while size < min(len(one), len(other)) and one[-1 - size] == other[-1 - size]:
        size += 1
    return one[len(one) - size :]


def _raise(message: Any) -> NoReturn:
    raise jinja2.TemplateError(str(message))
