"""The process that holds the model: lines of JSON in on stdin, lines of JSON out on stdout.

It stands apart because llama.cpp ends a failed assertion with abort(): that may end this process, and with
it one request, but not the service. Its memory is given back by ending it. A word in a shared file says
which request is being worked on, so that after a crash the guilty one is known.

In:  {"do": "submit", "id": 7, ...} {"do": "cancel", "id": 7} {"do": "pause", "id": 7, "paused": true}
     {"do": "prompt" | "render" | "tokenize" | "detokenize", "id": 8, ...}
     {"do": "counts", "id": 9} {"do": "quit"}
Out: {"ready": CARD} | {"failed": SENTENCE}, then {"events": [...]} and {"answer": 8, ...}
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import struct
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from rig.errors import RigError
from serve.config import EngineConfig
from serve.engine.kv_disk import DiskKVCache
from serve.engine.llama import LlamaContext
from serve.engine.sampling import SamplerParams
from serve.engine.scheduler import Scheduler
from serve.engine.sequence import Output, Request
from serve.hardware.machine import trim_memory
from serve.log import configure_log, log_mistake
from serve.workbench.pool import Workbench
from serve.workbench.remote import Matcher

CRUMB = struct.Struct("qq")
"""Which request the engine (first) and the reader of requests (second) are working on; 0 = none."""

WORK_ON = {
    "prompt": "The prompt",
    "render": "The chat template",
    "tokenize": "The text",
    "detokenize": "The list of tokens",
}
"""What a worker has in hand, for the sentence when it is too much."""
LARGE_TEXT = 1 << 18
"""Characters of a job after which memory is given back."""
BROKEN_STEPS = 10
"""Steps in a row that may fail as a whole before the process gives itself up."""


class EngineWorker:
    """Reads requests in one thread, steps the engine in the other."""

    def __init__(self, config: EngineConfig, crumb: Path, out: BinaryIO) -> None:
        self._out = out
        self._lock = threading.Lock()
        self._quit = False
        with crumb.open("r+b") as file:
            self._crumb = mmap.mmap(file.fileno(), CRUMB.size)
        self._workbench = Workbench(config.model, config.template)
        self._rests: dict[int, bool] = {}
        """Requests whose grammar is still being read, and whether they are to rest."""
        self._llama = LlamaContext(
            Path(config.model),
            ctx=config.ctx,
            batch=config.batch,
            sequences=config.max_sequences,
            threads=config.threads,
            kv_type=config.kv_type,
            flash_attn=config.flash_attn,
            mlock=config.mlock,
            adapters=[Path(adapter) for adapter in config.adapters],
        )
        disk = None
        if config.disk:
            disk = DiskKVCache(Path(config.disk), config.disk_bytes, cell_family(config))
        self._engine = Scheduler(
            self._llama,
            self._emit,
            disk=disk,
            parked_bytes=config.parked_bytes,
            at_work=self._at_work,
            drafting=config.drafting,
        )
        model_info = self._llama.model_info()
        if config.template:
            model_info["chat_template"] = Path(config.template).read_text("utf-8")
        self.send_message({"ready": model_info})

    def send_message(self, message: dict[str, Any]) -> None:
        """Write one line."""
        line = json.dumps(message, ensure_ascii=True, separators=(",", ":")).encode() + b"\n"
        with self._lock:
            self._out.write(line)
            self._out.flush()

    def read_requests(self, lines: BinaryIO) -> None:
        """Take requests until the other side is gone."""
        for line in lines:
            message: dict[str, Any] = {}
            try:
                message = json.loads(line)
                self._crumb[8:16] = message.get("id", 0).to_bytes(8, "little")
                self._take(message)
            except Exception as error:
                log_mistake(error)
                self._excuse(message, f"{type(error).__name__}: {error}")
            self._crumb[8:16] = bytes(8)
        os._exit(0)

    def run_steps(self) -> None:
        """Step the engine until told to quit."""
        broken = 0
        while not self._quit:
            try:
                if not self._engine.run_step():
                    self._engine.wait_for_work()
                broken = 0
            except Exception as error:
                broken += 1
                if broken > BROKEN_STEPS:
                    raise  # it does not mend itself: a new process begins anew
                self._engine.fail_all(error)
        self._engine.flush_to_disk()

    def _excuse(self, message: dict[str, Any], why: str) -> None:
        """End a request that a mistake of ours broke: whoever waits for it must not wait for ever."""
        why = f"The request could not be taken: {why}."
        self.send_message({"answer": message.get("id"), "refused": why})
        self.send_message({"events": [{"id": message.get("id"), "finish": "error", "error": why}]})

    def _at_work(self, request_id: int) -> None:
        self._crumb[:8] = request_id.to_bytes(8, "little")

    def _take(self, message: dict[str, Any]) -> None:
        match message["do"]:
            case "submit" if message["grammar"] is not None:
                self._rests[message["id"]] = False
                self._workbench.run_later(message["id"], lambda _: self._submit(message))
            case "submit":
                self._submit(message)
            case "cancel":
                self._workbench.cancel_request(message["id"])
                self._engine.cancel_request(message["id"])
            case "pause":
                if message["id"] in self._rests:
                    self._rests[message["id"]] = message["paused"]
                self._engine.pause_request(message["id"], message["paused"])
            case "prompt" | "render" | "tokenize" | "detokenize":
                self._workbench.run_later(message["id"], lambda _: self._answer(message))
            case "counts":
                counts = self._engine.status_counts | {"steps": self._engine.steps}
                self.send_message({"answer": message["id"], "counts": counts})
            case "quit":
                self._engine.run_between_steps(self._stop)

    def _stop(self) -> None:
        self._quit = True

    def _answer(self, message: dict[str, Any]) -> None:
        """Let a worker do a job that foreign text goes into."""
        id, what = message["id"], WORK_ON[message["do"]]
        try:
            answer = self._workbench.ask(id, message | {"n_ctx": self._llama.n_ctx}, what)
        except RigError as error:
            answer = {"refused": error.message}
        except Exception as error:
            log_mistake(error)
            answer = {"refused": f"The request could not be taken: {type(error).__name__}."}
        self.send_message({**answer, "answer": id})
        if len(answer.get("body", "")) + len(message.get("text", "")) > LARGE_TEXT:
            message.clear()
            answer.clear()
            trim_memory()

    def _no_token(self, token: int) -> str:
        return f"There is no token {token}: the vocabulary has {self._llama.n_vocab}."

    def _submit(self, message: dict[str, Any]) -> None:
        id, matcher = message["id"], None
        try:
            refused = self._misfit(message["prompt"], message)
            if not refused and message["grammar"] is not None:
                matcher = self._workbench.open_grammar(id, message["grammar"])
        except RigError as error:
            refused = error.message
        except Exception as error:
            log_mistake(error)
            refused = f"The request could not be taken: {type(error).__name__}."
        if refused:
            self._rests.pop(id, None)
            self.send_message({"events": [{"id": id, "finish": "refused", "error": refused}]})
            return
        try:
            self._add(message, matcher)
        except Exception as error:
            log_mistake(error)
            self._excuse(message, f"{type(error).__name__}: {error}")
            if matcher is not None:
                matcher.close()

    def _add(self, message: dict[str, Any], matcher: Matcher | None) -> None:
        sampling = dict(message["sampling"])
        if message["endless"]:
            never = [(t, -1e9) for t in self._llama.end_tokens]
            sampling["logit_bias"] = [*sampling.get("logit_bias", ()), *never]
        sampling["logit_bias"] = tuple(
            (int(t), float(b)) for t, b in sampling.get("logit_bias", ())
        )
        prompt = message["prompt"]
        notes = [*self._clamped(message), *(matcher.notes if matcher is not None else ())]
        first = {"id": message["id"], "prompt_tokens": len(prompt), "notes": notes}
        self.send_message({"events": [first]})
        self._engine.add_request(
            Request(
                id=message["id"],
                prompt=prompt,
                max_tokens=message["max_tokens"],
                sampling=SamplerParams(**sampling),
                stops=message["stops"],
                matcher=matcher,
                logprobs=message["logprobs"],
                adapters=tuple((int(i), float(s)) for i, s in message["adapters"]),
                urgent=message["urgent"],
                shown={int(token): text.encode() for token, text in message["shown"]},
                already=message["already"],
            )
        )
        if self._rests.pop(message["id"], False):
            self._engine.pause_request(message["id"])
        if self._workbench.is_cancelled(message["id"]):  # while its grammar was read
            self._engine.cancel_request(message["id"])

    def _misfit(self, prompt: list[int], message: dict[str, Any]) -> str:
        n_ctx, n, asked = self._llama.n_ctx, len(prompt), message["max_tokens"]
        tokens = [*prompt, *(t for t, _ in message["sampling"].get("logit_bias", ()))]
        wrong = next((t for t in tokens if not 0 <= t < self._llama.n_vocab), None)
        if wrong is not None:
            return self._no_token(wrong)
        n_adapters = len(self._llama.adapters)
        wrong = next((i for i, _ in message["adapters"] if not 0 <= i < n_adapters), None)
        if wrong is not None:
            return f"There is no adapter {wrong}: {n_adapters} are loaded."
        if n == 0:
            return "The prompt is empty: send at least one token."
        if n >= n_ctx:
            return (
                f"The prompt has {n} tokens and the context holds {n_ctx}, one of them for the reply: "
                f"shorten the prompt, or start the server with a larger --ctx."
            )
        if message["exact"] and asked is not None and n + asked > n_ctx:
            return (
                f"The prompt has {n} tokens, max_tokens asks for {asked} more and the context holds "
                f"{n_ctx}: ask for at most {n_ctx - n}, or start the server with a larger --ctx."
            )
        return ""

    def _clamped(self, message: dict[str, Any]) -> list[str]:
        """What there is to say of a length that there is no room for."""
        room, asked = self._llama.n_ctx - len(message["prompt"]), message["max_tokens"]
        if asked is None or asked <= room:
            return []
        return [f"max_tokens {asked} is more than there is room for: the reply may have {room}."]

    def _emit(self, outputs: list[Output]) -> None:
        self.send_message({"events": [self._plain(output) for output in outputs]})

    def _plain(self, output: Output) -> dict[str, Any]:
        plain = {key: value for key, value in asdict(output).items() if value}
        if output.logprobs:
            plain["logprobs"] = [
                [(self._llama.token_to_piece(t, special=True).hex(), p) for t, p in row]
                for row in output.logprobs
            ]
        return plain


def main() -> None:
    """Load the model of the `EngineConfig` in argv and serve it on stdin and stdout."""
    _, config, crumb = sys.argv
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not get between the lines
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends us
    _die_with_parent()
    configure_log()
    try:
        worker = EngineWorker(EngineConfig.from_json(config), Path(crumb), out)
    except RigError as error:
        out.write(json.dumps({"failed": error.message}).encode() + b"\n")
        out.flush()
        sys.exit(1)
    threading.Thread(target=worker.read_requests, args=(sys.stdin.buffer,), daemon=True).start()
    worker.run_steps()
    os._exit(0)  # the kernel frees faster than destructors do


def cell_family(config: EngineConfig) -> str:
    """Everything that the cells of a prefix depend on, beside the adapters of its request."""
    import llama_cpp

    path = Path(config.model).resolve()
    stat = path.stat()
    file = f"{path} {stat.st_size} {stat.st_mtime_ns}"
    return f"{file} {config.kv_type} {config.flash_attn} llama-cpp-python {llama_cpp.__version__}"


def _die_with_parent() -> None:
    """Linux: leave when the parent is killed, even in the middle of a long decode."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        if os.getppid() == 1:
            os._exit(1)


if __name__ == "__main__":
    main()
