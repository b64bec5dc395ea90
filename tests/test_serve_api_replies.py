"""pytest tests/test_serve_api_replies.py: prompts and replies of models as people really have them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

import rig.cli
from rig.model.chat_template import ChatTemplate, ChatTemplateError
from rig.model.reply_format import FAMILIES, PLAIN, format_of_template
from rig.server.client import ContextOverflow, ModelClient
from support import serve_gguf
from support.serve_server import Server

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
END = [{"role": "user", "content": "hi"}]
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("plain")
    with Server(serve_gguf.write(folder / "plain.gguf"), folder / "home", "--ctx", "512") as server:
        yield server


def said(server: Server, text: str = "hi", **asked: Any) -> dict[str, Any]:
    answer = server.chat(text, **asked)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


# Thoughts -------------------------------------------------------------------------------------------

TAGS = {
    "think": ("<think>", "</think>"),
    "magistral": ("[THINK]", "[/THINK]"),
    "seed": ("<seed:think>", "</seed:think>"),
    "command-r": ("<|START_THINKING|>", "<|END_THINKING|>"),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", ["control", "words", "spelt out"])
@pytest.mark.parametrize("family", TAGS)
def test_the_answer_is_taken_from_the_thought_whatever_its_tags_are(
    tmp_path: Path, family: str, kind: str, stream: bool
) -> None:
    """Control tokens, tokens of the user's own, or plain text; the literal word in a thought is text."""
    start, end = TAGS[family]
    template = serve_gguf.TEMPLATE.replace(
        "assistant<|end_header_id|>\n\n{% endif",
        f"assistant<|end_header_id|>\n\n{start}\n{{% endif",
    )
    tokens: Any = {} if kind == "spelt out" else {kind: (start, end)}
    model = serve_gguf.write(tmp_path / "thinker.gguf", template=template, **tokens)
    with Server(model, tmp_path / "home") as server:
        first = 268 if kind == "control" else None  # the token of the closing tag
        grammar = f'start: "hm" <[{first}]> "yes"' if kind == "control" else None
        spelt = f'root ::= "hm{end}yes"'
        bound = f"%llguidance {{}}\n{grammar}" if grammar else spelt
        asked: dict[str, Any] = {"grammar": bound, "max_tokens": 60}
        if stream:
            body = {"messages": END, "stream": True, "temperature": 0, **asked}
            lines = server.http.post(CHAT, json=body).text.splitlines()
            pieces = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
            deltas = [piece["choices"][0]["delta"] for piece in pieces]
            thought = "".join(delta.get("reasoning_content", "") for delta in deltas)
            text = "".join(delta.get("content", "") for delta in deltas)
        else:
            message = said(server, **asked)["choices"][0]["message"]
            thought, text = message["reasoning_content"], message["content"]
    assert (thought, text) == ("hm", "yes")


def test_a_tag_that_is_a_token_is_found_by_its_number_and_not_by_its_letters(
    tmp_path: Path,
) -> None:
    template = serve_gguf.TEMPLATE + "{# <think> #}"
    model = serve_gguf.write(
        tmp_path / "m.gguf", template=template, control=("<think>", "</think>")
    )
    literal = '"a </" "think> b"'  # spelt out in letters
    with Server(model, tmp_path / "home") as server:
        asked = {"grammar": f'%llguidance {{}}\nstart: <[267]> {literal} <[268]> "yes"'}
        message = said(server, **asked, max_tokens=60)["choices"][0]["message"]
        assert message["reasoning_content"] == "a </think> b"
        assert message["content"] == "yes"
        raw = said(server, **asked, max_tokens=60, reasoning_format="none")
        assert raw["choices"][0]["message"]["content"] == "<think>a </think> b</think>yes"
        stopped = said(server, **asked, max_tokens=60, stop="</think>", reasoning_format="none")
        assert stopped["choices"][0]["message"]["content"] == "<think>a "


def test_an_answer_without_a_thought_is_not_lost(tmp_path: Path) -> None:
    """The template opens a thought, and the model ends without closing it."""
    template = serve_gguf.TEMPLATE + "<think>\n"
    model = serve_gguf.write(
        tmp_path / "m.gguf", template=template, control=("<think>", "</think>")
    )
    with Server(model, tmp_path / "home") as server:
        message = said(server, grammar='root ::= "yes"', max_tokens=9)["choices"][0]["message"]
        assert message["content"] == "yes"
        cut = said(server, grammar='root ::= "hm hm hm hm hm"', max_tokens=3)["choices"][0]
        assert (cut["message"]["content"], cut["finish_reason"]) == ("", "length")


def test_every_family_s_tags_are_known_from_its_template() -> None:
    for family in FAMILIES:
        assert format_of_template(f"x {family.reasoning_open} y") == family
    assert format_of_template("{% if '</think>' in m.content %}").reasoning_open == "<think>"
    assert format_of_template("<|im_start|>{{ m.content }}<|end|>") == PLAIN


