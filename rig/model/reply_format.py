"""The contract of how a taught model speaks: one system prompt, two pairs of tags, one way to split a reply.

Training rewards it, evaluation measures it, serving splits by it, bots read what is left. It travels with
the weights: `reply_format.json` in a run folder and beside an adapter, `rig.*` keys in a GGUF. A model
without it (any model from anywhere) speaks `PLAIN`: everything it says is the answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from rig.atomic import write_text
from rig.errors import RigError
from rig.model.foreign import read_foreign_text

FILE = "reply_format.json"
PREFIX = "rig."


class ParsedReply(NamedTuple):
    """What a model said, taken apart."""

    thought: str
    """The reasoning, stripped; empty when there was none."""
    answer: str
    """What is left for the reader, stripped."""


@dataclass(frozen=True)
class ReplyFormat:
    """How one model was taught to speak; empty tags mean that it was never taught."""

    system_prompt: str = ""
    reasoning_open: str = ""
    reasoning_close: str = ""
    answer_open: str = ""
    answer_close: str = ""

    def matches_text(self, text: str) -> bool:
        """Whether `text` is one thought, then one answer, and nothing else.

        >>> TAUGHT.matches_text("<reasoning>\\n2+2=4\\n</reasoning>\\n<answer>\\n4\\n</answer>\\n")
        True
        >>> TAUGHT.matches_text("4"), TAUGHT.matches_text("<reasoning></reasoning><answer>4</answer>")
        (False, False)
        """
        if not self.reasoning_open:
            return False
        pieces = (self.reasoning_open, self.reasoning_close, self.answer_open, self.answer_close)
        if any(text.count(piece) != 1 for piece in pieces):
            return False
        ro, rc, ao, ac = map(re.escape, pieces)
        return bool(re.fullmatch(rf"\s*{ro}.*\S.*{rc}\s*{ao}.*\S.*{ac}\s*", text, re.DOTALL))

    def split_reply(self, text: str) -> ParsedReply:
        """Take a whole or half-finished text apart; text outside the tags belongs to the answer.

        >>> TAUGHT.split_reply("<reasoning>2+2</reasoning><answer>4</answer>")
        ParsedReply(thought='2+2', answer='4')
        >>> TAUGHT.split_reply("<reasoning>2+")
        ParsedReply(thought='2+', answer='')
        >>> TAUGHT.split_reply("just 4")
        ParsedReply(thought='', answer='just 4')
        """
        splitter = ReplySplitter(self)
        pieces = [splitter.feed_text(text), splitter.flush_text()]
        return ParsedReply(
            "".join(thought for thought, _ in pieces).strip(),
            "".join(answer for _, answer in pieces).strip(),
        )

    def to_metadata(self) -> dict[str, str]:
        """The GGUF keys that carry this contract, such as `rig.system_prompt`."""
        return {PREFIX + name: value for name, value in asdict(self).items() if value}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, object]) -> ReplyFormat:
        """Read the contract out of GGUF metadata; keys that are absent leave the model untaught.

        >>> ReplyFormat.from_metadata(TAUGHT.to_metadata()) == TAUGHT, ReplyFormat.from_metadata({}) == PLAIN
        (True, True)
        """
        names = cls.__dataclass_fields__
        return cls(**{n: str(metadata[PREFIX + n]) for n in names if PREFIX + n in metadata})

    def save_to(self, folder: Path) -> None:
        """Write `reply_format.json` into `folder`."""
        write_text(folder / FILE, json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n")

    @classmethod
    def from_folder(cls, folder: Path) -> ReplyFormat:
        """Read `reply_format.json` of `folder`; a folder without one holds an untaught model."""
        path = folder / FILE
        if not path.exists():
            if (folder / "speech.json").exists():
                raise RigError(f"{folder / 'speech.json'} is called {FILE} now: rename it.")
            return PLAIN
        try:
            found = json.loads(read_foreign_text(path))
            if not all(isinstance(value, str) for value in found.values()):
                raise TypeError("not every value is a text")
            return cls(**found)
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise RigError(f"{path} is damaged ({error}): copy it again from the run.") from error


class ReplySplitter:
    """Takes a stream apart as it arrives; a tag may be cut anywhere between two pieces.

    >>> splitter = ReplySplitter(TAUGHT)
    >>> [splitter.feed_text(piece) for piece in ("<reas", "oning>2+2</reasoning><ans", "wer>4</answer>")]
    [('', ''), ('2+2', ''), ('', '4')]
    >>> splitter.flush_text()
    ('', '')
    """

    def __init__(self, reply_format: ReplyFormat) -> None:
        self._tags = {
            reply_format.reasoning_open: True,
            reply_format.reasoning_close: False,
            reply_format.answer_open: False,
            reply_format.answer_close: False,
        }
        self._tags.pop("", None)
        self._thinking = False
        self.closed = False
        """Whether a thought has ended."""
        self._kept = ""

    def feed_text(self, text: str) -> tuple[str, str]:
        """Return what `text` adds to the thought and to the answer; a possible half tag is kept back."""
        self._kept += text
        thought, answer = "", ""
        while True:
            found = [(at, tag) for tag in self._tags if (at := self._kept.find(tag)) >= 0]
            if found:
                at, tag = min(found, key=lambda item: (item[0], -len(item[1])))
                said, self._kept = self._kept[:at], self._kept[at + len(tag) :]
            else:
                tag = ""
                keep = self._half_tag()
                cut = len(self._kept) - keep
                said, self._kept = self._kept[:cut], self._kept[cut:]
            if self._thinking:
                thought += said
            else:
                answer += said
            if not tag:
                return thought, answer
            self._thinking = self._tags[tag]
            self.closed = self.closed or not self._thinking

    def flush_text(self) -> tuple[str, str]:
        """Return what was kept back: at the end of the stream it is text after all."""
        said, self._kept = self._kept, ""
        return (said, "") if self._thinking else ("", said)

    def _half_tag(self) -> int:
        """Length of the longest end of the kept text that may yet become a tag."""
        longest = max((len(tag) for tag in self._tags), default=1) - 1
        for size in range(min(longest, len(self._kept)), 0, -1):
            if any(tag.startswith(self._kept[-size:]) for tag in self._tags):
                return size
        return 0


PLAIN = ReplyFormat()

THINKING = ReplyFormat(reasoning_open="<think>", reasoning_close="</think>")
"""How models that were taught elsewhere mark their thoughts, as far as they do."""

FAMILIES = (
    THINKING,
    ReplyFormat(
        reasoning_open="<|channel|>analysis<|message|>",
        reasoning_close="<|end|>",
        answer_open="<|start|>assistant<|channel|>final<|message|>",
    ),
    ReplyFormat(reasoning_open="[THINK]", reasoning_close="[/THINK]"),
    ReplyFormat(reasoning_open="<seed:think>", reasoning_close="</seed:think>"),
    ReplyFormat(reasoning_open="<thought>", reasoning_close="</thought>"),
    ReplyFormat(reasoning_open="<thinking>", reasoning_close="</thinking>"),
    ReplyFormat(reasoning_open="<reasoning>", reasoning_close="</reasoning>"),
    ReplyFormat(reasoning_open="<|START_THINKING|>", reasoning_close="<|END_THINKING|>"),
    ReplyFormat(reasoning_open="<|inner_prefix|>", reasoning_close="<|inner_suffix|>"),
    ReplyFormat(reasoning_open="◁think▷", reasoning_close="◁/think▷"),
)
"""How families of models mark their thoughts; which one it is, the model's own template says."""


def format_of_template(template: str) -> ReplyFormat:
    """How a model that was taught elsewhere speaks, by the tags in its chat template.

    >>> format_of_template("{{ m.content.split('[/THINK]')[-1] }}").reasoning_open
    '[THINK]'
    >>> format_of_template("{{ m.content }}") == PLAIN
    True
    """
    for one in FAMILIES:
        if one.reasoning_open in template or (
            one.reasoning_close in template and one.reasoning_close != "<|end|>"
        ):
            return one
    return PLAIN


TAUGHT = ReplyFormat(
    system_prompt=(
        "Think before you answer. Reply in exactly this form:\n"
        "<reasoning>\nyour thinking, step by step\n</reasoning>\n"
        "<answer>\nthe final answer alone\n</answer>"
    ),
    reasoning_open="<reasoning>",
    reasoning_close="</reasoning>",
    answer_open="<answer>",
    answer_close="</answer>",
)
"""What `rig train` teaches unless a recipe says otherwise."""
