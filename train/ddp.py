"""Several GPUs: one process each, all running the same recipe, gradients averaged (data parallel).

The effective batch stays that of the recipe: each GPU takes its share of every step. The parent only starts
the processes and waits; torch's own launcher brings them together.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from rig.errors import RigError, WrongUse
from rig.runs import Run

WORKER = "train.ddp_worker"
WORKERS = "workers"
"""Folder of the run with what the workers leave behind."""
ERROR = "-error.txt"
"""Ends the name of the file in which a worker says why it failed; its number comes first."""


def count_gpus() -> int:
    """CUDA GPUs that this process may use."""
    import torch

    return torch.cuda.device_count()


def check_gpu_count(gpus: int) -> None:
    """Refuse more GPUs than there are, before a run folder is made."""
    there = count_gpus()
    if there and gpus > there:
        raise WrongUse(f"--gpus {gpus}: this machine has {there}.")
    if not there:
        from train.model.backends import why_no_gpu

        raise WrongUse(f"--gpus {gpus} needs CUDA GPUs. {why_no_gpu()}")


def launch_workers(run: Run, gpus: int, *, quiet: bool) -> None:
    """Start `gpus` processes on `run` and wait for them; the first one that fails ends all."""
    command = [
        sys.executable, "-P", "-m", "train.ddp", "--standalone",
        f"--nproc-per-node={gpus}", "--log-dir", str(run.path / WORKERS),
        "-m", WORKER, str(run.path.resolve()), *(["--quiet"] if quiet else []),
    ]  # fmt: skip
    folder = run.path / WORKERS
    folder.mkdir(exist_ok=True)
    for old in folder.glob(f"*{ERROR}"):
        old.unlink()
    env = {"OMP_NUM_THREADS": "1", **os.environ}  # the launcher's choice, without its banner
    env["PYTHONPATH"] = _search_path()
    process = subprocess.Popen(command, env=env, stdout=2)  # stdout belongs to the result
    try:
        code = process.wait()
    except KeyboardInterrupt:
        # The terminal has told the workers as well; they save and leave by themselves.
        code = _wait_on(process)
    if code == 0:
        return
    run.record = Run.open(run.path).record
    if errors := sorted(folder.glob(f"*{ERROR}")):
        message = errors[0].read_text("utf-8")
        run.update_record(error=message)
        raise RigError(message)
    if code in (130, -signal.SIGINT):
        raise KeyboardInterrupt
    raise RigError(f"A worker ended with code {code}: see what it said above.")


def _wait_on(process: subprocess.Popen[bytes]) -> int:
    try:
        process.wait()
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
    return 130


def _search_path() -> str:
    """Workers import the same packages as this process, without the working folder (`-P`)."""
    return os.pathsep.join(path for path in sys.path if path)


def run_torch_launcher(words: list[str]) -> int:
    """torch's launcher without its logs and tracebacks: what went wrong, the workers have said themselves.

    Returns 0, the exit code of the process that failed, or 128 and the signal that ended it.
    """
    import logging

    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    try:
        run.main(words)
    except SignalException as error:
        return 128 + int(error.sigval)
    except ChildFailedError as error:
        code = next(iter(error.failures.values())).exitcode
        return code if code > 0 else 128 - code
    return 0


if __name__ == "__main__":
    sys.exit(run_torch_launcher(sys.argv[1:]))
