"""Beginnings of prompts kept on disk, so that they are there after a restart and after an unload.

One file holds the tokens and the cells of one sequence. What is kept: the first `LONGEST` tokens of a
prompt of which less than half is on disk already. Two limits: bytes on disk, oldest use first, and bytes
written in a day, because a small box has a small SSD and must run for months.
"""

from __future__ import annotations

import hashlib
import struct
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rig.atomic import atomic_file
from serve.engine.kv_slots import Adapters, common_prefix_length

MAGIC = b"rigkv\x01"
HEAD = struct.Struct("<6s32sII")
"""Magic, digest of everything the cells depend on, number of tokens, CRC-32 of tokens and cells."""
LONGEST = 2048
SHORTEST = 256
"""Reading fewer tokens again costs less than the file."""
WORTH_LOADING = 64
REFILL_SECONDS = 6 * 3600.0
"""The limit's worth of bytes may be written in this time."""


@dataclass(frozen=True)
class KVFile:
    """One file, and how much of it a prompt can use."""

    path: Path
    key: bytes
    tokens: list[int]
    num_common_tokens: int = 0

    @property
    def num_cells(self) -> int:
        """Cells that it fills."""
        return len(self.tokens)


class DiskKVCache:
    """The prefixes of one model below `folder`; `limit` is bytes for all models together.

    `family` names all that cells depend on beside the adapters: the model file, its context settings.
    """

    def __init__(self, folder: Path, limit: int, family: str) -> None:
        self._folder = folder
        self._limit = limit
        self._family = family
        self._budget = float(limit)
        self._budget_at = time.monotonic()
        self._pending: list[tuple[list[int], Adapters, float]] = []
        self._writer: threading.Thread | None = None
        self.wake: Callable[[], None] = lambda: None
        """Called from the writing thread when the next prefix may be written."""
        self._kept: list[KVFile] = []
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for path in folder.glob("*.kv"):
            if (found := _head(path)) is not None:
                self._kept.append(found)

    def longest_prefix(
        self, tokens: list[int], adapters: Adapters, more_than: int
    ) -> KVFile | None:
        """The file with the longest common beginning, if it is worth more than what is there."""
        key = self._key(adapters)
        best = None
        for kept in self._kept:
            if kept.key == key:
                common = common_prefix_length(kept.tokens, tokens, len(tokens) - 1)
                if common >= more_than + WORTH_LOADING and (
                    best is None or common > best.num_common_tokens
                ):
                    best = KVFile(kept.path, kept.key, kept.tokens, common)
        return best

    def read_cells(self, kept: KVFile) -> NDArray[np.uint8] | None:
        """The cells of a file; None (and the file is gone) when it is damaged or absent."""
        try:
            # one array of bytes: head (HEAD.size,), tokens (4 * n,), cells (the rest,)
            data = np.fromfile(kept.path, np.uint8)
            _, key, n, check = HEAD.unpack_from(data.data)
            if key == kept.key and zlib.crc32(data[HEAD.size :].data) == check:
                kept.path.touch()
                cells: NDArray[np.uint8] = data[HEAD.size + 4 * n :]
                return cells
        except (OSError, struct.error):
            pass  # gone since the listing, or cut short: it is forgotten like a damaged one
        self.delete_file(kept)
        return None

    def delete_file(self, kept: KVFile) -> None:
        """Forget a file."""
        self._kept = [other for other in self._kept if other.path != kept.path]
        kept.path.unlink(missing_ok=True)

    def note_prompt(self, prompt: list[int], adapters: Adapters) -> None:
        """A prompt was read: put its beginning on the list of what is to be written, if that pays."""
        tokens = prompt[:LONGEST]
        key = self._key(adapters)
        known = [kept.tokens for kept in self._kept if kept.key == key]
        known += [waiting for waiting, of, _ in self._pending if of == adapters]
        covered = max(
            (common_prefix_length(other, tokens, len(tokens)) for other in known), default=0
        )
        if len(tokens) - covered >= max(SHORTEST, len(tokens) // 2):
            self._pending.append((tokens, adapters, time.monotonic()))

    def pop_pending(self, *, older_than: float = 0.0) -> tuple[list[int], Adapters] | None:
        """The next prefix to write that has waited for so many seconds; None while one is written."""
        if not self._pending or (self._writer is not None and self._writer.is_alive()):
            return None
        if time.monotonic() - self._pending[0][2] < older_than:
            return None
        tokens, adapters, _ = self._pending.pop(0)
        return tokens, adapters

    def write_file(
        self, tokens: Sequence[int], adapters: Adapters, cells: NDArray[np.uint8]
    ) -> None:
        """Write one file in a thread of its own; not at all when it breaks a limit."""
        key = self._key(adapters)
        numbers = np.asarray(tokens, np.int32)
        size = HEAD.size + numbers.nbytes + cells.nbytes
        if size > self._limit or size > self._allowance():
            return
        self._budget -= size
        name = hashlib.sha256(key + numbers.tobytes()).hexdigest()[:32]
        kept = KVFile(self._folder / f"{name}.kv", key, list(tokens))
        self._writer = threading.Thread(target=self._write, args=(kept, numbers, cells, size))
        self._writer.start()

    def wait_for_writer(self) -> None:
        """Wait for the file that is being written."""
        if self._writer is not None:
            self._writer.join()

    def _write(
        self, kept: KVFile, numbers: NDArray[np.int32], cells: NDArray[np.uint8], size: int
    ) -> None:
        try:
            self._make_room(size)
            check = zlib.crc32(cells.data, zlib.crc32(numbers.data))
            with atomic_file(kept.path) as temporary, temporary.open("wb") as file:
                file.write(HEAD.pack(MAGIC, kept.key, len(numbers), check))
                file.write(numbers.data)
                file.write(cells.data)
            kept.path.chmod(0o600)  # it holds what somebody wrote to the model
            self._kept = [*(k for k in self._kept if k.path != kept.path), kept]
        except OSError:
            self._budget = 0.0  # a full or broken disk is no reason to stop answering
        self.wake()

    def _make_room(self, size: int) -> None:
        stats = sorted((p.stat().st_mtime, p.stat().st_size, p) for p in self._folder.glob("*.kv"))
        total = sum(bytes_ for _, bytes_, _ in stats)
        for _, bytes_, path in stats:
            if total + size <= self._limit:
                return
            path.unlink(missing_ok=True)
            self._kept = [kept for kept in self._kept if kept.path != path]
            total -= bytes_

    def _allowance(self) -> float:
        now = time.monotonic()
        gained = (now - self._budget_at) / REFILL_SECONDS * self._limit
        self._budget, self._budget_at = min(self._budget + gained, float(self._limit)), now
        return self._budget

    def _key(self, adapters: Adapters) -> bytes:
        return hashlib.sha256(f"{self._family} {adapters}".encode()).digest()


def _head(path: Path) -> KVFile | None:
    try:
        with path.open("rb") as file:
            magic, key, n, _ = HEAD.unpack(file.read(HEAD.size))
            tokens = np.frombuffer(file.read(4 * n), np.int32)
    except (OSError, struct.error):
        return None
    return KVFile(path, key, tokens.tolist()) if magic == MAGIC and len(tokens) == n else None