# How a prompt ends ------------------------------------------------------------------------------------

BEGUN = [
    {"role": "user", "content": "Name a colour."},
    {"role": "assistant", "content": "The colour is"},
]


def test_a_last_message_of_the_assistant_is_continued(plain: Server) -> None:
    def prompt(**more: Any) -> str:
        asked = plain.http.post("/apply-template", json={"messages": BEGUN, **more})
        assert asked.status_code == 200, asked.text
        return str(asked.json()["prompt"])

    assert prompt().endswith("<|end_header_id|>\n\nThe colour is")
    assert prompt(continue_final_message=True) == prompt(add_generation_prompt=False) == prompt()
    fresh = prompt(add_generation_prompt=True)
    assert fresh.endswith(
        "The colour is<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert prompt(continue_final_message=False) == fresh
    made = plain.http.post(CHAT, json={"messages": BEGUN, "max_tokens": 1, "temperature": 0}).json()
    whole = plain.http.post(
        TEXT, json={"prompt": prompt(), "max_tokens": 1, "temperature": 0}
    ).json()
    assert made["choices"][0]["message"]["content"] == whole["choices"][0]["text"]
    assert made["usage"]["prompt_tokens"] == whole["usage"]["prompt_tokens"]
    for wrong, why in (
        ({"continue_final_message": True, "add_generation_prompt": True}, "not both"),
        ({"continue_final_message": True, "messages": END}, "last message of the assistant"),
    ):
        refused = plain.http.post(CHAT, json={"messages": BEGUN, **wrong})
        assert refused.status_code == 400
        assert why in refused.json()["error"]["message"]


def test_what_a_continued_reply_begins_with_is_kept(tmp_path: Path) -> None:
    template = serve_gguf.TEMPLATE + "{# <think> #}"
    with Server(
        serve_gguf.write(tmp_path / "m.gguf", template=template), tmp_path / "home"
    ) as server:
        asked = {"messages": BEGUN, "grammar": 'root ::= " blue"', "max_tokens": 9}
        message = server.http.post(CHAT, json=asked).json()["choices"][0]["message"]
        assert message["content"] == " blue"


@pytest.mark.parametrize(
    "content", ["The colour is", "ends in blanks  ", "", "two\nlines", "<|eot_id|>é"]
)
def test_a_prompt_that_is_continued_ends_with_the_last_message(content: str) -> None:
    template = ChatTemplate(CHATML, bos="", eos="", control=["<|eot_id|>", "<|im_end|>"])
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": content}]
    parts = template.render_messages(messages, continue_final_message=True)
    assert "".join(text for text, _ in parts).endswith(f"<|im_start|>assistant\n{content}")
    if "<|eot_id|>" in content:
        assert ("<|eot_id|>", False) in parts


def test_a_template_that_drops_the_last_message_can_t_continue_it() -> None:
    template = ChatTemplate("{{ messages[0].content }}", bos="", eos="")
    with pytest.raises(ChatTemplateError, match="does not show the last message"):
        template.render_messages(BEGUN, continue_final_message=True)


def test_the_beginning_of_text_is_there_once(plain: Server) -> None:
    def count(prompt: str) -> int:
        made = plain.http.post(TEXT, json={"prompt": prompt, "max_tokens": 1}).json()
        return int(made["usage"]["prompt_tokens"])

    for text in ("Hello", "", " a", "<|eot_id|>"):
        with_it = count("<|begin_of_text|>" + text)
        assert with_it == (count(text) if text else 1)


# Lengths ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize(
    ("asked", "tokens", "note"),
    [
        (-1, None, ""),
        (-2, None, ""),
        (0, 1, "max_tokens 0 is taken as 1"),
        (1000, None, "max_tokens 1000 is more than there is room for: the reply may have "),
        (10**12, None, "is more than there is room for"),
        (7, 7, ""),
    ],
)
def test_a_length_that_can_t_be_is_cut_to_what_fits(
    plain: Server, name: str, asked: int, tokens: int | None, note: str
) -> None:
    endless = {"logit_bias": {"264": -100}}
    body = {"messages": END, name: asked, "temperature": 0, **endless}
    answer = plain.http.post(CHAT, json=body)
    assert answer.status_code == 200, answer.text
    made = answer.json()
    usage = made["usage"]
    assert made["choices"][0]["finish_reason"] == "length"
    assert usage["completion_tokens"] == tokens or usage["total_tokens"] == 512
    assert made.get("notes", []) == ([] if not note else made["notes"])
    assert note in " ".join(made.get("notes", []))


