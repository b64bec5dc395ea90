"""The Modelfile that lets Ollama run an exported GGUF as it was trained: form, system prompt, stop marks.

Ollama has its own template language. The pieces are taken from what the model's chat template renders, so
that both say the same; a template that is not made of fixed pieces is left to Ollama's own guess.
"""

from __future__ import annotations

from collections.abc import Iterable

from export import chat
from export.checkpoint.tokenizer import Vocabulary
from rig.model.reply_format import ReplyFormat


def render_modelfile(gguf_name: str, words: Vocabulary, reply_format: ReplyFormat) -> str:
    """The text of a Modelfile for the file `gguf_name` beside it."""
    lines = [
        f"# ollama create NAME -f Modelfile && ollama run NAME   (made by rig for {gguf_name})",
        f"FROM ./{gguf_name}",
    ]
    template = chat.default_template(words.template)
    bos, eos = (_token(words, name) for name in ("bos", "eos"))
    turns = chat.split_turns(template, bos=bos, eos=eos) if template else None
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


def _go(turns: chat.ChatTurns) -> str:
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


def _stops(words: Vocabulary, turns: chat.ChatTurns | None) -> Iterable[str]:
    """What ends a reply: the end tokens, and the mark that the template puts after one."""
    ends = [_token(words, name) for name in ("eos", "eot", "eom")]
    if turns is not None:
        after = turns.assistant[1].strip()
        ends += [after] if after in words.tokens else []
    return dict.fromkeys(end for end in ends if end)
