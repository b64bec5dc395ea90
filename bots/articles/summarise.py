"""Reads all of a text: whole where it fits the model's context, else part by part into notes, then the notes.

Notes are neutral (see `request.NOTES`) and kept one by one, so an interrupted run goes on where it was, and
another length, focus, language or style of the same text only reads the notes. The instruction stands first
in every request and the first request has begun to answer before the others start: a server that keeps its
prefixes computes the instruction once.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from bots.articles import chunks, focus
from bots.articles.cache import ArticleCache, cache_key
from bots.articles.progress import SummaryListener
from bots.articles.prompts import summary_messages
from bots.articles.request import NOTES, TOKENS_EACH, SummaryRequest
from bots.articles.token_budget import TokenBudget
from bots.documents.sanitise import StreamCleaner, clean_paragraphs, defuse_marks
from bots.language.sentences import whole_sentences
from rig.errors import RigError
from rig.model.reply_format import THINKING, ReplySplitter
from rig.server.client import (
    ChatCompletion,
    ContextOverflow,
    ModelClient,
    ServerBusy,
    ServerUnreachable,
)

NOTE_TOKENS = 6 * TOKENS_EACH
PATIENCE = 600.0
"""Seconds to wait altogether for a server whose queue is full."""


@dataclass
class Summary:
    """A summary and how it came about."""

    text: str
    tokens_in: int = 0
    """Tokens of the text, all of which were read."""
    tokens_out: int = 0
    chunks: int = 1
    """Parts the text was read in; 1 when it fitted whole, 0 when no model was needed."""
    model: str = ""
    exact: bool = True
    """Whether `tokens_in` is the tokenizer's count and not a guess."""
    kept_notes: int = 0
    """Parts whose notes were there from an earlier run."""
    notes: list[str] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)
    """Seconds: `parts`, `whole` (the last request)."""
    computed: dict[str, int] = field(default_factory=lambda: {"parts": 0, "whole": 0})
    """Tokens of prompts that the server says it computed rather than remembered."""


