"""The HTTP side: OpenAI's endpoints, llama-server's small ones, health and metrics.

Starlette and uvicorn; the model lives in another process (`supervisor`), so this one stays small and
answers even while the model is loaded, unloaded, or has died.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from rig.errors import RigError
from rig.model.reply_format import ReplyFormat
from serve.api import protocol as forms
from serve.api.admission import AdmissionQueue, QueueFull
from serve.api.body import BadRequest, parse_body
from serve.api.endpoint import CompletionEndpoint
from serve.api.idle import IdleTimer
from serve.api.metrics import ServerMetrics
from serve.api.middleware import RequestGuard, error_body
from serve.api.requests import RequestPlanner
from serve.api.responses import CompletionRunner, ReplyFailed
from serve.config import ServerConfig
from serve.engine.supervisor import EngineDown, EngineRefused, EngineSupervisor
from serve.workbench.sizes import TooLong


class App:
    """The endpoints of one server; `asgi` is what uvicorn runs."""

    def __init__(self, host: EngineSupervisor, settings: ServerConfig, idle: IdleTimer) -> None:
        self._host = host
        self.config = settings
        self.idle = idle
        """Told of each request that needs the model; who unloads it asks there."""
        self._queue = AdmissionQueue(settings.parallel, settings.waiting)
        self.runner = CompletionRunner(host, self._queue)
        self.metrics = ServerMetrics(self._look)
        self._started = int(time.time())
        self.planner = RequestPlanner(host, self._queue, settings)
        routes = [
            Route("/", self._root, methods=["GET"]),
            Route("/health", self._health, methods=["GET"]),
            Route("/v1/health", self._health, methods=["GET"]),
            Route("/metrics", self._metrics, methods=["GET"]),
            Route("/v1/models", self._models, methods=["GET"]),
            Route("/v1/models/{name:path}", self._models, methods=["GET"]),
            Route(
                "/v1/chat/completions",
                CompletionEndpoint(self, self.planner.plan_chat),
                methods=["POST"],
            ),
            Route(
                "/v1/completions",
                CompletionEndpoint(self, self.planner.plan_completion),
                methods=["POST"],
            ),
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
        self.asgi: ASGIApp = RequestGuard(
            self._app, hosts=settings.hosts, api_key=settings.api_key, limit=settings.body_limit
        )

    @property
    def time_limit(self) -> float:
        """Seconds that a request may take, waiting included."""
        return self.config.time_limit

    # The small endpoints ----------------------------------------------------------------------

    async def _root(self, _: Request) -> Response:
        return PlainTextResponse(
            f"rig serve: {self.config.name}\n"
            "POST /v1/chat/completions  POST /v1/completions  GET /v1/models\n"
            "POST /tokenize  POST /detokenize  POST /apply-template  GET /health  GET /metrics\n"
        )

    async def _health(self, _: Request) -> Response:
        if self._host.failure:
            return JSONResponse(error_body(503, self._host.failure), 503)
        if self._host.model_info is None:
            return JSONResponse(error_body(503, "Loading model"), 503, {"Retry-After": "1"})
        return JSONResponse({"status": "ok", "loaded": self._host.is_loaded})

    async def _metrics(self, _: Request) -> Response:
        return Response(
            self.metrics.prometheus_text(), media_type="text/plain; version=0.0.4; charset=utf-8"
        )

    async def _models(self, request: Request) -> Response:
        card = await self.planner.model_info()
        meta = {k: card[k] for k in ("n_ctx", "n_ctx_train", "n_vocab", "n_params", "size")}
        meta["fingerprint"] = self.config.fingerprint
        base = {"object": "model", "created": self._started, "owned_by": "rig"}
        entry = {"id": self.config.name, **base, "meta": meta, "rig": rig_keys(card)}
        entries = [entry, *({"id": name, **base} for name in self.config.adapters)]
        wanted = request.path_params.get("name")
        if wanted is None:
            return JSONResponse({"object": "list", "data": entries})
        for found in entries:
            if found["id"] == wanted:
                return JSONResponse(found)
        raise BadRequest(f"There is no model {wanted[:100]!r} here.", 404)

    async def _tokenize(self, request: Request) -> Response:
        form = parse_body(forms.TokenizeRequest, await request.body())
        found = await self._host.ask_engine(
            "tokenize",
            text=form.content,
            special=form.parse_special,
            add_special=form.add_special,
            pieces=form.with_pieces,
        )
        return Response(found["body"], media_type="application/json")

    async def _detokenize(self, request: Request) -> Response:
        form = parse_body(forms.DetokenizeRequest, await request.body())
        return JSONResponse(
            {"content": (await self._host.ask_engine("detokenize", tokens=form.tokens))["content"]}
        )

    async def _apply_template(self, request: Request) -> Response:
        form = parse_body(forms.ApplyTemplateRequest, await request.body())
        prompt = await self.planner.render_prompt(form)
        return JSONResponse({"prompt": prompt})

    def _look(self) -> dict[str, tuple[str, float]]:
        return {
            "waiting": ("Requests that wait for a place.", self._queue.num_waiting),
            "working": ("Requests that are written.", self._queue.num_working),
            "resting": ("Requests of bots that rest for a person.", self._queue.num_resting),
            "loaded": ("Whether the model is in memory.", float(self._host.is_loaded)),
            "loads": ("How often the model was loaded.", self._host.loads),
            "load_seconds": ("How long the last load took.", self._host.load_seconds),
            "crashes": ("How often the model process died.", self._host.crashes),
        }

    def _used(
        self, endpoint: Callable[[Request], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        async def wrapped(request: Request) -> Response:
            with self.idle.track_request():
                return await endpoint(request)

        return wrapped

    # Errors -----------------------------------------------------------------------------------

    async def _http_error(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = f"{request.method} {request.url.path[:200]}: {error.detail}."
        return JSONResponse(error_body(error.status_code, message), error.status_code)

    async def _rig_error(self, _: Request, error: Exception) -> Response:
        status, message, headers = self.describe_error(error)
        return JSONResponse(
            error_body(status, message, getattr(error, "param", None)), status, headers
        )

    async def _bug(self, request: Request, _: Exception) -> Response:
        message = f"{request.method} {request.url.path[:200]} failed: the server's log says why."
        return JSONResponse(error_body(500, message), 500)

    def describe_error(self, error: Exception) -> tuple[int, str, dict[str, str]]:
        """Status, sentence and headers for what went wrong."""
        match error:
            case BadRequest():
                status, headers = error.status, {}
            case QueueFull():
                status, headers = 429, {"Retry-After": str(error.retry_after)}
            case EngineDown():
                status, headers = 503, {"Retry-After": "5"}
            case ReplyFailed():
                status, headers = 500, {}
            case EngineRefused() | TooLong():
                status, headers = 400, {}
            case TimeoutError():
                status, headers = 503, {"Retry-After": "30"}
            case _:
                raise error
        if isinstance(error, RigError):
            message = error.message
        else:
            message = f"The request took longer than {self.time_limit:.0f} s."
        self.metrics.refused.labels(str(status)).inc()
        return status, message, headers


def rig_keys(card: dict[str, Any]) -> dict[str, str]:
    """The contract that travels in the model's metadata."""
    return ReplyFormat.from_metadata(card["metadata"]).to_metadata()
