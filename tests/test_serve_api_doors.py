"""pytest tests/test_serve_api_doors.py: who may come in, how much they may bring, and what they are told."""

from __future__ import annotations

import asyncio
import contextlib
import json
import select
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve.api.admission import AdmissionQueue, QueueFull
from serve.api.body import BadRequest, count_pieces, parse_body
from serve.api.protocol import ChatCompletionRequest, CompletionRequest
from support import serve_gguf
from support.serve_server import Server

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("doors")
    model = serve_gguf.write(folder / "plain.gguf")
    with Server(model, folder / "home", "--body-limit", "2") as server:
        yield server


def memory(pid: int) -> float:
    """MiB in memory of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


# Work is admitted before it is done ---------------------------------------------------------------


@pytest.mark.parametrize(("prompts", "n"), [(2000, 8), (60_000, 8), (9, 8), (69, 1), (100_000, 1)])
def test_more_replies_than_can_wait_are_refused_before_any_work(
    server: Server, prompts: int, n: int
) -> None:
    before = memory(server.process.pid)
    body = {"prompt": ["a"] * prompts, "n": n, "max_tokens": 1}
    refused = server.http.post(TEXT, json=body)
    assert refused.status_code == 400
    said = refused.json()["error"]["message"]
    assert f"asks for {prompts * n:,} replies (prompts x n), and this server takes 68" in said
    assert memory(server.process.pid) - before < 60


def test_a_list_of_prompts_that_fits_is_answered(server: Server) -> None:
    made = server.http.post(TEXT, json={"prompt": ["a", "b"] * 16, "n": 2, "max_tokens": 1})
    assert len(made.json()["choices"]) == 64


def test_replies_that_would_not_find_room_now_are_told_when_to_come_back() -> None:
    async def scene() -> None:
        queue = AdmissionQueue(2, 3)
        assert queue.capacity == 5
        with queue.announce_request(4, urgent=True):
            with queue.announce_request(1, urgent=True):
                with pytest.raises(QueueFull) as full, queue.announce_request(1, urgent=True):
                    raise AssertionError
                assert full.value.retry_after >= 1
            async with queue.admit_request(urgent=False), queue.admit_request(urgent=False):
                with pytest.raises(QueueFull), queue.announce_request(1, urgent=False):
                    raise AssertionError
                with queue.announce_request(1, urgent=True):  # a bot rests for a person
                    pass

    asyncio.run(scene())


def test_a_server_without_a_queue_answers_while_it_has_a_place() -> None:
    async def scene() -> None:
        queue = AdmissionQueue(1, 0)
        with queue.announce_request(1, urgent=True):
            pass
        async with queue.admit_request(urgent=True):
            with pytest.raises(QueueFull), queue.announce_request(1, urgent=True):
                raise AssertionError

    asyncio.run(scene())


TOO_MUCH: list[tuple[str, dict[str, Any], str]] = [
    (CHAT, {"messages": HELLO["messages"] * 5000}, "messages: list should have at most 4096 items"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": ""}] * 2000}]}, "2000 parts"),
    (CHAT, {"stop": ["x"] * 17}, "stop takes at most 16 strings of 1 to 1024 characters."),
    (CHAT, {"stop": "x" * 1025}, "stop takes at most 16 strings"),
    (CHAT, {"logit_bias": {str(i): 1 for i in range(5000)}}, "logit_bias names 5000 tokens"),
    (CHAT, {"grammar": 'root ::= "' + "a" * 70_000 + '"'}, "grammar: string should have at most 65536"),
    (CHAT, {"response_format": {"type": "json_schema", "json_schema": {"schema": {"enum": ["x" * 140_000]}}}},
     "JSON schema is longer than 131,072 characters"),
    (CHAT, {"response_format": {"type": "json_object", "schema": {"enum": list(range(30_000))}}},
     "JSON schema is longer than"),
    (CHAT, {"chat_template_kwargs": {"a": ["b" * 100] * 700}}, "chat_template_kwargs is longer than"),
    (CHAT, {"lora": [{"id": 0}] * 65}, "lora: list should have at most 64 items"),
    (CHAT, {"n": 9}, "n: input should be less than or equal to 8"),
    (TEXT, {"prompt": [[1]] * 150_000 + [[]] * 150_000}, "values, and may hold 300,000."),
    ("/detokenize", {"tokens": [5] * 400_000}, "values, and may hold 300,000."),
]  # fmt: skip


@pytest.mark.parametrize(("path", "changes", "said"), TOO_MUCH)
def test_what_is_too_much_is_named(
    server: Server, path: str, changes: dict[str, Any], said: str
) -> None:
    body = {**HELLO, "prompt": "hi", **changes}
    refused = server.http.post(path, json=body)
    assert refused.status_code in (400, 413)
    assert said in refused.json()["error"]["message"]


def test_log_probabilities_are_bounded_in_number(server: Server) -> None:
    asked = {"logprobs": True, "top_logprobs": 20, "n": 8, "logit_bias": {"264": -100}}
    made = server.http.post(CHAT, json={**HELLO, **asked, "max_tokens": 4000}, timeout=120).json()
    rows = sum(len(choice["logprobs"]["content"]) for choice in made["choices"])
    assert rows == 8 * (32768 // (21 * 8))
    assert "a reply may have 195 tokens" in made["notes"][0]
    few = server.http.post(CHAT, json={**HELLO, "logprobs": True, "max_tokens": 20}).json()
    assert "notes" not in few


def test_words_that_look_like_punctuation_are_no_values() -> None:
    assert count_pieces(json.dumps({"content": '", [{' * 200_000, "b": [1, 2]}).encode()) == 4
    assert count_pieces(b"[" * 400_000) == 400_000


def test_bodies_that_are_held_at_once_are_bounded(server: Server) -> None:
    """Each is held back by one byte; small requests are answered meanwhile."""
    raw = b"a" * (2 << 20)
    head = b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(raw)
    before = memory(server.process.pid)
    with contextlib.ExitStack() as stack:
        lines = []
        for _ in range(40):
            line = stack.enter_context(connect(server))
            line.sendall(head)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                line.sendall(raw[:-1])
            lines.append(line)
        assert server.chat("hi").status_code == 200
        assert memory(server.process.pid) - before < 120
        until = time.monotonic() + 20
        while len(answered := select.select(lines, [], [], 1)[0]) < 36:
            assert time.monotonic() < until, f"{len(answered)} of 40 were told that it is too much"
        assert {line.recv(12) for line in answered} == {b"HTTP/1.1 503"}
    # The server frees them once it has seen that their senders are gone.
    until = time.monotonic() + 20
    while server.http.post("/tokenize", json={"content": "a" * 70_000}).status_code != 200:
        assert time.monotonic() < until
        time.sleep(0.1)


def connect(server: Server) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


# Who asks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://localhost:3000", 200),
        ("http://127.0.0.1:1", 200),
        ("http://[::1]:8080", 200),
        ("http://127.9.9.9", 200),
        ("http://203.0.113.5", 403),
        ("http://198.51.100.7:8080", 403),
        ("http://192.168.1.20", 403),
        ("http://[2001:db8::1]", 403),
        ("http://0x7f000001", 403),
        ("https://evil.example", 403),
        ("http://localhost.evil.example", 403),
        ("null", 403),
    ],
)
def test_only_pages_of_this_machine_may_ask(server: Server, origin: str, status: int) -> None:
    asked = server.http.post(CHAT, json=HELLO, headers={"Origin": origin})
    assert asked.status_code == status


def test_what_a_page_can_send_without_asking_is_refused(server: Server) -> None:
    body = json.dumps(HELLO)
    for kind in ("text/plain", "TEXT/PLAIN; charset=utf-8"):
        refused = server.http.post(CHAT, content=body, headers={"Content-Type": kind})
        assert refused.status_code == 415
        assert "application/json" in refused.json()["error"]["message"]
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    assert server.http.post(CHAT, content=body, headers=form).status_code == 200  # curl -d
    page = form | {"Sec-Fetch-Mode": "no-cors"}
    assert server.http.post(CHAT, content=body, headers=page).status_code == 415


def test_the_scheme_of_a_key_may_be_written_in_any_case(tmp_path: Path) -> None:
    model = serve_gguf.write(tmp_path / "plain.gguf")
    key = tmp_path / "key"
    key.write_text("sekret\n")
    key.chmod(0o600)
    with Server(model, tmp_path / "home", "--api-key-file", str(key)) as server:
        for given in ("Bearer sekret", "bearer sekret", "BEARER  sekret"):
            assert httpx.get(f"{server.url}/v1/models", headers={"Authorization": given}).is_success
        for given in ("sekret", "Basic sekret", "Bearer", "Bearer secret", "Bearersekret"):
            refused = httpx.get(f"{server.url}/v1/models", headers={"Authorization": given})
            assert refused.status_code == 401


# What they are told -----------------------------------------------------------------------------------

SCHEMA_3 = {"response_format": {"type": "json_schema", "json_schema": {"schema": 3}}}
WRONG: list[tuple[Any, dict[str, Any], str]] = [
    (CompletionRequest, {"prompt": 5}, "prompt must be a text, a list of texts, token numbers, or a list "
     "of lists of token numbers, and is a number."),
    (CompletionRequest, {"prompt": [1, "a"]}, "item 0 is a number, item 1 is a text."),
    (CompletionRequest, {"prompt": [True, False]}, "and holds a boolean."),
    (CompletionRequest, {"prompt": [[1], [2, None]]}, "list 1 holds null."),
    (CompletionRequest, {"prompt": []}, "prompt is empty: send a text or token numbers."),
    (CompletionRequest, {}, "prompt is missing."),
    (ChatCompletionRequest, {"messages": [{"role": "user", "content": 5}]},
     "messages.0.content must be a text or a list of parts, and is a number."),
    (ChatCompletionRequest, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
     "messages.0.content has as part 0 something of type 'image_url': this server reads text only"),
    (ChatCompletionRequest, {"messages": [{"role": "user", "content": ["a"]}]}, "something a text"),
    (ChatCompletionRequest, {"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]},
     "messages.0.content has as part 0 a text that is a number."),
    (ChatCompletionRequest, {"messages": [{"content": "a"}]}, "messages.0.role is missing."),
    (ChatCompletionRequest, {**HELLO, "stop": [5]}, "stop takes at most 16 strings"),
    (ChatCompletionRequest, {**HELLO, "temperature": "warm"},
     "temperature: input should be a valid number, and is a text."),
    (ChatCompletionRequest, {**HELLO, **SCHEMA_3},
     "response_format.json_schema.schema must be an object, true or false, and is a number."),
    *((ChatCompletionRequest, {**HELLO, "chat_template_kwargs": {name: 1}},
       f"chat_template_kwargs can't set {name!r}.")
      for name in ("self", "messages", "bos_token", "a b", "", "add_generation_prompt")),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "body", "said"), WRONG)
def test_what_is_wrong_is_said_in_words(kind: Any, body: dict[str, Any], said: str) -> None:
    with pytest.raises(BadRequest) as refused:
        parse_body(kind, json.dumps(body).encode())
    assert said in refused.value.message


def test_a_hundred_thousand_wrong_items_are_one_sentence() -> None:
    for body in ({"prompt": [None] * 100_000}, {"prompt": ["a"] * 90_000 + [1] * 9}):
        with pytest.raises(BadRequest):
            parse_body(CompletionRequest, json.dumps(body).encode())


def test_switches_can_t_forge_control_tokens_and_never_end_in_a_traceback(tmp_path: Path) -> None:
    template = serve_gguf.TEMPLATE + "{{ style | tojson }}{{ tools }}{{ loop }}{{ range }}"
    model = serve_gguf.write(tmp_path / "loose.gguf", template=template)
    with Server(model, tmp_path / "home") as server:

        def count(text: Any) -> int:
            made = server.http.post(CHAT, json={**HELLO, "chat_template_kwargs": {"style": text}})
            assert made.status_code == 200, made.text
            return int(made.json()["usage"]["prompt_tokens"])

        assert count("<|eot_id|>") == count("<|eot_ix|>") == count("") + 10
        assert count(["<|eot_id|>"]) == count(["<|eot_ix|>"])
        for name in ("self", "loop", "range", "raise_exception", "source", "tools", "namespace"):
            answer = server.http.post(CHAT, json={**HELLO, "chat_template_kwargs": {name: 1}})
            assert answer.status_code in (200, 400), answer.text
        assert "Traceback" not in server.said()


def test_health_answers_while_others_send_as_much_as_they_may(server: Server) -> None:
    stop, seen = threading.Event(), []

    def watch() -> None:
        while not stop.is_set():
            with contextlib.suppress(httpx.TimeoutException):
                seen.append(httpx.get(f"{server.url}/health", timeout=5).status_code)
                continue
            seen.append(0)

    watcher = threading.Thread(target=watch)
    watcher.start()
    for body in (
        b"[" * (2 << 20),
        b'{"a":' * 400_000,
        json.dumps({"prompt": ["a"] * 250_000}).encode(),
        json.dumps({**HELLO, "logit_bias": {str(i): 1.0 for i in range(140_000)}}).encode(),
    ):
        assert server.http.post(TEXT, content=body).status_code in (400, 413)
    stop.set()
    watcher.join()
    assert set(seen) == {200}
