"""A finished GGUF file, loaded by the installed llama.cpp to be measured: tokens, distributions, replies.

The low-level interface, because distributions are wanted for few positions of a long text and the
high-level one keeps them all. Weights stay mapped from the file: no copy is made in memory.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt

from rig.errors import RigError

BATCH = 256
"""Tokens computed at once, and so the most distributions held at once."""

SMALL = 100_000_000
"""Weights below which one thread is faster: so little work is done before threads have met."""

_said: list[str] = []


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
def _hear(level: int, text: bytes, data: ctypes.c_void_p) -> None:
    """Keep the last lines instead of printing them; they explain a failure."""
    _said.append(text.decode("utf-8", "replace"))
    del _said[:-20]


def useful_threads(threads: int, weights: int) -> int:
    """Of `threads`, as many as make a model of `weights` numbers compute faster."""
    return 1 if weights < SMALL else threads


def refuse_unloadable(path: Path) -> None:
    """Stop where llama.cpp does not take a file that was just written; its weights stay on the disk."""
    try:
        with LlamaModel(path, context=0):
            return
    except RigError as error:
        raise RigError(
            f"{error.message.rstrip('.')}. Nothing was kept: the model is of a form that rig takes wrongly."
        ) from None


class LlamaModel:
    """One model in memory; use it as a context manager.

    `vocabulary` loads only the tokenizer. `context` is the most tokens of one text; 0: nothing is
    computed. `watch` is called for every operation of the computation (see `export.quantise.imatrix`).
    `adapter` is a GGUF LoRA applied at run time.
    """

    def __init__(
        self,
        path: Path,
        *,
        vocabulary: bool = False,
        context: int = 512,
        threads: int = 2,
        watch: Callable[[int, bool], bool] | None = None,
        adapter: Path | None = None,
    ) -> None:
        llama_cpp.llama_log_set(_hear, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self._context: Any = None
        asked = llama_cpp.llama_model_default_params()
        asked.vocab_only, asked.n_gpu_layers = vocabulary, 0
        asked.use_extra_bufts = False  # repacking would copy the weights into memory
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), asked)
        if not self._model:
            raise RigError(f"llama.cpp cannot load {path}: {_reason()}")
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)
        self.size = int(llama_cpp.llama_vocab_n_tokens(self._vocab))
        if vocabulary or not context:
            return
        wanted = llama_cpp.llama_context_default_params()
        wanted.n_ctx, wanted.n_batch, wanted.n_ubatch = context, BATCH, BATCH
        wanted.n_threads = wanted.n_threads_batch = threads
        wanted.n_seq_max = 1
        if watch is not None:
            kind = llama_cpp.ggml_backend_sched_eval_callback
            self._watch = kind(lambda tensor, ask, data: watch(tensor, ask))
            wanted.cb_eval = self._watch
        self._context = llama_cpp.llama_init_from_model(self._model, wanted)
        if not self._context:
            raise RigError(f"llama.cpp cannot run {path}: {_reason()}")
        self._batch = llama_cpp.llama_batch_init(BATCH, 0, 1)
        if adapter is not None:
            self._adapt(adapter)

    def __enter__(self) -> LlamaModel:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._context:
            llama_cpp.llama_batch_free(self._batch)
            llama_cpp.llama_free(self._context)
        llama_cpp.llama_model_free(self._model)

    def _adapt(self, adapter: Path) -> None:
        lora = llama_cpp.llama_adapter_lora_init(self._model, str(adapter).encode())
        if not lora:
            raise RigError(f"llama.cpp cannot load the adapter {adapter}: {_reason()}")
        one = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(lora)
        llama_cpp.llama_set_adapters_lora(self._context, one, 1, (ctypes.c_float * 1)(1.0))

    def tokenize_text(self, text: str, *, add: bool = False, special: bool = True) -> list[int]:
        """Cut `text`; `add` what the tokenizer adds by itself, read marks such as <|eot_id|> as `special`."""
        raw = text.encode("utf-8")
        room = len(raw) + 8
        found = (llama_cpp.llama_token * room)()
        count = llama_cpp.llama_tokenize(self._vocab, raw, len(raw), found, room, add, special)
        if count < 0:
            raise RigError(f"llama.cpp could not cut a text of {len(raw)} bytes into tokens.")
        return list(found[:count])

    def detokenize(self, tokens: Sequence[int]) -> str:
        """What the tokens say, special ones left out."""
        room, pieces = ctypes.create_string_buffer(256), b""
        for token in tokens:
            size = llama_cpp.llama_token_to_piece(self._vocab, token, room, 256, 0, False)
            pieces += room.raw[: max(0, size)]
        return pieces.decode("utf-8", "replace")

    def ends_reply(self, token: int) -> bool:
        """Whether a reply is over at this token."""
        return bool(llama_cpp.llama_vocab_is_eog(self._vocab, token))

    def special_token_id(self, name: str) -> int:
        """The id of `bos` or `eos`; -1 where there is none."""
        return int(getattr(llama_cpp, f"llama_vocab_{name}")(self._vocab))

    def adds_bos(self) -> bool:
        """Whether the tokenizer puts its beginning before a text by itself."""
        return bool(llama_cpp.llama_vocab_get_add_bos(self._vocab))

    def compute_logits(self, tokens: Sequence[int], skip: int = 0) -> npt.NDArray[np.float32]:
        """Next-token logits after each token but the first `skip`: (tokens - skip, vocabulary)."""
        self._forget()
        found = np.empty((len(tokens) - skip, self.size), np.float32)
        for start in range(0, len(tokens), BATCH):
            piece = tokens[start : start + BATCH]
            self._compute(piece, start, [start + at >= skip for at in range(len(piece))])
            for at in range(len(piece)):
                if start + at >= skip:
                    found[start + at - skip] = self._row(at)
        return found

    def run_prompt(self, tokens: Sequence[int]) -> None:
        """Compute a text for the sake of `watch`: as from the beginning, nothing kept."""
        self._forget()
        for start in range(0, len(tokens), BATCH):
            piece = tokens[start : start + BATCH]
            self._compute(piece, start, [True] * len(piece))

    def generate_greedy(self, prompt: Sequence[int], limit: int) -> tuple[list[int], bool]:
        """The likeliest continuation, at most `limit` tokens, and whether it ended by itself."""
        self._forget()
        for start in range(0, len(prompt), BATCH):
            piece = prompt[start : start + BATCH]
            last = start + len(piece) == len(prompt)
            self._compute(piece, start, [last and at == len(piece) - 1 for at in range(len(piece))])
        said: list[int] = []
        at = (len(prompt) - 1) % BATCH
        while len(said) < limit:
            token = int(np.argmax(self._row(at)))
            if self.ends_reply(token):
                return said, True
            said.append(token)
            self._compute([token], len(prompt) + len(said) - 1, [True])
            at = 0
        return said, False

    def _row(self, at: int) -> npt.NDArray[np.float32]:
        pointer = llama_cpp.llama_get_logits_ith(self._context, at)
        return np.ctypeslib.as_array(pointer, shape=(self.size,))

    def _forget(self) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)

    def _compute(self, tokens: Sequence[int], start: int, wanted: Sequence[bool]) -> None:
        batch = self._batch
        batch.n_tokens = len(tokens)
        for at, token in enumerate(tokens):
            batch.token[at], batch.pos[at] = token, start + at
            batch.n_seq_id[at], batch.seq_id[at][0] = 1, 0
            batch.logits[at] = wanted[at]
        if code := llama_cpp.llama_decode(self._context, batch):
            raise RigError(f"llama.cpp could not compute (code {code}): {_reason()}")


def _reason() -> str:
    lines = [line.strip() for line in "".join(_said).splitlines() if line.strip()]
    wrong = [line for line in lines if "error" in line.lower() or "fail" in line.lower()]
    return (wrong or lines or ["it does not say why"])[-1]
