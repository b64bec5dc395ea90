"""From a request's form to what each of its replies asks of the engine.

The chat template, the taught system prompt, the tags of reasoning and the adapters are settled here; the
engine sees parts of a prompt and numbers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from starlette.datastructures import Headers

from rig.model.chat_template import ChatTemplate
from rig.model.reply_format import PLAIN, THINKING, ReplyFormat
from serve.api import protocol as forms
from serve.api.admission import AdmissionQueue
from serve.api.body import BadRequest, parse_body
from serve.api.responses import CompletionPlan
from serve.config import ServerConfig
from serve.engine.supervisor import EngineSupervisor


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
        self._template: ChatTemplate | None = None

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
        parts, taught = await self.render_prompt(form.messages, form.chat_template_kwargs)
        reply_format = self._reply_format() if form.reasoning_format != "none" else PLAIN
        prompt = "".join(text for text, _ in parts)
        opened = bool(reply_format.reasoning_open) and prompt.rstrip().endswith(
            reply_format.reasoning_open
        )
        card = await self.model_info()
        begins = bool(card["bos"]) and prompt.startswith(card["bos"])
        grammar = form.requested_grammar()
        if grammar and "schema" in grammar and reply_format.reasoning_open and (taught or opened):
            tags = ("reasoning_open", "reasoning_close", "answer_open", "answer_close")
            grammar["thought"] = {
                name.removeprefix("reasoning_"): getattr(reply_format, name) for name in tags
            }
            grammar["thought"]["opened"] = opened
        asked = self._asked(form, form.max_completion_tokens or form.max_tokens)
        asked |= {
            "prompt": parts,
            "add_special": not begins,
            "grammar": grammar,
            "logprobs": form.num_logprobs(),
            "urgent": urgent,
        }
        return self._plan("chat.completion", form, urgent, [asked], reply_format, opened)

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
        base = self._asked(form, form.max_tokens) | {
            "grammar": form.requested_grammar(),
            "logprobs": form.num_logprobs(),
            "urgent": urgent,
        }
        prompts = form.engine_prompts()
        asked = [
            base | {"prompt": p, "add_special": not isinstance((p or [0])[0], int)} for p in prompts
        ]
        return self._plan("text_completion", form, urgent, asked, PLAIN, False)

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
        asked: list[dict[str, Any]],
        reply_format: ReplyFormat,
        opened: bool,
    ) -> CompletionPlan:
        options = form.stream_options
        wants_usage = options.include_usage if options else False
        return CompletionPlan(
            kind=kind,
            model=self._name,
            asked=[_nth(one, i) for one in asked for i in range(form.n or 1)],
            reply_format=reply_format,
            opened=opened,
            urgent=urgent,
            stream=bool(form.stream),
            include_usage=wants_usage,
            logprobs=asked[0]["logprobs"] is not None,
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
    ) -> tuple[list[Any], bool]:
        """The prompt's parts, and whether it tells the model to speak as it was taught."""
        template = await self._chat_template()
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
        return template.render_messages(plain, **(switches or {})), taught

    async def _chat_template(self) -> ChatTemplate:
        card = await self.model_info()
        if self._template is None:
            if not card["chat_template"]:
                raise BadRequest(f"{self._name} has no chat template: use /v1/completions.")
            self._template = ChatTemplate(
                card["chat_template"], bos=card["bos"], eos=card["eos"], control=card["control"]
            )
        return self._template

    def _reply_format(self) -> ReplyFormat:
        card = self._host.model_info or {}
        reply_format = ReplyFormat.from_metadata(card.get("metadata", {}))
        if reply_format == PLAIN and THINKING.reasoning_open in (card.get("chat_template") or ""):
            return THINKING
        return reply_format


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
