"""The reply in OpenAI's form, whole or as a stream, from the engine's events.

The thought is taken apart from the answer here, by the contract in the model's metadata. Who goes away is
noticed while the reply is written, streaming or not, and the engine stops within one step.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from rig.model.reply_format import PLAIN, ReplyFormat, ReplySplitter
from serve.api.admission import AdmissionQueue
from serve.engine.supervisor import EngineRefused, EngineSupervisor


@dataclass
class Choice:
    """One reply as it grows."""

    index: int
    reply_format: ReplyFormat
    """How to take it apart; without tags everything is the answer."""
    opened: bool = False
    """The prompt ended inside a thought."""
    continued: bool = False
    """The reply goes on with a text that has begun: blanks at its beginning count."""
    notes: list[str] = field(default_factory=list)
    """What of the request was not done as it was asked."""
    thought: str = ""
    text: str = ""
    logprobs: list[Any] = field(default_factory=list)
    finish: str | None = None
    prompt_tokens: int = 0
    tokens: int = 0
    timings: dict[str, Any] = field(default_factory=dict)
    first_at: float = 0.0

    def __post_init__(self) -> None:
        self._splitter = ReplySplitter(self.reply_format)
        self._thought_kept = self._text_kept = ""
        if self.opened:
            self._splitter.feed_text(self.reply_format.reasoning_open)

    def add_output(self, event: dict[str, Any]) -> ChoiceDelta:
        """Take in an event of the engine; returns what it adds."""
        self.prompt_tokens = event.get("prompt_tokens", self.prompt_tokens)
        self.tokens += len(event.get("tokens", ()))
        self.timings = event.get("timings", self.timings)
        self.finish = event.get("finish")
        self.notes += event.get("notes", ())
        if event.get("tokens") and not self.first_at:
            self.first_at = time.monotonic()
        thought, text = self._splitter.feed_text(event.get("text", ""))
        if self.finish:
            more_thought, more_text = self._splitter.flush_text()
            thought, text = thought + more_thought, text + more_text
        if self.reply_format.reasoning_open:
            before = self.text or ("." if self.continued else "")
            thought, self._thought_kept = _trim(self.thought, self._thought_kept + thought)
            text, self._text_kept = _trim(before, self._text_kept + text)
        if self.finish == "stop" and self.opened and not self._splitter.closed and not text:
            # the prompt opened a thought, and the model answered without one: nothing of it is lost
            text = self.thought + thought
        self.thought += thought
        self.text += text
        logprobs = event.get("logprobs", [])
        self.logprobs += logprobs
        return ChoiceDelta(self, thought, text, logprobs, self.finish)


@dataclass(frozen=True)
class ChoiceDelta:
    """What one event of the engine adds to a choice."""

    choice: Choice
    thought: str
    text: str
    logprobs: list[Any]
    finish: str | None


def _trim(before: str, fresh: str) -> tuple[str, str]:
    """What may be shown of `fresh`, and the white space at its end that only counts if more follows."""
    shown = fresh if before else fresh.lstrip()
    cut = len(shown.rstrip())
    return shown[:cut], shown[cut:]


@dataclass(frozen=True)
class PreparedPrompt:
    """A prompt as the engine takes it, and how the reply to it is taken apart."""

    tokens: list[int]
    grammar: dict[str, Any] | None
    reply_format: ReplyFormat = PLAIN
    opened: bool = False
    """It ends inside a thought."""
    continued: bool = False
    """It ends inside an answer."""
    shown: tuple[tuple[int, str], ...] = ()
    """What stands in the reply for tokens that are no text."""


class LazyPrompt:
    """A prompt that is made when the first of its replies has a place, and once for all of them."""

    def __init__(self, prepare: Callable[[], Awaitable[PreparedPrompt]]) -> None:
        self._prepare = prepare
        self._lock = asyncio.Lock()
        self._made: PreparedPrompt | None = None

    async def get(self) -> PreparedPrompt:
        """The prompt. Raises EngineRefused for one that can't be made."""
        async with self._lock:
            if self._made is None:
                self._made = await self._prepare()
            return self._made


