"""Workers as the engine sees them: jobs are handed out, waited for, cut off, and called back.

Nothing here computes: threads wait for workers, and a worker that takes too long, or whose client has left,
is killed. So nobody's text can hold up the others, however it is made.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import queue
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

from rig.errors import RigError
from serve.log import log_mistake, logger
from serve.workbench.process import PID, work_alone
from serve.workbench.remote import STEP_SECONDS, RemoteMatcher, Worker, WorkerGone

THREADS = 8
"""Jobs at a time; each is a process of its own, so that a short one ends beside long ones."""
SPARE = 2
"""Workers that stay for the next job."""
SECONDS = 1.0
"""Processor time of a job."""
SECONDS_PER_MB = 2.0
CAN_FORK = hasattr(socket, "send_fds") and hasattr(os, "fork")


class Workbench:
    """Workers for one model; `template` is a file with a chat template in place of the model's own."""

    def __init__(self, model: str, template: str = "") -> None:
        self._model = model
        self._template = template
        self._jobs: queue.Queue[tuple[int, Callable[[Workbench], None] | None]] = queue.Queue()
        self._lock = threading.Lock()
        self._spare: list[Worker] = []
        self._at_work: dict[int, Worker] = {}
        self._pending: set[int] = set()
        self._cancelled: set[int] = set()
        self._control: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._start_process()
        for _ in range(THREADS):
            threading.Thread(target=self._run_jobs, daemon=True).start()

    def run_later(self, id: int, task: Callable[[Workbench], None]) -> None:
        """Run `task` in a thread, where it may `ask` and `open_grammar` for request `id`."""
        with self._lock:
            self._pending.add(id)
        self._jobs.put((id, task))

    def cancel_request(self, id: int) -> None:
        """Nobody waits for what is done for this request."""
        with self._lock:
            if id not in self._pending:
                return
            self._cancelled.add(id)
            worker = self._at_work.get(id)
        if worker is not None:
            worker.interrupt()

    def is_cancelled(self, id: int) -> bool:
        """Whether the client of a request whose task still runs has left."""
        with self._lock:
            return id in self._cancelled

    def ask(self, id: int, job: dict[str, Any], what: str) -> dict[str, Any]:
        """The answer of a worker to one job. Raises RigError, also for one that takes too much."""
        raw = json.dumps(job | {"seconds": SECONDS}).encode()
        seconds = SECONDS + SECONDS_PER_MB * len(raw) / 1e6
        raw = json.dumps(job | {"seconds": seconds}).encode()
        with self._worker_for(id) as worker:
            worker.send(raw)
            answer: dict[str, Any] = json.loads(worker.receive(seconds, what))
            self._give_back(worker)
        return _unless_refused(answer)

    def open_grammar(self, id: int, asked: dict[str, Any]) -> RemoteMatcher:
        """A reply's place in a grammar, which keeps a worker until it is closed. Raises RigError."""
        what = "The JSON schema" if "schema" in asked else "The grammar"
        job = {"do": "grammar", "asked": asked, "seconds": SECONDS, "step_seconds": STEP_SECONDS}
        with self._worker_for(id) as worker:
            worker.send(json.dumps(job).encode())
            raw = worker.receive(SECONDS + STEP_SECONDS, what)
            if b"\n" in raw:
                return RemoteMatcher(worker, raw, lambda: self._give_back(worker))
            self._give_back(worker)
        raise RigError(_unless_refused(json.loads(raw)).get("refused", f"{what} can't be read."))

    def close(self) -> None:
        """End all processes but those of grammars in use, which end with their replies."""
        for _ in range(THREADS):
            self._jobs.put((0, None))
        with self._lock:
            for worker in (*self._spare, *self._at_work.values()):
                worker.interrupt()
            self._spare.clear()
            self._end_process()

    def _run_jobs(self) -> None:
        while True:
            id, task = self._jobs.get()
            if task is None:
                return
            try:
                task(self)
            except Exception as error:
                log_mistake(error)
            with self._lock:
                self._pending.discard(id)
                self._cancelled.discard(id)

    @contextlib.contextmanager
    def _worker_for(self, id: int) -> Iterator[Worker]:
        with self._lock:
            if id in self._cancelled:
                raise WorkerGone("The client has left.")
            worker = self._take_spare() or self._new_worker()
            self._at_work[id] = worker
        try:
            yield worker
        except BaseException:
            worker.kill()
            raise
        finally:
            with self._lock:
                self._at_work.pop(id, None)

    def _take_spare(self) -> Worker | None:
        while self._spare:
            worker = self._spare.pop()
            if not worker.is_waiting(0.0):
                return worker
            worker.kill()  # it says something although nobody asked: it has ended
        return None

    def _give_back(self, worker: Worker) -> None:
        with self._lock:
            if len(self._spare) < SPARE and not worker.cut_off:
                self._spare.append(worker)
                return
        worker.kill()

    # The processes ----------------------------------------------------------------------------

    def _start_process(self) -> None:
        """Start the process that forks; where nothing can be forked, workers are started one by one."""
        if not CAN_FORK:
            return
        self._end_process()
        ours, theirs = socket.socketpair()
        with theirs:
            words = [sys.executable, "-P", "-m", "serve.workbench.process"]
            self._process = subprocess.Popen(
                [*words, self._model, self._template, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=_small_pages(),
            )
        self._control = ours

    def _end_process(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _new_worker(self) -> Worker:
        """A new worker; the process that forks is started again when it has ended."""
        if not CAN_FORK:
            return self._spawn_worker()
        for _ in range(2):
            ours, theirs = socket.socketpair()
            with theirs:
                try:
                    assert self._control is not None
                    socket.send_fds(self._control, [b"f"], [theirs.fileno()])
                    if raw := self._control.recv(PID.size, socket.MSG_WAITALL):
                        return Worker(Connection(ours.detach()), PID.unpack(raw)[0])
                except OSError as error:
                    log_mistake(error)
            ours.close()
            self._start_process()
        raise RigError("There is no process for this request: the machine may be out of memory.")

    def _spawn_worker(self) -> Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(
            target=work_alone, args=(theirs, self._model, self._template), daemon=True
        )
        process.start()
        theirs.close()
        assert process.pid is not None
        return Worker(ours, process.pid)


def _unless_refused(answer: dict[str, Any]) -> dict[str, Any]:
    if "trace" in answer:
        logger.error("A mistake in a worker: %s", answer["trace"])
    if "refused" in answer:
        raise RigError(answer["refused"])
    return answer


def _small_pages() -> dict[str, str]:
    """Our environment without huge pages: a worker would copy two megabytes for each byte it changes."""
    tuned = os.environ.get("GLIBC_TUNABLES", "").split(":")
    kept = ":".join(one for one in tuned if not one.startswith("glibc.malloc.hugetlb"))
    return {**os.environ, "GLIBC_TUNABLES": kept}
