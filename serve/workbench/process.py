"""The process from which workers are forked: it reads the vocabulary once, and then only forks.

`python -m serve.workbench.process MODEL TEMPLATE FD`: on the socket FD comes one descriptor for each worker
that is wanted, and back goes its process id. It ends with the engine, whose end of the socket is then gone.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import struct
import sys
from multiprocessing.connection import Connection
from pathlib import Path

from serve.workbench.jobs import NICE, Bench, work

PID = struct.Struct("q")


def lay_out(model: str, template: str) -> Bench:
    """Everything that workers begin with."""
    return Bench(Path(model), Path(template).read_text("utf-8") if template else "")


def work_alone(line: Connection, model: str, template: str) -> None:
    """A worker that was not forked."""
    work(line, lay_out(model, template))


def main() -> None:
    """Fork whenever a descriptor comes."""
    _, model, template, fd = sys.argv
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel clears away who has ended
    os.nice(NICE)
    control = socket.socket(fileno=int(fd))
    bench = lay_out(model, template)
    bench.grammars.prepare()
    gc.freeze()  # pages that nobody writes to stay shared with the workers
    while True:
        asked, descriptors, *_ = socket.recv_fds(control, 1, 1)
        if not asked:
            return
        pid = os.fork()
        if pid == 0:
            try:
                control.close()
                work(Connection(descriptors[0]), bench)
            finally:
                os._exit(1)  # also where native code gives up in its own way
        os.close(descriptors[0])
        control.sendall(PID.pack(pid))


if __name__ == "__main__":
    main()
