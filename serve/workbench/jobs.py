"""What a worker does: one job after the other, each with a limit on its time, all with one on their memory.

A worker has nobody's secrets and nobody's text but that of its job. What takes too long or too much ends the
process; whoever asked makes a sentence of that (`serve.workbench.pool`).
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from rig.errors import RigError
from rig.model.chat_template import ChatTemplate
from serve.workbench.grammar import GrammarCompiler, LocalMatcher
from serve.workbench.sizes import TooLong, check_size
from serve.workbench.vocabulary import TooManyTokens, Vocabulary

MEMORY = 192 << 20
"""Bytes that a worker may take beyond what it began with."""
NICE = 5
"""How far a worker steps back behind those who write replies."""
TAIL = 256
"""Characters of the prompt's end that the HTTP side looks at."""


class Bench:
    """What is laid out for every worker before it begins: the words, the template, the grammars."""

    def __init__(self, model: Path, template: str) -> None:
        self.vocabulary = Vocabulary.load(model)
        self.vocabulary.special_words()
        self.grammars = GrammarCompiler(self.vocabulary)
        self._source = template or self.vocabulary.chat_template
        self._template: ChatTemplate | None = None
        words = self.vocabulary.all_pieces()
        self._longest = max(map(len, words), default=1) if self.vocabulary.keeps_bytes else 0
        self._bos = self._word(words, self.vocabulary.bos)
        self._eos = self._word(words, self.vocabulary.eos)
        self._control = [
            self._word(words, token)
            for token in range(len(words))
            if self.vocabulary.is_control(token)
        ]

    def _word(self, words: list[bytes], token: int) -> str:
        return words[token].decode("utf-8", "replace") if token >= 0 else ""

    def run_job(self, job: dict[str, Any]) -> dict[str, Any]:
        """The answer to one job. Raises RigError."""
        match job["do"]:
            case "prompt":
                return self._make_prompt(job)
            case "render":
                return {"prompt": "".join(text for text, _ in self._render(job))}
            case "tokenize":
                tokens = self.vocabulary.tokenize(
                    job["text"], special=job["special"], add_special=job["add_special"]
                )
                listed: list[Any] = tokens
                if job["pieces"]:
                    both = zip(tokens, self._pieces(tokens), strict=True)
                    listed = [{"id": token, "piece": piece} for token, piece in both]
                # as text: on its way to the client nobody takes a million tokens apart again
                return {"body": json.dumps({"tokens": listed})}
            case "detokenize":
                return {"content": self._detokenize(job["tokens"])}
        raise RigError(f"There is no job {job['do']!r}.")

    def _make_prompt(self, job: dict[str, Any]) -> dict[str, Any]:
        """The tokens of a conversation, or of a text."""
        parts = self._render(job) if "messages" in job else [(job["text"], True)]
        size = sum(len(text.encode("utf-8", "replace")) for text, _ in parts)
        check_size(size, self._longest, job["n_ctx"])
        begins = bool(self._bos) and bool(parts) and parts[0][0].startswith(self._bos)
        add_special = not begins
        tokens: list[int] = []
        most = 2 * int(job["n_ctx"])
        try:
            for text, special in parts:
                tokens += self.vocabulary.tokenize(
                    text, special=special, add_special=add_special, most=most - len(tokens)
                )
                add_special = False
                if len(tokens) > most:
                    raise TooManyTokens(f"more than {most} tokens")
        except TooManyTokens:
            raise TooLong(
                f"The prompt has more than {most} tokens and the context holds {job['n_ctx']}, one of "
                f"them for the reply: shorten the prompt, or start the server with a larger --ctx."
            ) from None
        return {
            "tokens": tokens,
            "tail": "".join(text for text, _ in parts)[-TAIL:],
            "tags": [self._tag(tag) for tag in job["tags"]],
        }

    def _tag(self, tag: str) -> dict[str, Any]:
        """Which tokens a tag of a reply is, where they are no text: one token, or some within it."""
        tokens = self.vocabulary.tokenize(tag, special=True, add_special=False) if tag else []
        control = [t for t in tokens if self.vocabulary.is_control(t)]
        return {
            "token": tokens[0] if len(tokens) == 1 else None,
            "control": [[t, self._pieces([t])[0]] for t in control],
        }

    def _render(self, job: dict[str, Any]) -> list[tuple[str, bool]]:
        if not self._source:
            raise RigError("The model has no chat template: use /v1/completions.")
        if self._template is None:
            self._template = ChatTemplate(
                self._source, bos=self._bos, eos=self._eos, control=self._control
            )
        return self._template.render_messages(
            job["messages"],
            add_generation_prompt=job["add_generation_prompt"],
            continue_final_message=job["continue_final_message"],
            **job["switches"],
        )

    def _pieces(self, tokens: list[int]) -> list[str]:
        known: dict[int, str] = {}
        for token in set(tokens):
            known[token] = self.vocabulary.token_to_piece(token, special=True).decode(
                "utf-8", "replace"
            )
        return [known[token] for token in tokens]

    def _detokenize(self, tokens: list[int]) -> str:
        n = self.vocabulary.n_vocab
        if (wrong := next((t for t in tokens if not 0 <= t < n), None)) is not None:
            raise RigError(f"There is no token {wrong}: the vocabulary has {n}.")
        known = {t: self.vocabulary.token_to_piece(t, special=True) for t in set(tokens)}
        return b"".join(known[token] for token in tokens).decode("utf-8", "replace")


