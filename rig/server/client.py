"""Ask a model over HTTP: any OpenAI-compatible server, `rig serve` best of all.

What only `rig serve` and llama-server know (exact token counts, context length, the contract) is asked
for and done without where a server lacks it. Nothing here starts a server: see `rig.server.connect`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from rig.errors import RigError, WrongUse
from rig.model.chat_template import Message
from rig.model.reply_format import ReplyFormat

DEFAULT = "default"
"""The name of the model when none is asked for; `rig serve` and llama-server answer to any name."""


class ServerUnreachable(RigError):
    """Nothing answers at the address."""


class ServerBusy(RigError):
    """The server's queue is full; `retry_after` seconds is its own advice."""

    retry_after: float = 1.0


class ContextOverflow(RigError):
    """The prompt and the asked-for tokens do not fit the context."""


class RequestRefused(RigError):
    """The server answered with an error that asking again will not mend."""


@dataclass
class ChatCompletion:
    """One reply, whole; while it streams, what has come so far."""

    text: str = ""
    """The answer, without the thought (raw text where `raw` was asked for)."""
    thought: str = ""
    finish: str | None = None
    """`stop`, `length`, or None while it streams."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    model: str = ""
    timings: dict[str, Any] = field(default_factory=dict)
    """The server's own figures, such as `prompt_per_second` and `predicted_per_second`."""


