"""llama.cpp as this room needs it: one model, one context, one batch; every raw pointer stays in here.

Built on the low-level bindings of llama-cpp-python: its `Llama` class serves one sequence at a time and
copies the scores of the whole vocabulary for each token. Knows nothing of requests.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import llama_cpp as lib
import numpy as np
from numpy.typing import NDArray

from rig.errors import RigError
from serve.workbench.vocabulary import Vocabulary

KV_TYPES = {"f16": 1, "q8_0": 8}
FLASH_AUTO, FLASH_OFF = -1, 0
FLASH_TILE = 64
"""From this many rows on llama.cpp computes attention in tiles, with other rounding than below."""
WARN = 3

_said: list[str] = []
"""The last warnings and errors of llama.cpp, for the sentence about a model that does not load."""


def _log(level: int, text: bytes, _data: Any) -> None:
    if level in (WARN, WARN + 1):
        line = text.decode("utf-8", "replace").rstrip()
        _said[:] = [*_said[-9:], line]
        if os.environ.get("RIG_SERVE_LOG"):
            print(line, file=sys.stderr, flush=True)


_LOG = lib.llama_log_callback(_log)


def model_params() -> Any:
    """llama.cpp's defaults for loading, without its AMX kernels (server processors only).

    GCC 12 drops the stores that set up the tiles (its `_tile_loadconfig` tells it of 8 bytes of 64), and a
    prompt of several tokens ended the process with SIGSEGV (seen with a Q8_0 file; others were not tried).
    AMX goes only together with the other repacked kernels, so the Makefile builds llama.cpp without it; this
    is for every other installation.
    """
    params = lib.llama_model_default_params()
    params.use_extra_bufts = b"AMX_INT8 = 1" not in lib.llama_print_system_info()
    return params


class LlamaContext(Vocabulary):
    """One loaded model with one context of `n_ctx` cells that `n_seq` sequences share.

    Raises RigError when the file can't be loaded or the context can't be made.
    """

    def __init__(
        self,
        path: Path,
        *,
        ctx: int,
        batch: int,
        sequences: int,
        threads: int,
        kv_type: str = "f16",
        flash_attn: bool = True,
        mlock: bool = False,
        adapters: Sequence[Path] = (),
    ) -> None:
        lib.llama_log_set(_LOG, ctypes.c_void_p(0))
        lib.llama_backend_init()
        super().__init__(self._load(path, mlock))
        self.n_ctx_train = int(lib.llama_model_n_ctx_train(self.model))
        self.adapters = [self._adapter(adapter) for adapter in adapters]
        self.ctx = self._context(ctx, batch, sequences, threads, kv_type, flash_attn)
        self.n_ctx = int(lib.llama_n_ctx(self.ctx))
        self.n_seq = sequences
        self.n_threads = threads
        self.n_batch = int(lib.llama_n_batch(self.ctx))
        self.memory = lib.llama_get_memory(self.ctx)
        recurrent = lib.llama_model_is_recurrent(self.model)
        self.can_rewind = not (recurrent or lib.llama_model_is_hybrid(self.model))
        """Whether a sequence can be cut back; a recurrent state can only go forward."""
        self._stop_on_flag()
        self._make_batch()
        prototype = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32)
        self._logits_at = prototype(("llama_get_logits_ith", lib.llama_cpp._lib))
        self._row: Any = ctypes.c_float * self.n_vocab
        self._ctx_address = ctypes.cast(self.ctx, ctypes.c_void_p)

    def _load(self, path: Path, mlock: bool) -> Any:
        params = model_params()
        params.n_gpu_layers = 0
        if mlock:
            params.load_mode = lib.LLAMA_LOAD_MODE_MMAP_MLOCK
        _said.clear()
        model = lib.llama_model_load_from_file(os.fsencode(path), params)
        if not model:
            raise RigError(f"llama.cpp can't load {path}: {_reason()}")
        if lib.llama_model_has_encoder(model):
            raise RigError(f"{path} is an encoder model: rig serves models that write text.")
        return model

    def _adapter(self, path: Path) -> Any:
        _said.clear()
        adapter = lib.llama_adapter_lora_init(self.model, os.fsencode(path))
        if not adapter:
            raise RigError(
                f"llama.cpp can't load the LoRA adapter {path} for this model: {_reason()}"
            )
        return adapter

    def _context(
        self, ctx: int, batch: int, sequences: int, threads: int, kv_type: str, flash_attn: bool
    ) -> Any:
        params = lib.llama_context_default_params()
        params.n_ctx = ctx
        # each sequence may want logits in one decode: with fewer rows llama.cpp ends the process
        params.n_batch = params.n_ubatch = max(min(batch, ctx), sequences)
        params.n_seq_max = sequences
        params.n_threads = params.n_threads_batch = threads
        params.type_k = params.type_v = KV_TYPES[kv_type]
        params.flash_attn_type = FLASH_AUTO if flash_attn else FLASH_OFF
        params.kv_unified = True  # a prefix is shared by reference, and one request may use it all
        params.swa_full = True  # else a prefix of a sliding-window model can't be cut back
        params.no_perf = True
        params.offload_kqv = params.op_offload = False
        _said.clear()
        context = lib.llama_init_from_model(self.model, params)
        if not context:
            raise RigError(
                f"There is no memory for a context of {ctx} tokens: give a smaller --ctx"
                f" ({_reason()})"
            )
        return context

    def _stop_on_flag(self) -> None:
        """Let `stop_now` end a running decode.

        llama.cpp asks `bool callback(void *)` between graph nodes. A Python callback would take the
        interpreter lock each time; libc's strlen needs none: "" is 0 (go on), "x" is 1 (stop).
        """
        self._flag = ctypes.create_string_buffer(2)
        libc = ctypes.CDLL("msvcrt" if os.name == "nt" else None)
        self._strlen = ctypes.cast(libc.strlen, lib.ggml_abort_callback)
        lib.llama_set_abort_callback(self.ctx, self._strlen, ctypes.addressof(self._flag))

    def stop_now(self, stop: bool = True) -> None:
        """End the decode that is running in another thread (it returns 2), or allow decodes again."""
        self._flag[0] = b"x" if stop else b"\0"

    def _make_batch(self) -> None:
        n = self.n_batch
        # one number for each row of a decode, (n_batch,): llama.cpp reads these very arrays
        self.token: NDArray[np.int32] = np.zeros(n, np.int32)
        self.pos: NDArray[np.int32] = np.zeros(n, np.int32)
        self.seq: NDArray[np.int32] = np.zeros(n, np.int32)
        self.wants_logits: NDArray[np.int8] = np.zeros(n, np.int8)
        # a row may belong to several sequences: here to one, `seq[row]`, so its list is the address of that
        self._ones = np.ones(n, np.int32)
        self._seq_at = self.seq.ctypes.data + 4 * np.arange(n, dtype=np.uintp)
        self._batch = lib.llama_batch(
            n_tokens=0,
            token=_pointer(self.token, ctypes.c_int32),
            pos=_pointer(self.pos, ctypes.c_int32),
            n_seq_id=_pointer(self._ones, ctypes.c_int32),
            seq_id=_pointer(self._seq_at, ctypes.POINTER(ctypes.c_int32)),
            logits=_pointer(self.wants_logits, ctypes.c_int8),
        )

    def decode(self, n: int) -> int:
        """Run the first `n` rows of `token`, `pos`, `seq`, `wants_logits`.

        Returns 0 when done, 1 when no cells are free (nothing changed), 2 when stopped (nothing kept),
        below 0 on an error.
        """
        self._batch.n_tokens = n
        return int(lib.llama_decode(self.ctx, self._batch))

    def row_logits(self, row: int) -> NDArray[np.float32]:
        """The scores of the last decode at batch row `row`: a view, valid until the next decode."""
        address = self._logits_at(self._ctx_address, row)
        if not address:
            raise RuntimeError(f"row {row} has no logits")
        return np.frombuffer(self._row.from_address(address), np.float32)  # (n_vocab,)

    def use_threads(self, n: int) -> None:
        """Compute with `n` threads from the next decode on."""
        lib.llama_set_n_threads(self.ctx, n, n)

    def use_adapters(self, chosen: Sequence[tuple[int, float]]) -> None:
        """Apply LoRA adapters (index, scale) to every following decode."""
        n = len(chosen)
        kinds = (lib.llama_adapter_lora_p_ctypes * n)(*(self.adapters[i] for i, _ in chosen))
        scales = (ctypes.c_float * n)(*(scale for _, scale in chosen))
        lib.llama_set_adapters_lora(self.ctx, kinds, n, scales)

    # Memory of sequences ----------------------------------------------------------------------

    def share_cells(self, source: int, target: int, length: int) -> None:
        """Let `target` begin with the first `length` cells of `source`; nothing is copied."""
        lib.llama_memory_seq_cp(self.memory, source, target, 0, length)

    def truncate_cells(self, seq: int, length: int = 0) -> None:
        """Forget everything of `seq` from position `length` on."""
        lib.llama_memory_seq_rm(self.memory, seq, length if length else -1, -1)

    def state_size(self, seq: int) -> int:
        """How many bytes `get_state` would have."""
        return int(lib.llama_state_seq_get_size(self.ctx, seq))

    def get_state(self, seq: int) -> NDArray[np.uint8]:
        """The cells of one sequence as bytes."""
        size = self.state_size(seq)
        data = np.empty(size, np.uint8)  # keys and values of all layers, as llama.cpp lays them out
        at = data.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        written = int(lib.llama_state_seq_get_data(self.ctx, at, size, seq))
        return data[:written]

    def restore_state(self, seq: int, data: NDArray[np.uint8]) -> bool:
        """Fill the empty sequence `seq` from `get_state` bytes; False when they don't fit."""
        at = data.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        return bool(lib.llama_state_seq_set_data(self.ctx, at, len(data), seq))

    # Words ------------------------------------------------------------------------------------

    def read_metadata(self) -> dict[str, str]:
        """The GGUF's scalar metadata as text."""
        found = {}
        for i in range(int(lib.llama_model_meta_count(self.model))):
            key = self._meta(lib.llama_model_meta_key_by_index, i)
            found[key] = self._meta(lib.llama_model_meta_val_str_by_index, i)
        return found

    def _meta(self, ask: Any, index: int) -> str:
        room = 4096
        while True:
            buffer = ctypes.create_string_buffer(room)
            n = int(ask(self.model, index, buffer, room))
            if n < room:
                return buffer.value.decode("utf-8", "replace")
            room = n + 1

    def model_info(self) -> dict[str, Any]:
        """What others may know of the model: sizes, metadata, words of the vocabulary."""
        control = [t for t in range(self.n_vocab) if self.is_control(t)]
        return {
            "n_ctx": self.n_ctx,
            "n_ctx_train": self.n_ctx_train,
            "n_vocab": self.n_vocab,
            "n_params": int(lib.llama_model_n_params(self.model)),
            "size": int(lib.llama_model_size(self.model)),
            "metadata": self.read_metadata(),
            "chat_template": self.chat_template,
            "bos": self._word(self.bos),
            "eos": self._word(self.eos),
            "adds_bos": bool(lib.llama_vocab_get_add_bos(self.vocab)),
            "ends": self.end_tokens,
            "longest_token": self.longest_token(),
            "control": sorted({word for t in control if (word := self._word(t))}),
        }

    def _word(self, token: int) -> str:
        return (
            self.token_to_piece(token, special=True).decode("utf-8", "replace")
            if token >= 0
            else ""
        )


def _pointer(array: NDArray[Any], kind: Any) -> Any:
    return array.ctypes.data_as(ctypes.POINTER(kind))


def _reason() -> str:
    lines = [line for line in _said if line.strip()]
    return lines[-1] if lines else "it does not say why."