@dataclass(frozen=True)
class CompletionPlan:
    """A whole request: what each choice asks of the engine, and how the reply is dressed."""

    kind: str
    """`chat.completion` or `text_completion`."""
    model: str
    asked: list[dict[str, Any]]
    prompts: list[LazyPrompt]
    """The prompt of each choice; several share one."""
    notes: tuple[str, ...] = ()
    """What is not done as it was asked."""
    urgent: bool = True
    stream: bool = False
    include_usage: bool = False
    logprobs: bool = False


class CompletionRunner:
    """Runs plans; one for each server."""

    def __init__(self, host: EngineSupervisor, queue: AdmissionQueue) -> None:
        self._host = host
        self._queue = queue

    async def stream_deltas(self, plan: CompletionPlan) -> AsyncGenerator[ChoiceDelta]:
        """Yield the pieces of all choices of a plan as they come.

        Raises EngineDown, EngineRefused.
        """
        if len(plan.asked) == 1:  # the usual case goes without tasks and queues in between
            async with contextlib.aclosing(self._write(plan, 0)) as pieces:
                async for piece in pieces:
                    yield piece
            return
        arrived: asyncio.Queue[ChoiceDelta | Exception | None] = asyncio.Queue()

        async def write(index: int) -> None:
            try:
                async with contextlib.aclosing(self._write(plan, index)) as pieces:
                    async for piece in pieces:
                        arrived.put_nowait(piece)
                arrived.put_nowait(None)
            except Exception as error:
                arrived.put_nowait(error)

        tasks = [asyncio.create_task(write(index)) for index in range(len(plan.asked))]
        try:
            left = len(tasks)
            while left:
                item = await arrived.get()
                if item is None:
                    left -= 1
                elif isinstance(item, Exception):
                    raise item
                else:
                    yield item
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _write(self, plan: CompletionPlan, index: int) -> AsyncGenerator[ChoiceDelta]:
        async with self._queue.admit_request(urgent=plan.urgent) as turn:
            prompt = await plan.prompts[index].get()
            choice = Choice(
                index, prompt.reply_format, prompt.opened, prompt.continued, list(plan.notes)
            )
            ticket = self._host.new_ticket(
                {
                    **plan.asked[index],
                    "prompt": prompt.tokens,
                    "grammar": prompt.grammar,
                    "shown": prompt.shown,
                }
            )
            turn.on_rest = lambda resting: self._host.pause_request(ticket, resting)
            if turn.resting:
                self._host.pause_request(ticket, True)
            async with contextlib.aclosing(self._host.stream_outputs(ticket)) as events:
                async for event in events:
                    if event.get("finish") == "error":
                        raise ReplyFailed(event["error"])
                    yield choice.add_output(event)


class ReplyFailed(EngineRefused):
    """The engine could not finish the reply."""


def full_response(plan: CompletionPlan, choices: list[Choice]) -> dict[str, Any]:
    """The reply in one piece."""
    entries: list[dict[str, Any]] = []
    for choice in choices:
        entry: dict[str, Any] = {"index": choice.index, "finish_reason": choice.finish}
        if plan.kind == "chat.completion":
            message: dict[str, Any] = {"role": "assistant", "content": choice.text}
            if choice.thought and choice.thought != choice.text:
                message["reasoning_content"] = choice.thought
            entry["message"] = message
            entry["logprobs"] = chat_logprobs(choice.logprobs) if plan.logprobs else None
        else:
            entry["text"] = choice.text
            entry["logprobs"] = plain_logprobs(choice.logprobs) if plan.logprobs else None
        entries.append(entry)
    return {
        **response_fields(plan, plan.kind),
        "choices": entries,
        "usage": count_usage(choices),
        "timings": choices[0].timings,
        **note_fields(choices),
    }


