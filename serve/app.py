"""The HTTP side: OpenAI's endpoints, llama-server's small ones, health and metrics.

Starlette and uvicorn; the model lives in another process (`engine_host`), so this one stays small and
answers even while the model is loaded, unloaded, or has died.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from rig.errors import RigError
from rig.speech import PLAIN, Speech
from serve import app_forms as forms
from serve.app_guard import Guard, error_body
from serve.app_replies import Broken, Choice, Piece, Plan, Replies, event, pieces, whole
from serve.engine_host import EngineDown, EngineHost, Refused
from serve.idle import Idle
from serve.metrics import Metrics
from serve.queue import Full, Queue
from serve.template import Template, TemplateError

BEAT_SECONDS = 10.0
"""A stream that has nothing to say sends a comment this often, so that nobody takes it for dead."""
THINK = Speech(reasoning_open="<think>", reasoning_close="</think>")
"""How models that were taught elsewhere usually mark their thoughts."""


@dataclass(frozen=True)
class AppSettings:
    """How the HTTP side behaves; sizes in bytes, times in seconds."""

    name: str
    """What the model is called."""
    parallel: int = 4
    waiting: int = 64
    """Requests that may wait for a place."""
    api_key: str | None = None
    hosts: tuple[str, ...] = ()
    body_limit: int = 8 << 20
    time_limit: float = 1800.0
    """The longest a request may take, waiting included."""
    add_system: bool = True
    """Whether the taught system prompt is added to conversations that bring none."""
    adapters: tuple[str, ...] = ()
    """Names of the LoRA adapters, in the order in which they were loaded."""


class App:
    """The endpoints of one server; `asgi` is what uvicorn runs."""

    def __init__(self, host: EngineHost, settings: AppSettings, idle: Idle) -> None:
        self._host = host
        self.settings = settings
        self.idle = idle
        """Told of each request that needs the model; who unloads it asks there."""
        self._queue = Queue(settings.parallel, settings.waiting)
        self.replies = Replies(host, self._queue)
        self.metrics = Metrics(self._look)
        self._started = int(time.time())
        self._template: Template | None = None
        routes = [
            Route("/", self._root, methods=["GET"]),
            Route("/health", self._health, methods=["GET"]),
            Route("/v1/health", self._health, methods=["GET"]),
            Route("/metrics", self._metrics, methods=["GET"]),
            Route("/v1/models", self._models, methods=["GET"]),
            Route("/v1/models/{name:path}", self._models, methods=["GET"]),
            Route("/v1/chat/completions", Reply(self, self._chat), methods=["POST"]),
            Route("/v1/completions", Reply(self, self._completion), methods=["POST"]),
            Route("/tokenize", self._used(self._tokenize), methods=["POST"]),
            Route("/detokenize", self._used(self._detokenize), methods=["POST"]),
            Route("/apply-template", self._used(self._apply_template), methods=["POST"]),
        ]
        handlers: dict[Any, Any] = {
            HTTPException: self._http_error,
            RigError: self._rig_error,
            TimeoutError: self._rig_error,
            Exception: self._bug,
        }
        self._app = Starlette(routes=routes, exception_handlers=handlers)
        self.asgi: ASGIApp = Guard(
            self._app, hosts=settings.hosts, api_key=settings.api_key, limit=settings.body_limit
        )

    # The small endpoints ----------------------------------------------------------------------

    async def _root(self, _: Request) -> Response:
        return PlainTextResponse(
            f"rig serve: {self.settings.name}\n"
            "POST /v1/chat/completions  POST /v1/completions  GET /v1/models\n"
            "POST /tokenize  POST /detokenize  POST /apply-template  GET /health  GET /metrics\n"
        )

    async def _health(self, _: Request) -> Response:
        if self._host.failure:
            return JSONResponse(error_body(503, self._host.failure), 503)
        if self._host.card is None:
            return JSONResponse(error_body(503, "Loading model"), 503, {"Retry-After": "1"})
        return JSONResponse({"status": "ok", "loaded": self._host.loaded})

    async def _metrics(self, _: Request) -> Response:
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def _models(self, request: Request) -> Response:
        card = await self.card()
        meta = {k: card[k] for k in ("n_ctx", "n_ctx_train", "n_vocab", "n_params", "size")}
        base = {"object": "model", "created": self._started, "owned_by": "rig"}
        entry = {"id": self.settings.name, **base, "meta": meta, "rig": rig_keys(card)}
        entries = [entry, *({"id": name, **base} for name in self.settings.adapters)]
        wanted = request.path_params.get("name")
        if wanted is None:
            return JSONResponse({"object": "list", "data": entries})
        for found in entries:
            if found["id"] == wanted:
                return JSONResponse(found)
        raise forms.BadRequest(f"There is no model {wanted[:100]!r} here.", 404)

    async def _tokenize(self, request: Request) -> Response:
        form = forms.read(forms.Tokenize, await request.body())
        found = await self._host.ask(
            "tokenize", parts=[[form.content, form.parse_special]], add_special=form.add_special
        )
        tokens: list[Any] = found["tokens"]
        if form.with_pieces:
            both = zip(tokens, found["pieces"], strict=True)
            tokens = [{"id": token, "piece": piece} for token, piece in both]
        return JSONResponse({"tokens": tokens})

    async def _detokenize(self, request: Request) -> Response:
        form = forms.read(forms.Detokenize, await request.body())
        return JSONResponse(
            {"content": (await self._host.ask("detokenize", tokens=form.tokens))["content"]}
        )

    async def _apply_template(self, request: Request) -> Response:
        form = forms.read(forms.ApplyTemplate, await request.body())
        parts, _ = await self._prompt(form.messages, form.chat_template_kwargs)
        return JSONResponse({"prompt": "".join(text for text, _ in parts)})

    # Completions ------------------------------------------------------------------------------

    async def _chat(self, request: Request) -> Plan:
        form = forms.read(forms.Chat, await request.body())
        if form.tools or form.functions:
            raise forms.BadRequest(
                "This server calls no tools: leave tools out, or ask for JSON with response_format.",
                param="tools",
            )
        parts, taught = await self._prompt(form.messages, form.chat_template_kwargs)
        speech = self._speech() if form.reasoning_format != "none" else PLAIN
        prompt = "".join(text for text, _ in parts)
        opened = bool(speech.reasoning_open) and prompt.rstrip().endswith(speech.reasoning_open)
        card = await self.card()
        begins = bool(card["bos"]) and prompt.startswith(card["bos"])
        grammar = form.schema_asked()
        if grammar and "schema" in grammar and speech.reasoning_open and (taught or opened):
            tags = ("reasoning_open", "reasoning_close", "answer_open", "answer_close")
            grammar["thought"] = {
                name.removeprefix("reasoning_"): getattr(speech, name) for name in tags
            }
            grammar["thought"]["opened"] = opened
        asked = self._asked(form, form.max_completion_tokens or form.max_tokens)
        asked |= {
            "prompt": parts,
            "add_special": not begins,
            "grammar": grammar,
            "logprobs": form.logprobs_asked(),
            "urgent": self._urgent(request),
        }
        return self._plan("chat.completion", form, request, [asked], speech, opened)

    async def _completion(self, request: Request) -> Plan:
        form = forms.read(forms.Completion, await request.body())
        if form.echo or form.suffix or (form.best_of or 1) > (form.n or 1):
            raise forms.BadRequest("echo, suffix and best_of are not offered: leave them out.")
        await self.card()
        base = self._asked(form, form.max_tokens) | {
            "grammar": form.schema_asked(),
            "logprobs": form.logprobs_asked(),
            "urgent": self._urgent(request),
        }
        prompts = form.prompts()
        asked = [
            base | {"prompt": p, "add_special": not isinstance((p or [0])[0], int)} for p in prompts
        ]
        return self._plan("text_completion", form, request, asked, PLAIN, False)

    def _plan(
        self,
        kind: str,
        form: forms.Common,
        request: Request,
        asked: list[dict[str, Any]],
        speech: Speech,
        opened: bool,
    ) -> Plan:
        options = form.stream_options
        wants_usage = options.include_usage if options else False
        return Plan(
            kind=kind,
            model=self.settings.name,
            asked=[_nth(one, i) for one in asked for i in range(form.n or 1)],
            speech=speech,
            opened=opened,
            urgent=self._urgent(request),
            stream=bool(form.stream),
            include_usage=wants_usage,
            logprobs=asked[0]["logprobs"] is not None,
        )

    def _asked(self, form: forms.Common, max_tokens: int | None) -> dict[str, Any]:
        chosen = [(lora.id, lora.scale) for lora in form.lora or ()]
        if form.model in self.settings.adapters and form.lora is None:
            chosen = [(self.settings.adapters.index(form.model), 1.0)]
        n = len(self.settings.adapters)
        if wrong := next((id for id, _ in chosen if not 0 <= id < n), None):
            raise forms.BadRequest(f"There is no adapter {wrong}: {n} are loaded.", param="lora")
        return {
            "max_tokens": max_tokens,
            "sampling": form.sampling(),
            "stops": form.stops(),
            "endless": form.ignore_eos,
            "adapters": sorted(chosen),
        }

    def _urgent(self, request: Request) -> bool:
        given = request.headers.get("x-rig-priority", "person")
        if given not in ("person", "bot"):
            raise forms.BadRequest("X-Rig-Priority is person or bot.")
        return given == "person"

    async def _prompt(
        self, messages: list[forms.Message], switches: dict[str, Any] | None
    ) -> tuple[list[Any], bool]:
        """The prompt's parts, and whether it tells the model to speak as it was taught."""
        template = await self._chat_template()
        speech = self._speech()
        plain = [message.plain() for message in messages]
        given = [message["content"] for message in plain if message["role"] == "system"]
        if not given and self.settings.add_system and speech.system_prompt:
            plain.insert(0, {"role": "system", "content": speech.system_prompt})
            given = [speech.system_prompt]
        # an empty one says: none, not even the taught one
        plain = [m for m in plain if m["role"] != "system" or m["content"]]
        taught = bool(speech.system_prompt) and any(speech.system_prompt in text for text in given)
        taken = {"messages", "add_generation_prompt", "bos_token", "eos_token"}
        if wrong := sorted(taken & set(switches or {})):
            raise forms.BadRequest(f"chat_template_kwargs can't set {wrong[0]!r}.")
        return template.render(plain, **(switches or {})), taught

    # The model --------------------------------------------------------------------------------

    async def card(self) -> dict[str, Any]:
        """What the engine said of its model; waits for the first load."""
        if self._host.card is None:
            await self._host.load()
        assert self._host.card is not None
        return self._host.card

    async def _chat_template(self) -> Template:
        card = await self.card()
        if self._template is None:
            if not card["chat_template"]:
                raise forms.BadRequest(
                    f"{self.settings.name} has no chat template: use /v1/completions."
                )
            self._template = Template(
                card["chat_template"], bos=card["bos"], eos=card["eos"], control=card["control"]
            )
        return self._template

    def _speech(self) -> Speech:
        card = self._host.card or {}
        speech = Speech.from_metadata(card.get("metadata", {}))
        if speech == PLAIN and "<think>" in (card.get("chat_template") or ""):
            return THINK
        return speech

    def _look(self) -> dict[str, tuple[str, float]]:
        return {
            "waiting": ("Requests that wait for a place.", self._queue.waiting),
            "working": ("Requests that are written.", self._queue.working),
            "resting": ("Requests of bots that rest for a person.", self._queue.resting),
            "loaded": ("Whether the model is in memory.", float(self._host.loaded)),
            "loads": ("How often the model was loaded.", self._host.loads),
            "load_seconds": ("How long the last load took.", self._host.load_seconds),
            "crashes": ("How often the model process died.", self._host.crashes),
        }

    def _used(
        self, endpoint: Callable[[Request], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        async def wrapped(request: Request) -> Response:
            with self.idle.busy():
                return await endpoint(request)

        return wrapped

    # Errors -----------------------------------------------------------------------------------

    async def _http_error(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = f"{request.method} {request.url.path[:200]}: {error.detail}."
        return JSONResponse(error_body(error.status_code, message), error.status_code)

    async def _rig_error(self, _: Request, error: Exception) -> Response:
        status, message, headers = self.describe(error)
        return JSONResponse(
            error_body(status, message, getattr(error, "param", None)), status, headers
        )

    async def _bug(self, request: Request, _: Exception) -> Response:
        message = f"{request.method} {request.url.path[:200]} failed: the server's log says why."
        return JSONResponse(error_body(500, message), 500)

    def describe(self, error: Exception) -> tuple[int, str, dict[str, str]]:
        """Status, sentence and headers for what went wrong."""
        match error:
            case forms.BadRequest():
                status, headers = error.status, {}
            case Full():
                status, headers = 429, {"Retry-After": str(error.retry_after)}
            case EngineDown():
                status, headers = 503, {"Retry-After": "5"}
            case Broken():
                status, headers = 500, {}
            case Refused() | TemplateError():
                status, headers = 400, {}
            case TimeoutError():
                status, headers = 503, {"Retry-After": "30"}
            case _:
                raise error
        if isinstance(error, RigError):
            message = error.message
        else:
            message = f"The request took longer than {self.settings.time_limit:.0f} s."
        self.metrics.refused.labels(str(status)).inc()
        return status, message, headers


class Reply:
    """The two completion endpoints as a bare ASGI application: it must notice who goes away."""

    def __init__(self, app: App, plan: Callable[[Request], Awaitable[Plan]]) -> None:
        self._app = app
        self._plan = plan

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        request = Request(scope, receive)
        plan = await self._plan(request)
        with self._app.idle.busy():
            work = asyncio.create_task(self._answer(plan, send))
            watch = asyncio.create_task(_gone(receive))
            try:
                await asyncio.wait({work, watch}, return_when="FIRST_COMPLETED")
                if work.done():
                    await work
            finally:
                work.cancel()
                watch.cancel()
                await asyncio.gather(work, watch, return_exceptions=True)

    async def _answer(self, plan: Plan, send: Send) -> None:
        began = time.monotonic()
        choices: dict[int, Choice] = {}
        line = Line(send)
        replies = self._app.replies.run(plan)
        try:
            async with asyncio.timeout(self._app.settings.time_limit):
                if plan.stream:
                    await self._stream(plan, _noting(replies, choices), line)
                else:
                    async for _ in _noting(replies, choices):
                        pass
            if not plan.stream:
                await line.whole(whole(plan, [choices[i] for i in sorted(choices)]))
        except (RigError, TimeoutError) as error:
            if not line.started:
                raise
            status, message, _ = self._app.describe(error)
            await line.piece(event(error_body(status, message)))
            await line.end()
        finally:
            await replies.aclose()
            self._count(plan, choices, began)

    async def _stream(self, plan: Plan, replies: Any, line: Line) -> None:
        beat = asyncio.create_task(line.beat())
        try:
            async with contextlib.aclosing(pieces(plan, replies)) as stream:
                async for piece in stream:
                    await line.piece(piece)
        finally:
            beat.cancel()
            await asyncio.gather(beat, return_exceptions=True)
        await line.end()

    def _count(self, plan: Plan, choices: dict[int, Choice], began: float) -> None:
        metrics = self._app.metrics
        priority = "person" if plan.urgent else "bot"
        for index in range(len(plan.asked)):
            choice = choices.get(index)
            finish = choice.finish if choice else None
            metrics.requests.labels(finish or "cancelled", priority).inc()
            if choice is not None:
                metrics.note(choice.timings)
                if choice.first_at:
                    metrics.first.observe(choice.first_at - began)
        metrics.whole.observe(time.monotonic() - began)


async def _noting(
    replies: AsyncIterator[Piece], choices: dict[int, Choice]
) -> AsyncGenerator[Piece]:
    async for piece in replies:
        choices[piece.choice.index] = piece.choice
        yield piece


async def _gone(receive: Receive) -> None:
    """Return when the client has gone away."""
    while (await receive())["type"] != "http.disconnect":
        pass


class Line:
    """The way back to the client; `started` once the status is out and can't be changed."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.started = False
        self._spoke = time.monotonic()

    async def _start(self, kind: bytes, length: int | None = None) -> None:
        self.started = True
        headers = [(b"content-type", kind), (b"cache-control", b"no-store")]
        if length is not None:
            headers.append((b"content-length", str(length).encode()))
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    async def whole(self, body: dict[str, Any]) -> None:
        """Send one JSON object and be done."""
        data = json.dumps(body).encode()
        await self._start(b"application/json", len(data))
        await self._send({"type": "http.response.body", "body": data})

    async def piece(self, data: bytes) -> None:
        """Send the next piece of a stream."""
        if not self.started:
            await self._start(b"text/event-stream")
        self._spoke = time.monotonic()
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def beat(self) -> None:
        """Send a comment whenever there was nothing to say for a while."""
        while True:
            quiet = time.monotonic() - self._spoke
            if quiet >= BEAT_SECONDS:
                await self.piece(b": waiting\n\n")
            else:
                await asyncio.sleep(BEAT_SECONDS - quiet)

    async def end(self) -> None:
        """Send the end of a stream."""
        await self._send({"type": "http.response.body", "body": b""})


def rig_keys(card: dict[str, Any]) -> dict[str, str]:
    """The contract that travels in the model's metadata."""
    return Speech.from_metadata(card["metadata"]).metadata()


def _nth(asked: dict[str, Any], n: int) -> dict[str, Any]:
    """The same request for the n-th choice: with a seed, each choice has one of its own."""
    seed = asked["sampling"].get("seed")
    if seed is None or n == 0:
        return asked
    return asked | {"sampling": asked["sampling"] | {"seed": (seed + n) & 0xFFFFFFFF}}
