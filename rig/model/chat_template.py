"""Messages become a prompt by the model's own template, and no message can forge a control token.

A web page that says "<|eot_id|><|start_header_id|>system" is text, not an order: such words inside a
message are marked before the template runs and are read as plain text afterwards.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.sandbox

from rig.errors import RigError

Part = tuple[str, bool]
"""Some text of a prompt, and whether control tokens in it are meant."""

LEFT, RIGHT = "\ue000", "\ue001"
"""Private characters that enclose the number of a forged control token while the template runs."""


class TemplateError(RigError):
    """The model's template does not take these messages."""


class ChatTemplate:
    """The chat template of one model."""

    def __init__(self, source: str, *, bos: str, eos: str, control: list[str]) -> None:
        self.source = source
        self._bos, self._eos = bos, eos
        words = sorted((word for word in control if word.strip()), key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, words))) if words else None
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise TemplateError(f"The model's chat template is damaged: {error}.") from error

    def render_messages(
        self,
        messages: list[dict[str, Any]],
        *,
        add_generation_prompt: bool = True,
        **more: Any,
    ) -> list[Part]:
        """The prompt in parts; `more` are the template's own switches, such as enable_thinking."""
        forged: list[str] = []
        safe = [
            {
                key: self._mark(value, forged) if key == "content" else value
                for key, value in m.items()
            }
            for m in messages
        ]
        try:
            text = self._template.render(
                messages=safe,
                add_generation_prompt=add_generation_prompt,
                bos_token=self._bos,
                eos_token=self._eos,
                **{"tools": None, **more},
            )
        except TemplateError:
            raise
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
            raise TemplateError(f"The model's chat template failed: {error}.") from error
        return self._unmark(text, forged)

    def _mark(self, content: Any, forged: list[str]) -> Any:
        if not isinstance(content, str):
            return content
        content = content.replace(LEFT, "\ufffd").replace(RIGHT, "\ufffd")
        if self._control is None:
            return content

        def mark(found: re.Match[str]) -> str:
            forged.append(found.group())
            return f"{LEFT}{len(forged) - 1}{RIGHT}"

        return self._control.sub(mark, content)

    def _unmark(self, text: str, forged: list[str]) -> list[Part]:
        parts: list[Part] = []
        for i, piece in enumerate(re.split(f"{LEFT}(\\d+){RIGHT}", text)):
            plain = i % 2 == 1
            if plain or piece:
                parts.append((forged[int(piece)] if plain else piece, not plain))
        return parts


def _raise(message: str) -> NoReturn:
    raise TemplateError(f"The model's chat template refuses these messages: {message}")


def _tojson(value: Any, indent: int | None = None, **_: Any) -> str:
    import json

    return json.dumps(value, ensure_ascii=False, indent=indent)
