"""One worker process as the engine sees it, and a reply's place in a grammar that such a worker keeps."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rig.errors import RigError
from serve.workbench.grammar import unpack_mask

STEP_SECONDS = 0.5
"""Processor time of one step in a grammar."""
PATIENCE = 10.0
"""Seconds on the clock for each second of processor time: the processor may be busy with others."""
MEMORY = "more memory than one request may have"
KILL = getattr(signal, "SIGKILL", signal.SIGTERM)


class Matcher(Protocol):
    """One reply's place in its grammar."""

    notes: tuple[str, ...]
    """What of a schema is not enforced."""

    def consume_token(self, token: int) -> None:
        """Go on by one token."""

    def is_ready(self, seconds: float = 0.0) -> bool:
        """Whether it is known what may follow; waits that long. Ask for the rest only then."""

    def allows_token(self, token: int) -> bool:
        """Whether a token may follow."""

    def allowed_tokens(self, n_vocab: int) -> NDArray[np.bool_]:
        """Which tokens may follow: (n_vocab,)."""

    @property
    def forced_tokens(self) -> list[int]:
        """The tokens that the grammar leaves no choice about."""

    @property
    def is_stopped(self) -> bool:
        """Whether the grammar allows nothing more."""

    @property
    def error(self) -> str:
        """What is wrong with the grammar, found while it ran; empty when nothing is."""

    def close(self) -> None:
        """The reply is done."""


class WorkerGone(RigError):
    """The worker ended before it answered: it took too long, or too much, or was cut off."""


class Worker:
    """One worker process, and the line to it."""

    def __init__(self, line: Connection, pid: int) -> None:
        self._line = line
        self._pid = pid
        self.cut_off = False
        # a number that is free again may soon be another process's; this one stays what it was
        self._handle = os.pidfd_open(pid) if hasattr(os, "pidfd_open") else None
        self._lock = threading.Lock()
        self._gone = False

    def send(self, message: bytes) -> None:
        """Send one message. Raises WorkerGone."""
        try:
            self._line.send_bytes(message)
        except OSError:
            raise WorkerGone("The request was given up.") from None

    def is_waiting(self, seconds: float) -> bool:
        """Whether there is an answer, or nobody any more; waits that long."""
        try:
            return self._line.poll(seconds)
        except OSError:
            return True  # what is received next says that it is gone

    def receive(self, seconds: float, what: str) -> bytes:
        """The next answer; the worker is killed when it takes longer. Raises WorkerGone."""
        began = time.monotonic()
        try:
            if self._line.poll(seconds * PATIENCE):
                return self._line.recv_bytes()
        except (EOFError, OSError):
            pass  # it has ended; by what it shows how long it took
        taken = time.monotonic() - began
        self.kill()
        if self.cut_off:
            raise WorkerGone("The client has left.")
        limit = f"more than {seconds:.1f} s of work" if taken >= seconds * 0.8 else MEMORY
        raise WorkerGone(f"{what} takes {limit}: make it smaller or simpler.")

    def kill(self) -> None:
        """End the process, whatever it does."""
        with self._lock:
            if self._gone:
                return
            self._gone = True
            self._signal()
            self._line.close()
            if self._handle is not None:
                os.close(self._handle)

    def _signal(self) -> None:
        with contextlib.suppress(OSError):  # it has ended already
            if self._handle is not None:
                signal.pidfd_send_signal(self._handle, KILL)
            else:
                os.kill(self._pid, KILL)

    def interrupt(self) -> None:
        """End the process from another thread than the one that waits for it."""
        with self._lock:
            self.cut_off = True
            if not self._gone:
                self._signal()

    def __del__(self) -> None:
        """Nobody can ask it any more."""
        self.kill()


class RemoteMatcher:
    """A reply's place in its grammar, kept by a worker that may be killed.

    After each token the worker says what may follow. Where the grammar left no choice that was known before,
    and need not be waited for.
    """

    def __init__(self, worker: Worker, state: bytes, give_back: Callable[[], None]) -> None:
        self._worker = worker
        self._give_back = give_back
        self._sent = 0
        self._known = 0
        self._began = 0.0
        self._forced: list[int] = []
        self._mask = b""
        self._closed = False
        self.is_stopped = False
        self.error = ""
        self.notes: tuple[str, ...] = tuple(json.loads(state.partition(b"\n")[0]).get("notes", ()))
        self._take_in(state)

    def consume_token(self, token: int) -> None:
        """Go on by one token."""
        if self._forced and self._forced[0] == token:
            self._forced = self._forced[1:]
        else:
            self._forced = []
        self._sent += 1
        self._began = time.monotonic()
        try:
            self._worker.send(json.dumps([token]).encode())
        except WorkerGone:
            self._fail()

    def is_ready(self, seconds: float = 0.0) -> bool:
        """Whether it is known what may follow; waits that long."""
        if self._forced or self.error or self.is_stopped:
            return True
        until = time.monotonic() + seconds
        while self._known < self._sent and not self.error:
            if not self._worker.is_waiting(max(0.0, until - time.monotonic())):
                if time.monotonic() - self._began > STEP_SECONDS * PATIENCE:
                    self._fail()
                    return True
                return False
            self._receive()
        return True

    def allows_token(self, token: int) -> bool:
        """Whether a token may follow."""
        if self._forced and self._forced[0] == token:
            return True
        self._catch_up()
        return token // 8 < len(self._mask) and bool(self._mask[token // 8] >> token % 8 & 1)

    def allowed_tokens(self, n_vocab: int) -> NDArray[np.bool_]:
        """Which tokens may follow: (n_vocab,)."""
        self._catch_up()
        if not self._mask:
            return np.ones(n_vocab, np.bool_)
        return unpack_mask(self._mask, n_vocab)

    @property
    def forced_tokens(self) -> list[int]:
        """The tokens that the grammar leaves no choice about."""
        return self._forced

    def close(self) -> None:
        """The reply is done."""
        if self._closed:
            return
        self._closed = True
        if self._known < self._sent or self.error:
            self._worker.kill()
            return
        try:
            self._worker.send(b"close")
        except WorkerGone:
            self._worker.kill()
            return
        self._give_back()

    def _catch_up(self) -> None:
        """Wait for the state after the last token: the model wrote a forced text in another way."""
        while self._known < self._sent and not self.error:
            if not self._worker.is_waiting(STEP_SECONDS * PATIENCE):
                self._fail()
                return
            self._receive()

    def _receive(self) -> None:
        try:
            self._take_in(self._worker.receive(STEP_SECONDS, "A step in the grammar"))
        except WorkerGone as gone:
            self.error = gone.message

    def _fail(self) -> None:
        self.error = "A step in the grammar takes too long: make it simpler."
        self._worker.kill()

    def _take_in(self, raw: bytes) -> None:
        head, _, mask = raw.partition(b"\n")
        state = json.loads(head)
        self._known = state["done"]
        if self._known == self._sent:
            self._forced, self._mask = state["forced"], mask
            self.is_stopped, self.error = state["stopped"], state["error"]
