"""From a request's form to what each of its replies asks of the engine.

The taught system prompt, the tags of reasoning and the adapters are settled here; templates and tokens are
left to workers that may be ended (`serve.workbench`), and the engine sees numbers only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from starlette.datastructures import Headers

from rig.model.reply_format import PLAIN, ReplyFormat, format_of_template
from serve.api import protocol as forms
from serve.api.admission import AdmissionQueue
from serve.api.body import BadRequest, parse_body
from serve.api.responses import CompletionPlan, LazyPrompt, PreparedPrompt
from serve.config import ServerConfig
from serve.engine.supervisor import EngineSupervisor
from serve.workbench.sizes import check_size

TAGS = ("reasoning_open", "reasoning_close", "answer_open", "answer_close")
MAX_LOGPROBS = 1 << 15
"""Log probabilities in one response."""
MARKS = 0xE010
"""Private characters that stand for tags that are one token."""
ADVICE = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repeat_penalty",
    "penalty_last_n": "repeat_last_n",
}
"""GGUF's names of what a file advises for sampling, and ours."""


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
            plan = await self._plan_chat(form, urgent)
        return _exactly(plan, headers)

    async def _plan_chat(self, form: forms.ChatCompletionRequest, urgent: bool) -> CompletionPlan:
        if form.tools or form.functions:
            raise BadRequest(
                "This server calls no tools: leave tools out, or ask for JSON with response_format.",
                param="tools",
            )
        await self.model_info()
        plain, taught = self._messages(form.messages)
        reply_format = self._reply_format()
        self._check_size(sum(len(m["content"].encode("utf-8", "replace")) for m in plain))
        ending = _ending(form)
        asked, notes = self._asked(form)
        asked |= {"logprobs": form.num_logprobs(), "urgent": urgent}
        grammar = form.requested_grammar()
        tags = [getattr(reply_format, name) for name in TAGS]

        async def prepare() -> PreparedPrompt:
            prompt = await self._ask_for_prompt(
                messages=plain, switches=form.chat_template_kwargs or {}, tags=tags, **ending
            )
            tail = prompt["tail"].rstrip()
            opened = bool(reply_format.reasoning_open) and tail.endswith(
                reply_format.reasoning_open
            )
            bound = grammar
            thinks = bool(reply_format.reasoning_open) and (taught or opened)
            if grammar and "schema" in grammar and thinks:
                bound = {**grammar, "thought": _thought_tags(reply_format, opened)}
            split, shown = _marked(reply_format, prompt["tags"], asked["stops"])
            return PreparedPrompt(
                prompt["tokens"],
                bound,
                split if form.reasoning_format != "none" else PLAIN,
                opened and form.reasoning_format != "none",
                ending["continue_final_message"],
                shown if form.reasoning_format != "none" else _as_text(prompt["tags"]),
            )

        prompts = [LazyPrompt(prepare)]
        return self._plan("chat.completion", form, urgent, asked, notes, prompts)

    async def plan_completion(self, body: bytes, headers: Headers) -> CompletionPlan:
        """The plan of a plain completion. Raises BadRequest, QueueFull."""
        form = parse_body(forms.CompletionRequest, body)
        urgent = _urgent(headers)
        with self._room_for(form.num_prompts() * (form.n or 1), urgent):
            plan = await self._plan_completion(form, urgent)
        return _exactly(plan, headers)

    async def _plan_completion(self, form: forms.CompletionRequest, urgent: bool) -> CompletionPlan:
        if form.echo or form.suffix or (form.best_of or 1) > (form.n or 1):
            raise BadRequest("echo, suffix and best_of are not offered: leave them out.")
        await self.model_info()
        asked, notes = self._asked(form)
        asked |= {"logprobs": form.num_logprobs(), "urgent": urgent}
        prompts = [self._lazy_prompt(one, form.requested_grammar()) for one in form.prompts()]
        return self._plan("text_completion", form, urgent, asked, notes, prompts)

    def _lazy_prompt(self, prompt: str | list[int], grammar: dict[str, Any] | None) -> LazyPrompt:
        """One prompt, which may be tokens already."""
        if isinstance(prompt, str):
            self._check_size(len(prompt.encode("utf-8", "replace")))

        async def prepare() -> PreparedPrompt:
            tokens = prompt
            if isinstance(tokens, str):
                tokens = (await self._ask_for_prompt(text=tokens, tags=[]))["tokens"]
            return PreparedPrompt(tokens, grammar)

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
        notes: list[str],
        prompts: list[LazyPrompt],
    ) -> CompletionPlan:
        options = form.stream_options
        wants_usage = options.include_usage if options else False
        return CompletionPlan(
            kind=kind,
            model=self._name,
            asked=[_nth(asked, i) for _ in prompts for i in range(form.n or 1)],
            prompts=[prompt for prompt in prompts for _ in range(form.n or 1)],
            notes=tuple(notes),
            urgent=urgent,
            stream=bool(form.stream),
            include_usage=wants_usage,
            logprobs=asked["logprobs"] is not None,
        )

    def _asked(self, form: forms.CommonRequest) -> tuple[dict[str, Any], list[str]]:
        """What each reply asks of the engine, and what is not done as it was asked."""
        chosen = [(lora.id, lora.scale) for lora in form.lora or ()]
        if form.model in self._adapters and form.lora is None:
            chosen = [(self._adapters.index(form.model), 1.0)]
        n = len(self._adapters)
        for place, (id, _) in enumerate(chosen):
            if not 0 <= id < n:
                raise BadRequest(f"There is no adapter {id}: {n} are loaded.", param="lora")
            if id in (other for other, _ in chosen[:place]):
                raise BadRequest(f"lora names adapter {id} twice: name it once.", param="lora")
        max_tokens, notes = form.length_limit()
        max_tokens = self._bound_logprobs(form, max_tokens, notes)
        advice = sampling_advice((self._host.model_info or {})["metadata"])
        asked = {
            "max_tokens": max_tokens,
            "sampling": advice | form.sampling_fields(),
            "stops": form.stop,
            "endless": form.ignore_eos,
            "adapters": sorted(chosen),
        }
        return asked, notes

    def _bound_logprobs(
        self, form: forms.CommonRequest, max_tokens: int | None, notes: list[str]
    ) -> int | None:
        """How long a reply may be whose tokens are reported with others: each is an object of its own."""
        top = form.num_logprobs()
        if top is None:
            return max_tokens
        most = max(1, MAX_LOGPROBS // ((1 + top) * (form.n or 1)))
        if max_tokens is not None and max_tokens <= most:
            return max_tokens
        if max_tokens is None and (self._host.model_info or {})["n_ctx"] <= most:
            return None
        notes.append(
            f"With logprobs of {top} tokens and n of {form.n or 1} a reply may have {most} tokens."
        )
        return most

    async def render_prompt(self, form: forms.ApplyTemplateRequest) -> str:
        """The text that a conversation becomes."""
        await self.model_info()
        plain, _ = self._messages(form.messages)
        found = await self._host.ask_engine(
            "render", messages=plain, switches=form.chat_template_kwargs or {}, **_ending(form)
        )
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
        if reply_format == PLAIN:
            return format_of_template(card.get("chat_template") or "")
        return reply_format


def sampling_advice(metadata: Mapping[str, str]) -> dict[str, Any]:
    """What the file advises for sampling (`general.sampling.*`); values that mean nothing are left out.

    >>> sampling_advice({"general.sampling.temp": "0.6", "general.sampling.top_k": "-7"})
    {'temperature': 0.6}
    """
    found: dict[str, Any] = {}
    for name, field in ADVICE.items():
        with contextlib.suppress(KeyError, ValueError):
            number = float(metadata[f"general.sampling.{name}"])
            value = int(number) if field in ("top_k", "repeat_last_n") else number
            found |= forms.CommonRequest.model_validate({field: value}).sampling_fields()
    return found


def _ending(form: forms.ChatCompletionRequest | forms.ApplyTemplateRequest) -> dict[str, bool]:
    """How the prompt ends: with the assistant's turn begun, or with its last message to be continued.

    As llama-server does, a last message of the assistant is continued unless the request says otherwise.
    """
    by_assistant = form.messages[-1].role == "assistant"
    if form.continue_final_message and form.add_generation_prompt:
        raise BadRequest("Give either continue_final_message or add_generation_prompt, not both.")
    if form.continue_final_message and not by_assistant:
        raise BadRequest("continue_final_message needs a last message of the assistant.")
    goes_on = form.continue_final_message
    if goes_on is None:
        goes_on = by_assistant and not form.add_generation_prompt
    return {
        "continue_final_message": goes_on,
        "add_generation_prompt": not goes_on and form.add_generation_prompt is not False,
    }


def _marked(
    reply_format: ReplyFormat, tags: list[dict[str, Any]], stops: list[str]
) -> tuple[ReplyFormat, tuple[tuple[int, str], ...]]:
    """The format by which a reply is taken apart, and what its text shows for its tags.

    A tag that is one token is found by its number: a private character stands for it, so that the same word
    spelt out is text. Where a stop string means the tag, its word is shown.
    """
    shown: dict[int, str] = {}
    marked: dict[str, str] = {}
    for place, (name, found) in enumerate(zip(TAGS, tags, strict=True)):
        word = getattr(reply_format, name)
        if found["token"] is not None and not any(word in stop for stop in stops):
            marked[name] = chr(MARKS + place)
            shown[found["token"]] = marked[name]
    for token, text in _as_text(tags):
        shown.setdefault(token, text)
    return replace(reply_format, **marked), tuple(shown.items())


def _as_text(tags: list[dict[str, Any]]) -> tuple[tuple[int, str], ...]:
    """The control tokens of all tags as their words."""
    return tuple((token, text) for found in tags for token, text in found["control"])


def _thought_tags(reply_format: ReplyFormat, opened: bool) -> dict[str, Any]:
    """The tags of a reasoned reply, as `serve.workbench.grammar` takes them."""
    return {
        "open": reply_format.reasoning_open,
        "close": reply_format.reasoning_close,
        "answer_open": reply_format.answer_open,
        "answer_close": reply_format.answer_close,
        "opened": opened,
    }


def _exactly(plan: CompletionPlan, headers: Headers) -> CompletionPlan:
    """With `X-Rig-Max-Tokens: exact`, as rig's own tools send it, no room for a length is an error."""
    exact = headers.get("x-rig-max-tokens") == "exact"
    return replace(plan, asked=[asked | {"exact": exact} for asked in plan.asked])


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
