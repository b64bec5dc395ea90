"""pytest tests/test_serve_api_nonsense.py: whatever comes in, a sentence goes out and the server stays.

By default a hundred and twenty requests are made up; with `-m slow` six thousand more.
"""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support import serve_gguf
from support.serve_server import Server

HELLO = [{"role": "user", "content": "the hat in on an the he"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serve")
    serve_gguf.write(folder / "plain.gguf")
    return folder


@pytest.fixture(scope="module")
def plain(folder: Path) -> Iterator[Server]:
    with Server(folder / "plain.gguf", folder / "home") as server:
        yield server


# Nonsense ---------------------------------------------------------------------------------------

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-3, 300),
    st.floats(),
    st.text(max_size=30),
    st.sampled_from(["", "\x00", "\ud800", "é" * 50, "<|eot_id|>", "\ue0000\ue001", "🚀", "1e400"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)
NAMES = (
    "model messages prompt max_tokens max_completion_tokens temperature top_p top_k min_p typical_p "
    "repeat_penalty repeat_last_n presence_penalty frequency_penalty seed stop stream stream_options n "
    "logit_bias response_format grammar lora logprobs top_logprobs chat_template_kwargs tools "
    "reasoning_format content tokens parse_special"
)
FIELDS = st.sampled_from(NAMES.split())
PATHS = st.sampled_from(
    ["/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize", "/apply-template"]
)
RIGHT = {"messages": HELLO, "prompt": "he", "content": "he", "tokens": [1, 2], "max_tokens": 3}


def answered(server: Server, path: str, body: bytes, **headers: str) -> None:
    """The server answers well, or with 4xx and a sentence; and it is still there."""
    response = server.http.post(path, content=body, headers=headers)
    assert response.status_code == 200 or 400 <= response.status_code < 500, response.text
    if response.status_code != 200:
        message = response.json()["error"]["message"]
        assert message.rstrip().endswith((".", "]", ")", "}", "`", "'", '"')) or " " in message
    elif b"data:" in response.content:
        assert response.content.endswith(b"data: [DONE]\n\n"), response.text


def made_up(examples: int) -> settings:
    return settings(
        max_examples=examples,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )


CHANGES = st.dictionaries(FIELDS, VALUES, min_size=1, max_size=3)
BODIES = st.binary(max_size=200) | VALUES.map(lambda v: json.dumps(v).encode())


def a_nonsense_field(server: Server, path: str, changes: dict[str, Any]) -> None:
    body = {**RIGHT, **changes}
    if isinstance(body["max_tokens"], int) and body["max_tokens"] > 50:
        body["max_tokens"] = 50
    body["max_completion_tokens"] = body.get("max_completion_tokens", 3)
    answered(server, path, json.dumps(body).encode("utf-8", "replace"))


@given(path=PATHS, changes=CHANGES)
@made_up(60)
def test_nonsense_in_a_field_gets_a_sentence(
    plain: Server, path: str, changes: dict[str, Any]
) -> None:
    a_nonsense_field(plain, path, changes)


@given(path=PATHS, body=BODIES)
@made_up(60)
def test_nonsense_as_a_body_gets_a_sentence(plain: Server, path: str, body: bytes) -> None:
    answered(plain, path, body)


@pytest.mark.slow
@given(path=PATHS, changes=CHANGES)
@made_up(3000)
def test_three_thousand_nonsense_fields_get_a_sentence(
    plain: Server, path: str, changes: dict[str, Any]
) -> None:
    a_nonsense_field(plain, path, changes)


@pytest.mark.slow
@given(path=PATHS, body=BODIES)
@made_up(3000)
def test_three_thousand_nonsense_bodies_get_a_sentence(
    plain: Server, path: str, body: bytes
) -> None:
    answered(plain, path, body)


NASTY: dict[str, Any] = {
    "deep": b'{"prompt":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep object": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "long number": b'{"prompt": "x", "seed": ' + b"9" * 10_000 + b"}",
    "large seed": {"prompt": "x", "max_tokens": 1, "seed": 2**70},
    "NaN": b'{"prompt": "x", "temperature": NaN}',
    "infinite": b'{"prompt": "x", "temperature": 1e999}',
    "duplicate keys": b'{"prompt": "x", "prompt": 3, "prompt": "y", "max_tokens": 1}',
    "BOM": b'\xef\xbb\xbf{"prompt": "x"}',
    "UTF-16": '{"prompt": "x", "max_tokens": 1}'.encode("utf-16"),
    "latin-1": '{"prompt": "é"}'.encode("latin-1"),
    "a lone surrogate": b'{"prompt": "\\ud800", "max_tokens": 2}',
    "nothing": b"",
    "a huge prompt": {"prompt": "he " * 100_000},
    "a huge stop": {"prompt": "x", "stop": "y" * 100_000},
    "many stops": {"prompt": "x", "stop": ["y"] * 1000},
    "empty prompts": {"prompt": [], "max_tokens": 1},
    "an empty token list": {"prompt": [[]], "max_tokens": 1},
    "a negative token": {"prompt": [-1], "max_tokens": 1},
    "an unknown token": {"prompt": [10**6], "max_tokens": 1},
    "a huge token": {"prompt": [2**40], "max_tokens": 1},
    "mixed prompts": {"prompt": ["a", 1], "max_tokens": 1},
    "many choices": {"prompt": "x", "n": 10**6},
    "a bias on no token": {"prompt": "x", "logit_bias": {"999999": 1}, "max_tokens": 1},
    "a bias on a word": {"prompt": "x", "logit_bias": {"the": 1}},
    "a huge bias": {"prompt": "x", "logit_bias": {"5": 1e300}, "max_tokens": 1},
    "every token forbidden": {
        "prompt": "x", "logit_bias": {str(i): -1e30 for i in range(267)}, "max_tokens": 2,
    },
    "max_tokens 0": {"prompt": "x", "max_tokens": 0},
    "max_tokens huge": {"prompt": "x", "max_tokens": 2**62},
    "top_k huge": {"prompt": "x", "max_tokens": 2, "top_k": 2**31 - 1},
    "a schema that repeats": {
        "prompt": "x", "max_tokens": 2,
        "response_format": {"type": "json_object", "schema": {"type": "array", "minItems": 10**15}},
    },
    "a schema that explodes": {
        "prompt": "x", "max_tokens": 2,
        "response_format": {"type": "json_object", "schema": {
            "type": "string", "pattern": "^((a{0,1000}){0,1000}){0,1000}$"}},
    },
    "a schema that says a control token": {
        "prompt": "x", "max_tokens": 20,
        "response_format": {"type": "json_object", "schema": {"const": "<|eot_id|>"}},
    },
    "a grammar that loops": {"prompt": "x", "max_tokens": 2, "grammar": "root ::= root"},
    "a grammar that explodes": {
        "prompt": "x", "max_tokens": 2, "grammar": 'root ::= ("a"* "a"*)* ("a" | "a" "a"*)*' * 3,
    },
    "a grammar of nothing": {"prompt": "x", "max_tokens": 2, "grammar": 'root ::= ""'},
    "a NUL in a grammar": {"prompt": "x", "grammar": 'root ::= "\x00"', "max_tokens": 2},
    "echo": {"prompt": "x", "echo": True},
}  # fmt: skip


@pytest.mark.parametrize("name", NASTY)
def test_nasty_requests_get_a_sentence(plain: Server, name: str) -> None:
    body = NASTY[name]
    answered(
        plain, "/v1/completions", body if isinstance(body, bytes) else json.dumps(body).encode()
    )
    assert plain.chat("still there?").is_success


@pytest.mark.parametrize(
    "raw",
    [
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),  # somebody tries TLS
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
        b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nx",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /%ff%fe%00?\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
)
def test_what_is_no_http_does_no_harm(plain: Server, raw: bytes) -> None:
    host, port = plain.url.removeprefix("http://").split(":")
    with (
        socket.create_connection((host, int(port)), timeout=5) as line,
        contextlib.suppress(OSError),
    ):
        line.sendall(raw)
        line.shutdown(socket.SHUT_WR)
        answer = line.recv(65536)
        assert not answer or answer.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4")), answer
    assert plain.http.get("/health").is_success