class ModelClient:
    """One server at `url` (with or without `/v1`); `timeout` is seconds without any byte.

    `model` is the name to ask for where a server has several; without it, its first one answers.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout: float = 600.0,
        priority: str = "person",
        model: str | None = None,
    ) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self._named = model
        headers = {"X-Rig-Priority": priority, "X-Rig-Max-Tokens": "exact"}
        if api_key:
            headers["Authorization"] = f"Bearer {api_key}"
        try:
            address = httpx.URL(self.url)
            here = address.host in ("localhost", "127.0.0.1", "::1")
            self._http = httpx.Client(
                base_url=self.url,
                headers=headers,
                timeout=httpx.Timeout(timeout, connect=5.0),
                trust_env=not here,  # a proxy of the environment does not know this machine's ports
                verify=not here or address.scheme == "https",  # loading certificates takes 30 ms
            )
        except httpx.InvalidURL as error:
            raise WrongUse(f"{url!r} is not an address ({error}).") from None
        self._model_info: dict[str, Any] | None = None

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> ModelClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def chat(self, messages: list[Message], **options: Any) -> ChatCompletion:
        """Return one whole answer; options as in `stream`."""
        with self._open(messages, options) as response:
            response.read()
            found = response.json()
            choice = found["choices"][0]
            usage = found.get("usage") or {}
            return ChatCompletion(
                text=choice["message"].get("content") or "",
                thought=choice["message"].get("reasoning_content") or "",
                finish=choice.get("finish_reason"),
                prompt_tokens=usage.get("prompt_tokens", 0),
                completion_tokens=usage.get("completion_tokens", 0),
                model=found.get("model", ""),
                timings=found.get("timings") or {},
            )

    def stream_chat(
        self, messages: list[Message], into: ChatCompletion | None = None, **options: Any
    ) -> Iterator[tuple[str, str]]:
        """Yield (thought, text) pieces as they come; `into` collects the whole and the figures.

        Options: `max_tokens`, `temperature` (0 = greedy), `top_p`, `seed`, `stop`, `schema` (a JSON
        schema the text must match), `raw` (leave the taught tags in the text), `timeout` in seconds
        without a byte, and anything else the server knows.
        """
        answer = into if into is not None else ChatCompletion()
        wanted = {"stream": True, "stream_options": {"include_usage": True}}
        ended = False
        with self._open(messages, options | wanted) as response:
            for line in response.iter_lines():
                data = line.removeprefix("data:").strip()
                if not line.startswith("data:") or data == "[DONE]":
                    ended = ended or bool(data == "[DONE]")
                    continue
                chunk = json.loads(data)
                if "error" in chunk:
                    raise RequestRefused(_message(chunk))
                answer.model = chunk.get("model", answer.model)
                answer.timings = chunk.get("timings") or answer.timings
                if usage := chunk.get("usage"):
                    answer.prompt_tokens = usage.get("prompt_tokens", 0)
                    answer.completion_tokens = usage.get("completion_tokens", 0)
                for choice in chunk.get("choices", []):
                    answer.finish = choice.get("finish_reason") or answer.finish
                    delta = choice.get("delta") or {}
                    thought, text = delta.get("reasoning_content") or "", delta.get("content") or ""
                    answer.thought += thought
                    answer.text += text
                    if thought or text:
                        yield thought, text
        if answer.finish is None and not ended:
            raise ServerUnreachable(f"{self.url} broke off in the middle of the answer: ask again.")

    def model_info(self) -> dict[str, Any]:
        """What the server says of its model (`/v1/models`, first entry); asked once.

        Empty where a server has no such page.
        """
        if self._model_info is None:
            with self._errors():
                response = self._http.get("/v1/models")
                if response.status_code == 404:
                    self._model_info = {}
                    return self._model_info
                _check(response)
                listed = response.json().get("data") or [{}]
                named = [row for row in listed if row.get("id") == self._named]
                self._model_info = dict((named or listed)[0])
        return self._model_info

    @property
    def model(self) -> str:
        """The name of the model that answers."""
        return self._named or str(self.model_info().get("id", ""))

    @property
    def context_length(self) -> int | None:
        """Tokens that fit prompt and answer together; None where the server does not say."""
        meta = self.model_info().get("meta") or {}
        found = meta.get("n_ctx") or meta.get("n_ctx_train")
        return int(found) if found else None

    @property
    def reply_format(self) -> ReplyFormat:
        """The contract the model was taught; plain where the server knows none."""
        return ReplyFormat.from_metadata(self.model_info().get("rig") or {})

    def count_chat_tokens(self, messages: list[Message]) -> int | None:
        """Tokens of `messages` in the model's own template, or None where the server can't tell."""
        with self._errors():
            rendered = self._http.post("/apply-template", json={"messages": messages})
            if rendered.is_error:
                return None
            prompt = rendered.json()["prompt"]
        return self.count_text_tokens(prompt, special=True)

    def count_text_tokens(self, text: str, *, special: bool = False) -> int | None:
        """Tokens of bare `text`; `special` reads control tokens such as <|eot_id|> as one token."""
        body = {"content": text, "add_special": False, "parse_special": special}
        with self._errors():
            response = self._http.post("/tokenize", json=body)
            return None if response.is_error else len(response.json()["tokens"])

    def is_ready(self) -> bool:
        """Whether a server answers and its model is ready."""
        try:
            return self._http.get("/health", timeout=2.0).status_code in (200, 404)
        except httpx.HTTPError:
            return False

    @contextmanager
    def _open(self, messages: list[Message], options: dict[str, Any]) -> Iterator[httpx.Response]:
        """The answer to a chat request, good and not yet read; anything else is raised.

        A server of many models that knows no `default` is asked once more, for its first one.
        """
        path, patience = "/v1/chat/completions", _patience(options)
        with self._errors():
            for last in (False, True):
                body = _body(messages, options, self._named)
                with self._http.stream("POST", path, json=body, **patience) as response:
                    if response.is_error:
                        response.read()
                        if not last and body["model"] == DEFAULT and _unknown_model(response):
                            self._named = self._first_model()
                            continue
                    _check(response)
                    yield response
                    return

    def _first_model(self) -> str | None:
        response = self._http.get("/v1/models")
        listed = [] if response.is_error else response.json().get("data", [])
        return str(listed[0]["id"]) if listed else None

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except httpx.ConnectError as error:
            raise ServerUnreachable(
                f"Nothing answers at {self.url}: start a model with `rig serve MODEL`."
            ) from error
        except httpx.TimeoutException as error:
            raise ServerUnreachable(
                f"{self.url} did not answer in time: is the box overloaded?"
            ) from error
        except httpx.HTTPError as error:
            raise ServerUnreachable(f"{self.url} broke off the connection ({error}).") from error
        except (KeyError, IndexError, ValueError, TypeError, AttributeError) as error:
            raise RequestRefused(
                f"{self.url} does not speak the OpenAI form ({error!r})."
            ) from error


def _patience(options: dict[str, Any]) -> dict[str, Any]:
    """The `timeout` of one request, as httpx wants it; that of the client when none is given."""
    seconds = options.get("timeout")
    return {} if seconds is None else {"timeout": httpx.Timeout(seconds, connect=5.0)}


def _body(messages: list[Message], options: dict[str, Any], model: str | None) -> dict[str, Any]:
    body = {"messages": messages, **{k: v for k, v in options.items() if v is not None}}
    body.pop("timeout", None)
    if (schema := body.pop("schema", None)) is not None:
        body["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "answer", "strict": True, "schema": schema},
        }
    if body.pop("raw", False):
        body["reasoning_format"] = "none"
    body.setdefault("model", model or DEFAULT)
    return body


def _unknown_model(response: httpx.Response) -> bool:
    return response.status_code in (400, 404) and "model" in response.text


def _check(response: httpx.Response) -> None:
    if not response.is_error:
        return
    try:
        found = response.json()
    except ValueError:
        found = {}
    message = _message(found) or f"the server answered {response.status_code}"
    if response.status_code in (429, 503):
        busy = ServerBusy(f"The model is busy: {message}")
        advice = response.headers.get("retry-after", "")
        busy.retry_after = (
            float(advice) if advice.isdigit() else 1.0
        )  # else a date: not from a model
        raise busy
    if "context" in message and response.status_code == 400:
        raise ContextOverflow(message)
    if response.status_code in (401, 403):
        raise RequestRefused(f"{message} Set the key with RIG_API_KEY.")
    raise RequestRefused(message)


def _message(body: Any) -> str:
    error = body.get("error") if isinstance(body, dict) else None
    return str(error.get("message", "")) if isinstance(error, dict) else str(error or "")