class Summariser:
    """One model that reads texts; `who` names it in the keys of what is kept."""

    def __init__(
        self,
        client: ModelClient,
        *,
        who: str,
        cache: ArticleCache,
        context: int | None = None,
        parallel: int = 4,
        max_tokens: int | None = None,
        listener: SummaryListener | None = None,
    ) -> None:
        self.client = client
        self.token_budget = TokenBudget(client, context)
        self._who = who
        self._cache = cache
        self._parallel = max(1, parallel)
        self._max_tokens = max_tokens
        self._listener = listener or SummaryListener()
        reply_format = client.reply_format
        self._reply_format = reply_format if reply_format.reasoning_open else THINKING

    def summarise_text(self, text: str, request: SummaryRequest) -> Summary:
        """Read all of `text` and return what `request` asks for."""
        text = defuse_marks(text)
        while True:
            try:
                return self._summarise(text, request)
            except ContextOverflow:
                self.token_budget.tighten_guess()

    def _summarise(self, text: str, request: SummaryRequest) -> Summary:
        task, answer_tokens = request.task_sentence(), self._max_tokens or request.max_tokens
        answer_tokens = min(answer_tokens, self.token_budget.context // 3)
        found = Summary("", tokens_in=self.token_budget.count_tokens(text), model=self.client.model)
        budget = self.token_budget.text_tokens(task, answer_tokens)
        start = time.monotonic()
        if found.tokens_in > budget:
            text = self._notes(text, request, budget, found)
            found.timings["parts"] = round(time.monotonic() - start, 3)
        else:
            self._listener.on_start(1, found.tokens_in)
        start = time.monotonic()
        answer = self._ask(text, task, answer_tokens, self._listener.on_text)
        found.timings["whole"] = round(time.monotonic() - start, 3)
        found.computed["whole"] = answer.timings.get("prompt_n", 0)
        found.tokens_out += answer.completion_tokens
        found.exact = self.token_budget.exact
        found.text = clean_paragraphs(answer.text)
        if answer.finish == "length":
            found.text = whole_sentences(found.text)
            found.notes.append(f"The summary ended at its limit of {answer_tokens} tokens.")
        if not found.text:
            raise RigError(
                f"The model wrote no summary within {answer_tokens:,} tokens"
                + (" (it was still thinking): give --max-tokens more." if answer.thought else ".")
            )
        found.notes = [*self.token_budget.notes, *found.notes]
        return found

    def _notes(self, text: str, request: SummaryRequest, budget: int, found: Summary) -> str:
        """Read `text` part by part, and the notes again, until what is left fits in `budget` tokens."""
        size = min(NOTE_TOKENS, self.token_budget.context // 6)
        room = self.token_budget.text_tokens(NOTES, size)
        parts = chunks.split_text(text, room, self.token_budget.count_tokens)
        found.chunks = len(parts)
        self._listener.on_start(len(parts), found.tokens_in)
        notes, found.kept_notes = self._read(parts, size, found)
        while True:
            joined = "\n\n".join(notes)
            if (length := self.token_budget.count_tokens(joined)) <= budget:
                break
            groups = chunks.split_text(
                joined, min(room, max(budget, length // 2)), self.token_budget.count_tokens
            )
            if len(groups) >= len(notes):
                raise RigError(
                    f"The notes on {found.chunks} parts do not fit a context of "
                    f"{self.token_budget.context:,} "
                    "tokens: serve the model with a larger context."
                )
            notes, _ = self._read(groups, size, found)
        if request.focus:
            extra = focus.sentences_on(request.focus, text, (budget - length) * 3)
            if extra and self.token_budget.count_tokens(joined + extra) < budget:
                joined += extra
        return joined

    def _read(self, parts: list[str], size: int, found: Summary) -> tuple[list[str], int]:
        """The notes on each part, and how many were kept; new ones are kept as soon as they are whole."""
        keys = [cache_key("note", self._who, NOTES, size, part) for part in parts]
        notes: list[str | None] = [self._cache.get_value(one) for one in keys]
        missing = [at for at, note in enumerate(notes) if note is None]
        done = kept = len(parts) - len(missing)
        if done:
            self._listener.on_part_read(done, len(parts))
        average = self.token_budget.count_tokens("".join(parts)) // len(parts)
        workers = min(self._parallel, self.token_budget.max_parallel(average, NOTES, size))
        for at, answer in self._at_once([parts[at] for at in missing], size, workers):
            note = clean_paragraphs(answer.text)
            note = whole_sentences(note) if answer.finish == "length" else note
            if not note:
                raise RigError(f"The model wrote nothing about part {missing[at] + 1}.")
            notes[missing[at]] = note
            found.tokens_out += answer.completion_tokens
            found.computed["parts"] += answer.timings.get("prompt_n", 0)
            self._cache.put_value(keys[missing[at]], note)
            done += 1
            self._listener.on_part_read(done, len(parts))
        return [note for note in notes if note is not None], kept

    def _at_once(self, parts: list[str], size: int, workers: int) -> Any:
        """Yield (index, answer) as the answers come, `workers` requests at a time.

        Threads that the interpreter does not wait for: Ctrl-C ends them, and the server sees them gone.
        """
        tasks: queue.SimpleQueue[int] = queue.SimpleQueue()
        for at in range(len(parts)):
            tasks.put(at)
        results: queue.SimpleQueue[tuple[int, ChatCompletion | BaseException]] = queue.SimpleQueue()
        answering, stop = threading.Event(), threading.Event()

        def work(first: bool) -> None:
            if not first:
                answering.wait()
            while not stop.is_set():
                try:
                    at = tasks.get_nowait()
                except queue.Empty:
                    return
                try:
                    answer = self._ask(parts[at], NOTES, size, lambda _: answering.set(), stop)
                except BaseException as error:  # handed to the thread that waits
                    results.put((at, error))
                    return
                finally:
                    answering.set()
                results.put((at, answer))

        for worker in range(min(workers, len(parts))):
            threading.Thread(target=work, args=(worker == 0,), daemon=True).start()
        try:
            for _ in parts:
                at, answer = _next(results)
                if isinstance(answer, BaseException):
                    raise answer
                yield at, answer
        finally:
            stop.set()

    def _ask(
        self,
        text: str,
        task: str,
        size: int,
        piece: Callable[[str], None],
        stop: threading.Event | None = None,
    ) -> ChatCompletion:
        """One request; waits for a busy server, and makes sure that all of the text was read."""
        messages = summary_messages(text, task)
        deadline, stop = time.monotonic() + PATIENCE, stop or threading.Event()
        while True:
            answer, told = ChatCompletion(), False
            splitter, clean, said = ReplySplitter(self._reply_format), StreamCleaner(), []
            try:
                for _, more in self.client.stream_chat(
                    messages, answer, max_tokens=size, temperature=0
                ):
                    if stop.is_set():
                        raise RigError("Stopped.")
                    told = True
                    said.append(clean.feed_text(splitter.feed_text(more)[1]))
                    piece(said[-1])
                said.append(clean.feed_text(splitter.flush_text()[1]) + clean.flush_text())
                piece(said[-1])
            except ServerBusy as busy:
                if told or time.monotonic() + busy.retry_after > deadline:
                    raise
                if stop.wait(min(30.0, max(0.2, busy.retry_after))):
                    raise
                continue
            except ServerUnreachable as error:
                raise ServerUnreachable(
                    f"{error.message} What was read is kept: run the same command again."
                ) from error
            if self.token_budget.was_cut(text, answer.prompt_tokens):
                raise RigError(
                    f"The server read only {answer.prompt_tokens:,} tokens of a longer text: its context "
                    "is smaller than it says. Give --context with the true number."
                )
            answer.text = "".join(said)
            return answer


def _next(results: queue.SimpleQueue[Any]) -> Any:
    """The next result; in short waits, because on Windows a long one does not hear Ctrl-C."""
    while True:
        try:
            return results.get(timeout=1.0)
        except queue.Empty:
            continue