def test_notes_come_with_the_end_of_a_stream_too(plain: Server) -> None:
    body = {"messages": END, "max_tokens": 0, "stream": True}
    text = plain.http.post(CHAT, json=body).text
    chunks = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    assert [bool(chunk.get("notes")) for chunk in chunks] == [False] * (len(chunks) - 1) + [True]


def test_rig_s_own_client_is_told_when_there_is_no_room(plain: Server) -> None:
    with ModelClient(plain.url) as client, pytest.raises(ContextOverflow, match="ask for at most"):
        client.chat([{"role": "user", "content": "hi"}], max_tokens=5000)


# What the file advises ------------------------------------------------------------------------------------


def test_what_the_file_advises_for_sampling_is_the_default(tmp_path: Path) -> None:
    advice = {"temp": 0.6, "top_k": 1, "top_p": 0.9, "min_p": 0.0, "penalty_repeat": 1.1}
    model = serve_gguf.write(tmp_path / "a.gguf", advice=advice)

    def texts(server: Server, **more: Any) -> set[str]:
        found = [said(server, seed=seed, temperature=None, **more) for seed in range(4)]
        return {one["choices"][0]["message"]["content"] for one in found}

    with Server(model, tmp_path / "home") as server:
        assert len(texts(server)) == 1
        assert len(texts(server, top_k=40)) > 1
    with Server(serve_gguf.write(tmp_path / "b.gguf"), tmp_path / "home") as server:
        assert len(texts(server)) > 1


@pytest.mark.parametrize(
    "advice", [{"temp": -5.0}, {"top_p": 7.0}, {"top_k": -9}, {"min_p": float("nan")}]
)
def test_advice_that_means_nothing_is_left_out(tmp_path: Path, advice: dict[str, float]) -> None:
    model = serve_gguf.write(tmp_path / "a.gguf", advice=advice)
    with Server(model, tmp_path / "home") as server:
        assert said(server)["choices"][0]["finish_reason"]


# Templates ------------------------------------------------------------------------------------------------

SAID = "+ m['content'] +"
MARKED = {
    "generation": CHATML.replace(SAID, "}}{% generation %}{{ m.content }}{% endgeneration %}{{"),
    "blanks": CHATML.replace(SAID, "}}{%- generation -%} {{ m.content }} {%- endgeneration -%}{{"),
    "breaks": CHATML.replace("{% endfor %}", "{% if loop.index > 1 %}{% break %}{% endif %}{% endfor %}"),
    "a scope of its own": "{% set x = 1 %}{% generation %}{% set x = 2 %}{% endgeneration %}{{ x }}",
    "a date": "{{ strftime_now('%Y') }}",
    "JSON": "{{ messages | tojson(indent=1) }}{{ {'b': 'é<', 'a': 1} | tojson(sort_keys=True) }}",
}  # fmt: skip


@pytest.mark.parametrize("name", MARKED)
def test_a_template_is_rendered_as_transformers_renders_it(name: str) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "well"}]
    theirs, _ = render_jinja_template(
        [messages], chat_template=MARKED[name], add_generation_prompt=True
    )
    parts = ChatTemplate(MARKED[name], bos="", eos="").render_messages(messages)
    assert "".join(text for text, _ in parts) == theirs[0]


def test_a_template_of_one_s_own_takes_the_place_of_the_model_s(tmp_path: Path) -> None:
    model = serve_gguf.write(tmp_path / "bare.gguf", template="{% broken")
    (tmp_path / "mine.jinja").write_text(
        "{% for m in messages %}[{{ m.content }}]{% endfor %}<think>"
    )
    options = ("--chat-template", str(tmp_path / "mine.jinja"))
    with Server(model, tmp_path / "home", *options) as server:
        asked = server.http.post("/apply-template", json={"messages": END})
        assert asked.json() == {"prompt": "[hi]<think>"}
        message = said(server, grammar='root ::= "hm</think>4"', max_tokens=30)["choices"][0][
            "message"
        ]
        assert (message["reasoning_content"], message["content"]) == ("hm", "4")
    with Server(model, tmp_path / "home") as server:
        refused = server.chat("hi")
        assert "template is damaged" in refused.json()["error"]["message"]
        assert httpx.get(f"{server.url}/health").status_code == 200


@pytest.mark.parametrize(
    ("content", "says"), [(b"{% for", "template is damaged"), (b"\xff\xfe", "not text in UTF-8")]
)
def test_a_template_file_that_is_none_is_refused_at_the_start(
    tmp_path: Path, content: bytes, says: str
) -> None:
    model = serve_gguf.write(tmp_path / "a.gguf")
    (tmp_path / "t.jinja").write_bytes(content)
    words = ["serve", str(model), "--chat-template", str(tmp_path / "t.jinja")]
    done = CliRunner().invoke(rig.cli.main, words)
    assert done.exit_code in (1, 2)
    assert says in done.output
