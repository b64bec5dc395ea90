"""The Modelfile that lets Ollama run an exported GGUF as it was trained: form, system prompt, stop marks.

Ollama has its own template language. The pieces are taken from what the model's chat template renders, so
that both say the same; a template that is not made of fixed pieces is left to Ollama's own guess.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from export.checkpoint.tokenizer import Vocabulary
from rig.model.chat_template import ChatTemplateError, default_template, render_chat
from rig.model.reply_format import ReplyFormat


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


def render_modelfile(gguf_name: str, words: Vocabulary, reply_format: ReplyFormat) -> str:
    """The text of a Modelfile for the file `gguf_name` beside it."""
    lines = [
        f"# ollama create NAME -f Modelfile && ollama run NAME   (made by rig for {gguf_name})",
        f"FROM ./{gguf_name}",
    ]
    template = default_template(words.template)
    bos, eos = (_token(words, name) for name in ("bos", "eos"))
    turns = split_turns(template, bos=bos, eos=eos) if template else None
    if turns is None:
        lines.append(
            "# The chat template is not made of fixed pieces: Ollama guesses its own form."
        )
    else:
        lines.append(f"TEMPLATE {_quoted(_go(turns))}")
    if reply_format.system_prompt:
        lines.append(f"SYSTEM {_quoted(reply_format.system_prompt)}")
    for mark in _stops(words, turns):
        lines.append(f'PARAMETER stop "{mark}"')
    return "\n".join(lines) + "\n"


def _go(turns: ChatTurns) -> str:
    """Go's template for one turn; Ollama writes the beginning of the text itself."""
    system, user, assistant = (
        tuple(map(_literal, pair)) for pair in (turns.system, turns.user, turns.assistant)
    )
    return (
        f"{{{{ if .System }}}}{system[0]}{{{{ .System }}}}{system[1]}{{{{ end }}}}"
        f"{{{{ if .Prompt }}}}{user[0]}{{{{ .Prompt }}}}{user[1]}{{{{ end }}}}"
        f"{assistant[0]}{{{{ .Response }}}}{assistant[1]}"
    )


def _literal(text: str) -> str:
    return text.replace("{{", '{{ "{{" }}')


def _quoted(text: str) -> str:
    return f'"""{text}"""'


def _token(words: Vocabulary, name: str) -> str:
    number = words.special.get(name)
    return words.tokens[number] if number is not None else ""


def _stops(words: Vocabulary, turns: ChatTurns | None) -> Iterable[str]:
    """What ends a reply: the end tokens, and the mark that the template puts after one."""
    ends = [_token(words, name) for name in ("eos", "eot", "eom")]
    if turns is not None:
        after = turns.assistant[1].strip()
        ends += [after] if after in words.tokens else []
    return dict.fromkeys(end for end in ends if end)


def _common_end(one: str, other: str) -> str:
    size = 0
    while size < min(len(one), len(other)) and one[-1 - size] == other[-1 - size]:
        size += 1
    return one[len(one) - size :]