def work(line: Connection, bench: Bench) -> None:
    """Do what comes in over `line` until the other side is gone."""
    _limit_memory()
    os.dup2(
        os.open(os.devnull, os.O_WRONLY), 2
    )  # last words of native code: the caller says it better
    while True:
        try:
            asked = json.loads(line.recv_bytes())
        except EOFError:
            return
        try:
            if asked["do"] == "grammar":
                _serve_grammar(line, bench, asked)
            else:
                answer = _within(asked["seconds"], partial(bench.run_job, asked))
                line.send_bytes(json.dumps(answer).encode())
        except RigError as error:
            line.send_bytes(json.dumps({"refused": error.message}).encode())
        except MemoryError:
            os._exit(1)  # what it was about is said by the one who asked
        except OSError:
            return  # nobody listens any more
        except Exception as error:
            why = f"The request could not be taken ({type(error).__name__}): see the server's log."
            line.send_bytes(json.dumps({"refused": why, "trace": traceback.format_exc()}).encode())


def _serve_grammar(line: Connection, bench: Bench, asked: dict[str, Any]) -> None:
    """Keep one reply's place in its grammar; each token in, what may follow it out."""
    matcher: LocalMatcher = _within(
        asked["seconds"], lambda: bench.grammars.make_matcher(asked["asked"])
    )
    done = 0
    fresh: list[int] = []

    def go_on() -> dict[str, Any]:
        for token in fresh:
            matcher.consume_token(token)
        return matcher.state()

    while True:
        state = _within(asked["step_seconds"], go_on)
        done += len(fresh)
        fresh.clear()
        state["done"] = done
        if not done:
            state["notes"] = matcher.notes
        mask = state.pop("mask")
        line.send_bytes(json.dumps(state).encode() + b"\n" + mask)
        while True:
            try:
                message = line.recv_bytes()
            except EOFError:
                os._exit(0)
            if message == b"close":
                return
            fresh += json.loads(message)
            if not line.poll(0):  # the places in between need no answer
                break


def _within(seconds: float, function: Callable[[], Any]) -> Any:
    """Run a function; the process ends when it computes for longer."""
    if not hasattr(signal, "setitimer"):
        return function()
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        return function()
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _limit_memory() -> None:
    if sys.platform != "linux":
        return
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    Path("/proc/self/oom_score_adj").write_text(
        "1000"
    )  # the model is not what a full machine ends first
