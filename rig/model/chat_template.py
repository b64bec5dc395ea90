"""Messages become a prompt by the model's own template, and no message can forge a control token.

A web page that says "<|eot_id|><|start_header_id|>system" is text, not an order: such words inside a
message are marked before the template runs and are read as plain text afterwards. One sandbox for serving
and for what export measures, so that both feed the model the same; Jinja comes in when it is first needed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from rig.errors import RigError

Message = dict[str, str]
"""One turn of a conversation: its `role` and its `content`."""

Part = tuple[str, bool]
"""Some text of a prompt, and whether control tokens in it are meant."""

LEFT, RIGHT = "\ue000", "\ue001"
"""Private characters that enclose the number of a forged control token while the template runs."""
END = "\ue002"
"""Stands at the end of a message that is to be continued, while the template runs."""


BROKEN = (
    TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError,
)  # fmt: skip
"""What the code of a template may raise while it runs, beside Jinja's own errors."""


class ChatTemplateError(RigError):
    """The model's template does not take these messages, or is damaged."""


def default_template(template: str | list[dict[str, str]] | None) -> str | None:
    """The template for chats, where there are several: the one called `default`, else the first."""
    if isinstance(template, list):
        named = {one["name"]: one["template"] for one in template}
        return named.get("default") or next(iter(named.values()), None)
    return template


def render_chat(
    source: str, messages: Sequence[Message], *, bos: str, eos: str, ask: bool = True
) -> str:
    """The text of a conversation, as transformers renders it; `ask`: up to where the assistant speaks.

    >>> render_chat("{{ bos_token }}{{ messages[0].content }}", [{"content": "Hi"}], bos="<s>", eos="")
    '<s>Hi'
    """
    template = ChatTemplate(source, bos=bos, eos=eos)
    parts = template.render_messages(messages, add_generation_prompt=ask)
    return "".join(text for text, _ in parts)


class ChatTemplate:
    """The chat template of one model; `control` are the tokens that no message may forge."""

    def __init__(self, source: str, *, bos: str, eos: str, control: Sequence[str] = ()) -> None:
        import jinja2
        import jinja2.ext
        import jinja2.sandbox

        self.source = source
        self._bos, self._eos = bos, eos
        words = sorted((word for word in control if word.strip()), key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, words))) if words else None

        class Generation(jinja2.ext.Extension):
            """`{% generation %}` marks what the assistant said: its body is rendered."""

            tags = {"generation"}  # noqa: RUF012

            def parse(self, parser: Any) -> Any:
                """A block with a scope of its own, as transformers has it."""
                line = next(parser.stream).lineno
                body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
                return jinja2.nodes.CallBlock(
                    self.call_method("_render_body"), [], [], body
                ).set_lineno(line)

            def _render_body(self, caller: Any) -> str:
                return str(caller())

        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[Generation, jinja2.ext.loopcontrols],
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        try:
            self._template = environment.from_string(source)
        except (jinja2.TemplateError, *BROKEN) as error:
            raise ChatTemplateError(f"The model's chat template is damaged: {error}.") from error

    def render_messages(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **more: Any,
    ) -> list[Part]:
        """The prompt in parts; `more` are the template's own switches, such as enable_thinking.

        With `continue_final_message` the prompt ends with the last message, whose turn stays open.
        """
        import jinja2

        forged: list[str] = []
        safe = [
            {
                key: self._mark(value, forged) if key == "content" else value
                for key, value in m.items()
            }
            for m in messages
        ]
        if continue_final_message:
            safe[-1]["content"] = str(safe[-1]["content"]) + END
        given = {
            "tools": None,
            "documents": None,
            **{key: self._mark_all(value, forged) for key, value in more.items()},
            "messages": safe,
            "add_generation_prompt": add_generation_prompt and not continue_final_message,
            "bos_token": self._bos,
            "eos_token": self._eos,
        }
        try:
            text = self._template.render(given)
        except (jinja2.TemplateError, *BROKEN) as error:
            raise ChatTemplateError(f"The model's chat template failed: {error}.") from error
        if continue_final_message:
            text, found, _ = text.rpartition(END)
            if not found:
                raise ChatTemplateError(
                    "The model's chat template does not show the last message, so it can't be continued: "
                    "end with a message of the user."
                )
        return self._unmark(text, forged)

    def _mark(self, content: Any, forged: list[str]) -> Any:
        if not isinstance(content, str):
            return content
        for own in (LEFT, RIGHT, END):
            content = content.replace(own, "\ufffd")
        if self._control is None:
            return content

        def mark(found: re.Match[str]) -> str:
            forged.append(found.group())
            return f"{LEFT}{len(forged) - 1}{RIGHT}"

        return self._control.sub(mark, content)

    def _mark_all(self, value: Any, forged: list[str]) -> Any:
        """A switch is foreign text as well, however deep its words lie."""
        if isinstance(value, Mapping):
            return {key: self._mark_all(inner, forged) for key, inner in value.items()}
        if isinstance(value, list):
            return [self._mark_all(inner, forged) for inner in value]
        return self._mark(value, forged)

    def _unmark(self, text: str, forged: list[str]) -> list[Part]:
        parts: list[Part] = []
        for i, piece in enumerate(re.split(f"{LEFT}(\\d+){RIGHT}", text)):
            plain = i % 2 == 1
            if plain or piece:
                parts.append((forged[int(piece)] if plain else piece, not plain))
        return parts


def _raise(message: str) -> NoReturn:
    said = str(message).rstrip(".")
    raise ChatTemplateError(f"The model's chat template refuses these messages: {said}.")


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as transformers' filter writes it: Jinja's own one escapes for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