def note_fields(choices: list[Choice]) -> dict[str, Any]:
    """What was not done as it was asked, each once; nothing when all was."""
    notes = list(dict.fromkeys(note for choice in choices for note in choice.notes))
    return {"notes": notes} if notes else {}


def response_fields(plan: CompletionPlan, kind: str) -> dict[str, Any]:
    """What every object of one reply begins with."""
    prefix = "chatcmpl-" if plan.kind == "chat.completion" else "cmpl-"
    return {
        "id": prefix + uuid.uuid4().hex,
        "object": kind,
        "created": int(time.time()),
        "model": plan.model,
        "system_fingerprint": "rig",
    }


def count_usage(choices: list[Choice]) -> dict[str, Any]:
    """Tokens read and written."""
    prompt = sum(c.prompt_tokens for c in choices)
    written = sum(c.tokens for c in choices)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": written,
        "total_tokens": prompt + written,
        "prompt_tokens_details": {
            "cached_tokens": sum(c.timings.get("cache_n", 0) for c in choices)
        },
    }


async def stream_response(
    plan: CompletionPlan, replies: AsyncIterator[ChoiceDelta]
) -> AsyncGenerator[bytes]:
    """The reply as server-sent events; the first one comes when the engine has taken the request."""
    chat = plan.kind == "chat.completion"
    begin = response_fields(plan, "chat.completion.chunk" if chat else plan.kind)
    choices: dict[int, Choice] = {}

    def chunk(choice: Choice, delta: Any, finish: str | None, logprobs: Any = None) -> bytes:
        entry: dict[str, Any] = {
            "index": choice.index,
            "finish_reason": finish,
            "logprobs": logprobs,
        }
        entry["delta" if chat else "text"] = delta
        more = {"timings": choice.timings, **note_fields([choice])} if finish else {}
        return sse_event({**begin, "choices": [entry], **more})

    async for piece in replies:
        choice = piece.choice
        if choice.index not in choices:
            choices[choice.index] = choice
            yield (
                chunk(choice, {"role": "assistant", "content": ""}, None)
                if chat
                else b": taken\n\n"
            )
        logprobs = None
        if plan.logprobs and piece.logprobs:
            logprobs = chat_logprobs(piece.logprobs) if chat else plain_logprobs(piece.logprobs)
        if piece.thought or piece.text or logprobs:
            delta: Any = piece.text
            if chat:
                delta = {"reasoning_content": piece.thought} if piece.thought else {}
                delta |= {"content": piece.text} if piece.text else {}
            yield chunk(choice, delta, None, logprobs)
        if piece.finish:
            yield chunk(choice, {} if chat else "", piece.finish)
    if plan.include_usage:
        yield sse_event({**begin, "choices": [], "usage": count_usage(list(choices.values()))})
    yield b"data: [DONE]\n\n"


def sse_event(body: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"


def chat_logprobs(rows: list[Any]) -> dict[str, Any]:
    """Log probabilities in the form of chat completions."""
    content = []
    for chosen, *likeliest in rows:
        entry = _token_entry(chosen)
        entry["top_logprobs"] = [_token_entry(item) for item in likeliest]
        content.append(entry)
    return {"content": content, "refusal": None}


def plain_logprobs(rows: list[Any]) -> dict[str, Any]:
    """Log probabilities in the form of plain completions."""
    chosen = [_token_entry(row[0]) for row in rows]
    tops = [{e["token"]: e["logprob"] for e in map(_token_entry, row[1:])} for row in rows]
    return {
        "tokens": [entry["token"] for entry in chosen],
        "token_logprobs": [entry["logprob"] for entry in chosen],
        "top_logprobs": tops,
    }


def _token_entry(item: tuple[str, float]) -> dict[str, Any]:
    raw = bytes.fromhex(item[0])
    return {"token": raw.decode("utf-8", "replace"), "logprob": item[1], "bytes": list(raw)}
