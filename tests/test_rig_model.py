"""What rig knows of a model without loading it: `pytest tests/test_rig_model.py`."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOMS, ROOT

from rig.errors import RigError
from rig.model.chat_template import ChatTemplate, ChatTemplateError, default_template, render_chat
from rig.model.reply_format import (
    PLAIN,
    TAUGHT,
    THINKING,
    ParsedReply,
    ReplyFormat,
    ReplySplitter,
)

SAID = [{"role": "user", "content": "<b> & <|end|>"}]


def test_a_word_that_only_looks_like_a_control_token_is_text() -> None:
    template = ChatTemplate(
        "<|user|>{{ messages[0].content }}<|end|>", bos="", eos="", control=["<|user|>", "<|end|>"]
    )
    assert template.render_messages(SAID) == [
        ("<|user|><b> & ", True),
        ("<|end|>", False),
        ("<|end|>", True),
    ]


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("{{ messages | tojson }}", '[{"role": "user", "content": "<b> & <|end|>"}]'),
        ("{{ messages[0] | tojson(sort_keys=true, separators=(',', ':')) }}",
         '{"content":"<b> & <|end|>","role":"user"}'),
        ("{{ 'ü' | tojson }}{{ 'ü' | tojson(ensure_ascii=true) }}", '"ü""\\u00fc"'),
        ("{{ [1] | tojson(indent=1) }}", "[\n 1\n]"),
        ("{% for m in messages %}\n  {{ m.role }}\n  {% break %}{% endfor %}", "  user\n"),
        ("{% if documents is none and tools is none %}{{ bos_token }}{% endif %}", "<s>"),
    ],
)  # fmt: skip
def test_a_template_renders_as_transformers_renders_it(source: str, wanted: str) -> None:
    assert render_chat(source, SAID, bos="<s>", eos="") == wanted


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("{% if %}", "is damaged"),
        ("{{ raise_exception('no system prompt') }}", "refuses these messages: no system prompt"),
        ("{{ messages[3].content.strip() }}", "failed"),
        ("{{ 1 / 0 }}", "failed: division by zero"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "failed: Range too big"),
        ("{{ ''.__class__.__mro__ }}", "failed"),
        ("{{ messages.append(1) }}", "failed"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "failed"),
    ],
)
def test_whatever_is_wrong_with_a_template_is_one_sentence(source: str, told: str) -> None:
    with pytest.raises(ChatTemplateError, match="The model's chat template") as caught:
        render_chat(source, SAID, bos="", eos="")
    assert told in caught.value.message


def test_of_several_templates_the_default_one_is_for_chats() -> None:
    rag, chat = {"name": "rag", "template": "R"}, {"name": "default", "template": "D"}
    assert [default_template(each) for each in ([rag, chat], [rag], [], None, "T")] == [
        "D", "R", None, None, "T",
    ]  # fmt: skip


def test_knowing_messages_costs_no_template_engine() -> None:
    """The bots and the trainer take a type from there; the bots' extra does not even bring Jinja."""
    code = "import sys, rig.model.chat_template; print('jinja2' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize(
    ("said", "thought", "answer"),
    [
        ("<think>2+2</think>It is 4.", "2+2", "It is 4."),
        ("<think>half a thou", "half a thou", ""),
        ("It is 4.", "", "It is 4."),
        ("<thinking>aloud</thinking>", "", "<thinking>aloud</thinking>"),
    ],
)
def test_a_thought_is_taken_out_of_what_a_model_taught_elsewhere_says(
    said: str, thought: str, answer: str
) -> None:
    assert THINKING.split_reply(said) == ParsedReply(thought, answer)
    splitter = ReplySplitter(THINKING)
    pieces = [*map(splitter.feed_text, said), splitter.flush_text()]
    assert tuple(map("".join, zip(*pieces, strict=True))) == (thought, answer)


def test_those_marks_stand_in_one_place() -> None:
    """Serving splits by them and the articles too: two copies part one day."""
    holders = [
        path.relative_to(ROOT).as_posix()
        for room in ROOMS
        for path in (ROOT / room).rglob("*.py")
        if re.search("""["']<think>["']""", path.read_text("utf-8"))
    ]
    assert holders == ["rig/model/reply_format.py"]


REPLY = "<reasoning>\n3 < 4, so 4\n</reasoning>\n<answer>\n4\n</answer>\n"


@pytest.mark.parametrize("size", range(1, 12))
def test_a_stream_cut_anywhere_splits_as_the_whole_does(size: int) -> None:
    splitter = ReplySplitter(TAUGHT)
    pieces = [splitter.feed_text(REPLY[i : i + size]) for i in range(0, len(REPLY), size)]
    pieces.append(splitter.flush_text())
    assert "".join(t for t, _ in pieces).strip() == "3 < 4, so 4"
    assert "".join(a for _, a in pieces).strip() == "4"


@pytest.mark.parametrize(
    ("text", "thought", "answer"),
    [
        ("", "", ""),
        ("no tags at all", "", "no tags at all"),
        ("<reasoning>cut off in the mid", "cut off in the mid", ""),
        ("<reasoning>a</reasoning>no answer tag", "a", "no answer tag"),
        ("a < b and <b>bold</b>", "", "a < b and <b>bold</b>"),
        ("ends with half a tag <answ", "", "ends with half a tag <answ"),
    ],
)
def test_odd_replies_lose_no_text(text: str, thought: str, answer: str) -> None:
    assert TAUGHT.split_reply(text) == (thought, answer)


def test_a_plain_model_is_left_alone() -> None:
    assert PLAIN.split_reply(REPLY) == ("", REPLY.strip())
    assert not PLAIN.matches_text(REPLY)


def test_the_contract_travels_in_a_folder_and_in_metadata(tmp_path: Path) -> None:
    TAUGHT.save_to(tmp_path)
    assert (
        ReplyFormat.from_folder(tmp_path)
        == TAUGHT
        == ReplyFormat.from_metadata(TAUGHT.to_metadata())
    )
    assert ReplyFormat.from_folder(tmp_path / "nowhere") == PLAIN


def test_a_damaged_contract_is_named(tmp_path: Path) -> None:
    (tmp_path / "reply_format.json").write_text('{"reasoning_open": ', "utf-8")
    with pytest.raises(RigError, match="damaged"):
        ReplyFormat.from_folder(tmp_path)
