"""Asking a model over HTTP, also one that misbehaves: `pytest tests/test_rig_server_client.py`."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from rig.errors import RigError, WrongUse
from rig.model.chat_template import Message
from rig.model.reply_format import TAUGHT
from rig.server.client import (
    ChatCompletion,
    ContextOverflow,
    ModelClient,
    RequestRefused,
    ServerBusy,
    ServerUnreachable,
)
from support.scripted_http import Say, ScriptedServer, delta, events

HELLO: list[Message] = [{"role": "user", "content": "Hello?"}]


def whole(content: str = "Hi.", **message: Any) -> Say:
    said = {"role": "assistant", "content": content} | message
    usage = {"prompt_tokens": 7, "completion_tokens": 2}
    choice = {"index": 0, "message": said, "finish_reason": "stop"}
    return Say(
        {
            "model": "m",
            "choices": [choice],
            "usage": usage,
            "timings": {"predicted_per_second": 9.5},
        }
    )


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as scripted:
        yield scripted


@pytest.fixture
def client(server: ScriptedServer) -> Iterator[ModelClient]:
    with ModelClient(server.url) as found:
        yield found


def test_an_answer_comes_whole(server: ScriptedServer, client: ModelClient) -> None:
    server.will_chat(whole("4", reasoning_content="2+2"))
    found = client.chat(HELLO, max_tokens=5, temperature=0, seed=None)
    assert (found.text, found.thought, found.finish) == ("4", "2+2", "stop")
    assert (found.prompt_tokens, found.completion_tokens, found.model) == (7, 2, "m")
    assert found.timings == {"predicted_per_second": 9.5}
    assert server.asked[0] == {
        "messages": HELLO,
        "model": "default",
        "max_tokens": 5,
        "temperature": 0,
    }


def test_a_stream_comes_in_pieces_and_is_collected(
    server: ScriptedServer, client: ModelClient
) -> None:
    usage = {"model": "m", "choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}}
    server.will_chat(
        Say([": a comment, as proxies send\n\n", *events(
            delta(reasoning_content="2+"), delta(reasoning_content="2"), delta("4", role="assistant"),
            delta("."), delta(finish="stop"), usage | {"timings": {"predicted_n": 4}},
        )])
    )  # fmt: skip
    answer = ChatCompletion()
    pieces = list(client.stream_chat(HELLO, into=answer))
    assert pieces == [("2+", ""), ("2", ""), ("", "4"), ("", ".")]
    assert (answer.thought, answer.text, answer.finish) == ("2+2", "4.", "stop")
    assert (answer.prompt_tokens, answer.completion_tokens) == (3, 4)
    assert answer.timings == {"predicted_n": 4}
    assert server.asked[0]["stream_options"] == {"include_usage": True}


def test_events_may_be_cut_anywhere_between_two_packets(
    server: ScriptedServer, client: ModelClient
) -> None:
    text = "".join(events(delta("Grüße "), delta("🎴"), delta(finish="stop")))
    server.will_chat(Say([text[n : n + 7] for n in range(0, len(text), 7)]))
    assert "".join(piece for _, piece in client.stream_chat(HELLO)) == "Grüße 🎴"


def test_the_options_become_what_openai_calls_them(
    server: ScriptedServer, client: ModelClient
) -> None:
    server.will_chat(whole())
    schema = {"type": "object"}
    client.chat(HELLO, schema=schema, raw=True, timeout=5.0, stop=["x"])
    body = server.asked[0]
    assert body["response_format"]["json_schema"] == {
        "name": "answer",
        "strict": True,
        "schema": schema,
    }
    assert body["reasoning_format"] == "none"
    assert body["stop"] == ["x"]
    assert not {"schema", "raw", "timeout"} & set(body)


def test_who_asks_and_with_which_key_is_told(server: ScriptedServer) -> None:
    server.will_chat(whole())
    with ModelClient(server.url + "/v1/", api_key="s3cret", priority="bot") as client:
        client.chat(HELLO)
    path, headers, _ = server.history[0]
    assert path == "/v1/chat/completions"
    assert (headers["authorization"], headers["x-rig-priority"]) == ("Bearer s3cret", "bot")


@pytest.mark.parametrize(
    ("say", "kind", "words"),
    [
        (Say({"error": {"message": "queue full"}}, 429), ServerBusy, "busy: queue full"),
        (Say({"error": {"message": "loading"}}, 503), ServerBusy, "busy: loading"),
        (
            Say({"error": {"message": "5000 tokens exceed the context of 4096"}}, 400),
            ContextOverflow,
            "4096",
        ),
        (Say({"error": {"message": "no such field"}}, 400), RequestRefused, "no such field"),
        (Say({"error": {"message": "Wrong key."}}, 401), RequestRefused, "RIG_API_KEY"),
        (Say({"error": "a string, as Ollama sends"}, 400), RequestRefused, "a string, as"),
        (Say({"detail": "a framework's own form"}, 500), RequestRefused, "answered 500"),
        (Say(["<html>a proxy's page</html>"], 502), RequestRefused, "answered 502"),
        (Say(["<html>a router's page</html>"]), RequestRefused, "does not speak"),
        (Say({"choices": []}), RequestRefused, "does not speak"),
        (Say({"choices": None}), RequestRefused, "does not speak"),
        (Say([1, 2]), RequestRefused, "does not speak"),
    ],
)
def test_what_the_server_refuses_becomes_a_sentence(
    server: ScriptedServer, client: ModelClient, say: Say, kind: type[RigError], words: str
) -> None:
    server.will_chat(say)
    with pytest.raises(kind, match=words):
        client.chat(HELLO)


@pytest.mark.parametrize(
    ("say", "kind", "words"),
    [
        (Say({"error": {"message": "queue full"}}, 429), ServerBusy, "queue full"),
        (Say(events({"error": {"message": "the engine fell"}})), RequestRefused, "engine fell"),
        (Say(["data: {half a chunk\n\n"]), RequestRefused, "does not speak"),
        (Say(events(delta("Hel"), done=False), cut=True), ServerUnreachable, "broke off"),
        (Say(events(delta("Hel"), done=False)), ServerUnreachable, "middle of the answer"),
    ],
)
def test_a_stream_that_fails_becomes_a_sentence(
    server: ScriptedServer, client: ModelClient, say: Say, kind: type[RigError], words: str
) -> None:
    server.will_chat(say)
    with pytest.raises(kind, match=words):
        list(client.stream_chat(HELLO))


def test_a_stream_without_a_reason_but_with_an_end_is_whole(
    server: ScriptedServer, client: ModelClient
) -> None:
    server.will_chat(Say(events(delta("Hi"))))
    assert list(client.stream_chat(HELLO)) == [("", "Hi")]


@pytest.mark.parametrize(
    ("advice", "seconds"),
    [("7", 7.0), ("Fri, 13 Nov 2026 10:00:00 GMT", 1.0), ("", 1.0)],
    ids=["seconds", "a date, as proxies send", "nothing"],
)
def test_busy_says_when_to_come_back(
    server: ScriptedServer, client: ModelClient, advice: str, seconds: float
) -> None:
    server.will_chat(Say({}, 503, {"retry-after": advice} if advice else {}))
    with pytest.raises(ServerBusy) as caught:
        client.chat(HELLO)
    assert caught.value.retry_after == seconds


def test_nothing_listens_and_the_sentence_says_how_to_start() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: refused at once
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with ModelClient(url) as client:
            assert not client.is_ready()
            with pytest.raises(ServerUnreachable, match="rig serve MODEL"):
                client.chat(HELLO)


@pytest.mark.parametrize("url", ["http://[::1", "http://host:port", "http://ho st"])
def test_what_is_no_address_is_wrong_use(url: str) -> None:
    with pytest.raises((WrongUse, ServerUnreachable), match=r"address|answers|connection"):
        ModelClient(url).chat(HELLO)


def test_a_silent_server_ends_in_a_sentence_and_not_in_waiting(
    server: ScriptedServer, client: ModelClient
) -> None:
    server.will_chat(Say(events(delta("a")), pause=5))
    begun = time.monotonic()
    with pytest.raises(ServerUnreachable, match="in time"):
        list(client.stream_chat(HELLO, timeout=0.2))
    assert time.monotonic() - begun < 4


def test_leaving_a_stream_tells_the_server(server: ScriptedServer, client: ModelClient) -> None:
    server.will_chat(Say(events(*[delta(str(n)) for n in range(500)]), pause=0.01))
    stream = client.stream_chat(HELLO)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert server.gone.wait(5)


def test_a_proxy_of_the_environment_is_not_asked_for_this_machines_ports(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    server.will_chat(whole())
    with ModelClient(server.url) as client:
        assert client.is_ready()
        assert client.chat(HELLO).text == "Hi."


def test_a_server_of_many_models_is_asked_for_the_named_one(server: ScriptedServer) -> None:
    server.will_chat(whole())
    rows = [{"id": "a"}, {"id": "b", "meta": {"n_ctx": 99}}]
    server.will_say("/v1/models", Say({"data": rows}))
    with ModelClient(server.url, model="b") as client:
        client.chat(HELLO)
        assert (client.model, client.context_length) == ("b", 99)
    assert server.asked[0]["model"] == "b"


def test_a_server_that_knows_no_default_is_asked_for_its_first(
    server: ScriptedServer, client: ModelClient
) -> None:
    server.will_chat(Say({"error": {"message": 'model "default" not found'}}, 404), whole())
    server.will_say("/v1/models", Say({"data": [{"id": "llama3.1"}]}))
    assert client.chat(HELLO).text == "Hi."
    assert client.chat(HELLO).text == "Hi."
    assert [body["model"] for body in server.asked] == ["default", "llama3.1", "llama3.1"]


def test_a_server_without_any_model_is_asked_twice_and_no_more(
    server: ScriptedServer, client: ModelClient
) -> None:
    server.will_chat(Say({"error": {"message": "model not found"}}, 404))
    server.will_say("/v1/models", Say({"data": []}))
    with pytest.raises(RequestRefused, match="model not found"):
        client.chat(HELLO)
    assert len(server.asked) == 2


def test_what_the_server_knows_of_its_model_is_read(
    server: ScriptedServer, client: ModelClient
) -> None:
    card = {"id": "toy", "meta": {"n_ctx": 2048, "n_ctx_train": 4096}, "rig": TAUGHT.to_metadata()}
    server.will_say("/v1/models", Say({"data": [card]}))
    assert (client.model, client.context_length, client.reply_format) == ("toy", 2048, TAUGHT)
    assert len(server.history) == 1, "asked once"


@pytest.mark.parametrize("say", [Say({"data": [{"id": "m"}]}), Say({"detail": "Not Found"}, 404)])
def test_a_server_that_knows_less_is_done_without(
    server: ScriptedServer, client: ModelClient, say: Say
) -> None:
    server.will_say("/v1/models", say)
    assert (client.context_length, client.reply_format.reasoning_open) == (None, "")
    assert client.count_chat_tokens(HELLO) is None
    assert client.count_text_tokens("Hi") is None


def test_tokens_are_counted_in_the_models_own_template(
    server: ScriptedServer, client: ModelClient
) -> None:
    server.will_say("/apply-template", Say({"prompt": "<user>Hello?"}))
    server.will_say("/tokenize", Say({"tokens": [1, 2, 3]}))
    assert client.count_chat_tokens(HELLO) == 3
    assert server.history[-1][2] == {
        "content": "<user>Hello?", "add_special": False, "parse_special": True
    }  # fmt: skip


@pytest.mark.parametrize(
    ("status", "healthy"), [(200, True), (404, True), (503, False), (500, False)]
)
def test_a_server_that_is_loading_is_not_healthy(
    server: ScriptedServer, client: ModelClient, status: int, healthy: bool
) -> None:
    server.will_say("/health", Say({}, status))
    assert client.is_ready() is healthy
