"""From a request's form to what each of its replies asks of the engine.

The taught system prompt, the tags of reasoning and the adapters are settled here; templates and tokens are
left to workers that may be ended (`serve.workbench`), and the engine sees numbers only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from starlette.datastructures import Headers

from rig.model.reply_format import PLAIN, THINKING, ReplyFormat
from serve.api import protocol as forms
from serve.api.admission import AdmissionQueue
from serve.api.body import BadRequest, parse_body
from serve.api.responses import CompletionPlan, LazyPrompt, PreparedPrompt
from serve.config import ServerConfig
from serve.engine.supervisor import EngineSupervisor
from serve.workbench.sizes import check_size


class RequestPlanner:
    """Plans the requests for one model, and keeps room for their replies before it does."""

    def __init__(
        self, host: EngineSupervisor, queue: AdmissionQueue, settings: ServerConfig
    ) -> None:
        self._host = host
        self._queue = queue
        self._name = settings.name
        self._adapters = settings.adapters
        self._add_system = settings.add_system

    async def model_info(self) -> dict[str, Any]:
        """What the engine said of its model; waits for the first load."""
        if self._host.model_info is None:
            await self._host.load_model()
        assert self._host.model_info is not None
        return self._host.model_info

    async def plan_chat(self, body: bytes, headers: Headers) -> CompletionPlan:
        """The plan of a chat completion. Raises BadRequest, QueueFull."""
        form = parse_body(forms.ChatCompletionRequest, body)
        urgent = _urgent(headers)
        with self._room_for(form.n or 1, urgent):
            return await self._plan_chat(form, urgent)

    async def _plan_chat(self, form: forms.ChatCompletionRequest, urgent: bool) -> CompletionPlan:
        if form.tools or form.functions:
            raise BadRequest(
                "This server calls no tools: leave tools out, or ask for JSON with response_format.",
                param="tools",
            )
        await self.model_info()
        plain, taught = self._messages(form.messages)
        reply_format = self._reply_format() if form.reasoning_format != "none" else PLAIN
        self._check_size(sum(len(m["content"].encode("utf-8", "replace")) for m in plain))
        asked = self._asked(form, form.max_completion_tokens or form.max_tokens)
        asked |= {"logprobs": form.num_logprobs(), "urgent": urgent}
        grammar = form.requested_grammar()

        async def prepare() -> PreparedPrompt:
            prompt = await self._ask_for_prompt(
                messages=plain, switches=form.chat_template_kwargs or {}
            )
            opened = bool(reply_format.reasoning_open) and prompt["tail"].rstrip().endswith(
                reply_format.reasoning_open
            )
            bound = grammar
            thinks = bool(reply_format.reasoning_open) and (taught or opened)
            if grammar and "schema" in grammar and thinks:
                bound = {**grammar, "thought": _thought_tags(reply_format, opened)}
            return PreparedPrompt(prompt["tokens"], bound, opened)

        prompts = [LazyPrompt(prepare)]
        return self._plan("chat.completion", form, urgent, asked, reply_format, prompts)

    async def plan_completion(self, body: bytes, headers: Headers) -> CompletionPlan:
        """The plan of a plain completion. Raises BadRequest, QueueFull."""
        form = parse_body(forms.CompletionRequest, body)
        urgent = _urgent(headers)
        with self._room_for(form.num_prompts() * (form.n or 1), urgent):
            return await self._plan_completion(form, urgent)

    async def _plan_completion(self, form: forms.CompletionRequest, urgent: bool) -> CompletionPlan:
        if form.echo or form.suffix or (form.best_of or 1) > (form.n or 1):
            raise BadRequest("echo, suffix and best_of are not offered: leave them out.")
        await self.model_info()
        asked = self._asked(form, form.max_tokens)
        asked |= {"logprobs": form.num_logprobs(), "urgent": urgent}
        prompts = [self._lazy_prompt(one, form.requested_grammar()) for one in form.prompts()]
        return self._plan("text_completion", form, urgent, asked, PLAIN, prompts)

    def _lazy_prompt(self, prompt: str | list[int], grammar: dict[str, Any] | None) -> LazyPrompt:
        """One prompt, which may be tokens already."""
        if isinstance(prompt, str):
            self._check_size(len(prompt.encode("utf-8", "replace")))

        async def prepare() -> PreparedPrompt:
            tokens = prompt
            if isinstance(tokens, str):
                tokens = (await self._ask_for_prompt(text=tokens))["tokens"]
            return PreparedPrompt(tokens, grammar, False)

        return LazyPrompt(prepare)

    @contextlib.contextmanager
    def _room_for(self, replies: int, urgent: bool) -> Iterator[None]:
        """Admit first, work afterwards: the replies of one request have to fit the places and the queue."""
        most = self._queue.capacity
        if replies > most:
            raise BadRequest(
                f"The request asks for {replies:,} replies (prompts x n), and this server takes {most} "
                f"at a time: send fewer prompts, or a smaller n."
            )
        with self._queue.announce_request(replies, urgent=urgent):
            yield

    def _plan(
        self,
        kind: str,
        form: forms.CommonRequest,
        urgent: bool,
        asked: dict[str, Any],
        reply_format: ReplyFormat,
        prompts: list[LazyPrompt],
    ) -> CompletionPlan:
        options = form.stream_options
        wants_usage = options.include_usage if options else False
        return CompletionPlan(
            kind=kind,
            model=self._name,
            asked=[_nth(asked, i) for _ in prompts for i in range(form.n or 1)],
            prompts=[prompt for prompt in prompts for _ in range(form.n or 1)],
            reply_format=reply_format,
            urgent=urgent,
            stream=bool(form.stream),
            include_usage=wants_usage,
            logprobs=asked["logprobs"] is not None,
        )

    def _asked(self, form: forms.CommonRequest, max_tokens: int | None) -> dict[str, Any]:
        chosen = [(lora.id, lora.scale) for lora in form.lora or ()]
        if form.model in self._adapters and form.lora is None:
            chosen = [(self._adapters.index(form.model), 1.0)]
        n = len(self._adapters)
        for place, (id, _) in enumerate(chosen):
            if not 0 <= id < n:
                raise BadRequest(f"There is no adapter {id}: {n} are loaded.", param="lora")
            if id in (other for other, _ in chosen[:place]):
                raise BadRequest(f"lora names adapter {id} twice: name it once.", param="lora")
        return {
            "max_tokens": max_tokens,
            "sampling": form.sampling_fields(),
            "stops": form.stop,
            "endless": form.ignore_eos,
            "adapters": sorted(chosen),
        }

    async def render_prompt(
        self, messages: list[forms.ChatMessage], switches: dict[str, Any] | None
    ) -> str:
        """The text that a conversation becomes."""
        await self.model_info()
        plain, _ = self._messages(messages)
        found = await self._host.ask_engine("render", messages=plain, switches=switches or {})
        return str(found["prompt"])

    def _messages(self, messages: list[forms.ChatMessage]) -> tuple[list[dict[str, Any]], bool]:
        """Messages as a template wants them, and whether they tell the model to speak as it was taught."""
        if not (self._host.model_info or {})["chat_template"]:
            raise BadRequest(f"{self._name} has no chat template: use /v1/completions.")
        reply_format = self._reply_format()
        plain = [message.to_template() for message in messages]
        given = [message["content"] for message in plain if message["role"] == "system"]
        if not given and self._add_system and reply_format.system_prompt:
            plain.insert(0, {"role": "system", "content": reply_format.system_prompt})
            given = [reply_format.system_prompt]
        # an empty one says: none, not even the taught one
        plain = [m for m in plain if m["role"] != "system" or m["content"]]
        taught = bool(reply_format.system_prompt) and any(
            reply_format.system_prompt in text for text in given
        )
        return plain, taught

    async def _ask_for_prompt(self, **what: Any) -> dict[str, Any]:
        return await self._host.ask_engine("prompt", **what)

    def _check_size(self, size: int) -> None:
        """Refuse what can't fit before anybody works on it."""
        card = self._host.model_info or {}
        check_size(size, card["longest_token"], card["n_ctx"])

    def _reply_format(self) -> ReplyFormat:
        card = self._host.model_info or {}
        reply_format = ReplyFormat.from_metadata(card.get("metadata", {}))
        if reply_format == PLAIN and THINKING.reasoning_open in (card.get("chat_template") or ""):
            return THINKING
        return reply_format


def _thought_tags(reply_format: ReplyFormat, opened: bool) -> dict[str, Any]:
    """The tags of a reasoned reply, as `serve.workbench.grammar` takes them."""
    return {
        "open": reply_format.reasoning_open,
        "close": reply_format.reasoning_close,
        "answer_open": reply_format.answer_open,
        "answer_close": reply_format.answer_close,
        "opened": opened,
    }


def _urgent(headers: Headers) -> bool:
    given = headers.get("x-rig-priority", "person")
    if given not in ("person", "bot"):
        raise BadRequest("X-Rig-Priority is person or bot.")
    return given == "person"


def _nth(asked: dict[str, Any], n: int) -> dict[str, Any]:
    """The same request for the n-th choice: with a seed, each choice has one of its own."""
    seed = asked["sampling"].get("seed")
    if seed is None or n == 0:
        return asked
    return asked | {"sampling": asked["sampling"] | {"seed": (seed + n) & 0xFFFFFFFF}}
