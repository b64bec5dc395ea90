"""What this box can give a model: threads from performance cores, affinity, quota; memory really free.

`cpu_count()` lies thrice on a small box: it counts hyper-threads, efficiency cores and cores that a
container or `taskset` took away; and memory "available" ignores the container's own limit. Every file is
read below `root`, so that a box we do not own can be laid out in a folder.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SYSTEM = Path("/")
HUGE_PAGES = "glibc.malloc.hugetlb=1"
"""glibc's malloc asks the kernel for pages of 2 MiB (glibc manual, "Memory Allocation Tunables")."""


@dataclass(frozen=True)
class Machine:
    """Memory in bytes."""

    threads: int
    """How many threads a model may use: performance cores, within affinity and quota."""
    cores: int
    """Physical performance cores of the machine."""
    allowed: int
    """Those of them this process may run on."""
    quota: float | None
    """CPUs that the control group allows at once; None without a limit."""
    memory: int
    """Of the machine, or the control group's limit where that is lower."""
    free: int
    """What can be taken now without pushing anything out but page cache."""

    def describe_machine(self) -> str:
        """Why there are so many threads, for a person."""
        limits = [f"{self.cores} performance core{'s' * (self.cores != 1)}"]
        if self.allowed != self.cores:
            limits.append(f"{self.allowed} allowed here")
        if self.quota is not None:
            limits.append(f"quota {self.quota:g}")
        return (
            f"{self.threads} thread{'s' * (self.threads != 1)} ({', '.join(limits)}), "
            f"{format_bytes(self.free)} of {format_bytes(self.memory)} free"
        )


def inspect_machine(root: Path = SYSTEM, affinity: frozenset[int] | None = None) -> Machine:
    """Look at this box, or at one laid out below `root` (then `affinity` says which CPUs are allowed)."""
    if not (root / "proc/meminfo").is_file():
        return _look_portably()
    allowed = affinity if affinity is not None else frozenset(os.sched_getaffinity(0))
    everywhere = _performance(root, _cores(root))
    here = [core for core in everywhere if core & allowed]
    if (
        not here
    ):  # pinned to efficiency cores, or no topology to read: what is allowed is what counts
        here = [core for core in _cores(root) if core & allowed] or [
            frozenset({c}) for c in allowed
        ]
    quota = min(_quotas(root), default=None)
    threads = len(here) if quota is None else min(len(here), max(1, int(quota)))
    total, free = _memory(root)
    for limit, used in _memory_limits(root):
        total, free = min(total, limit), min(free, max(0, limit - used))
    return Machine(threads, len(everywhere) or len(here), len(here), quota, total, free)


def format_bytes(size: float) -> str:
    """Bytes for a person.

    >>> format_bytes(5 * 2**30), format_bytes(3.85 * 2**20), format_bytes(200 * 2**20)
    ('5.0 GiB', '3.9 MiB', '200 MiB')
    """
    unit, name = (2**30, "GiB") if size >= 2**30 else (2**20, "MiB")
    return f"{size / unit:.{0 if size / unit >= 100 else 1}f} {name}"


def parse_cpu_list(text: str) -> frozenset[int]:
    """The kernel's way to write sets of CPUs.

    >>> sorted(parse_cpu_list("0-2,7"))
    [0, 1, 2, 7]
    """
    found: set[int] = set()
    for piece in filter(None, text.strip().split(",")):
        first, _, last = piece.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)


def _cores(root: Path) -> list[frozenset[int]]:
    """Each physical core as the set of its logical CPUs; empty where the kernel does not say."""
    found = set()
    for folder in (root / "sys/devices/system/cpu").glob("cpu[0-9]*"):
        for name in ("core_cpus_list", "thread_siblings_list"):  # the second one before Linux 5.3
            if text := _text(folder / "topology" / name):
                found.add(parse_cpu_list(text))
                break
    return sorted(found, key=min)


def _performance(root: Path, cores: list[frozenset[int]]) -> list[frozenset[int]]:
    """Without the slow cores of a mixed CPU: a batch is as fast as its slowest thread."""
    fast = parse_cpu_list(
        _text(root / "sys/devices/cpu_core/cpus")
    )  # Intel, only where there are two kinds
    if not fast:
        folder = root / "sys/devices/system/cpu"
        capacity = {
            min(c): _number(folder / f"cpu{min(c)}/cpu_capacity") or 0 for c in cores
        }  # Arm
        best = max(capacity.values(), default=0)
        fast = frozenset(cpu for cpu, found in capacity.items() if found >= 0.6 * best)
    return [core for core in cores if core & fast] or cores


def _quotas(root: Path) -> Iterator[float]:
    for folder in _groups(root, "cpu"):
        quota, _, period = _text(folder / "cpu.max").partition(" ")
        if quota.isdigit() and period.strip().isdigit():
            yield int(quota) / int(period)
        old = _number(folder / "cpu.cfs_quota_us")
        if old is not None and old > 0:
            yield old / (_number(folder / "cpu.cfs_period_us") or 100_000)


def _memory(root: Path) -> tuple[int, int]:
    rows = (line.split(":") for line in _text(root / "proc/meminfo").splitlines() if ":" in line)
    table = {name: int(value.split()[0]) * 1024 for name, value in rows}
    return table["MemTotal"], table.get("MemAvailable", table["MemFree"])


def _memory_limits(root: Path) -> Iterator[tuple[int, int]]:
    """(limit, in use without page cache that can go) of each control group above this process."""
    for folder in _groups(root, "memory"):
        pairs = (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.high", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        )
        for limit_name, used_name, cache_name in pairs:
            limit, used = _number(folder / limit_name), _number(folder / used_name)
            if limit is None or used is None or limit >= 2**62:  # version 1 writes "none" as 2**63
                continue
            rows = dict(r.split() for r in _text(folder / "memory.stat").splitlines() if " " in r)
            yield limit, max(0, used - int(rows.get(cache_name, 0)))


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The control group of this process and all above it, in whichever version has the controller.

    Inside a container the path is often the host's and not to be found: then the mount itself is ours.
    """
    base = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, names, path = line.split(":", 2)
        if names and controller not in names.split(","):
            continue
        mount = next((m for m in (base / names, base / controller) if m.is_dir()), base)
        mount = base if not names else mount
        inside = mount / path.strip("/")
        while True:
            if inside.is_dir():
                yield inside
            if inside == mount:
                break
            inside = inside.parent


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError:  # absent, or there and not readable (a CPU that is offline)
        return ""


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.lstrip("-").isdigit() else None


def _look_portably() -> Machine:
    """Windows and macOS, through psutil; no control groups there."""
    import psutil

    physical = psutil.cpu_count(logical=False) or psutil.cpu_count() or 1
    logical = psutil.cpu_count() or physical
    process = psutil.Process()
    may = len(process.cpu_affinity()) if hasattr(process, "cpu_affinity") else logical
    allowed = max(1, min(physical, may * physical // logical))
    memory = psutil.virtual_memory()
    return Machine(allowed, physical, allowed, None, memory.total, memory.available)


def model_environment() -> dict[str, str]:
    """The environment of a process that holds a model: ours, and its memory in huge pages.

    For each token all weights are read once, and with pages of 4 KiB about a tenth of that time goes into
    looking up where they are (benchmarks/RESULTS.md). A kernel that grants none, and a C library that
    is not glibc, take no notice; a `GLIBC_TUNABLES` that decides it already is left as it is.
    """
    given = os.environ.get("GLIBC_TUNABLES", "")
    if "glibc.malloc.hugetlb" in given:
        return dict(os.environ)
    return {**os.environ, "GLIBC_TUNABLES": f"{given}:{HUGE_PAGES}".lstrip(":")}


def trim_memory() -> None:
    """Give freed memory back to the system: glibc keeps that of large texts for the next ones."""
    gc.collect()
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # another C library than glibc
            ctypes.CDLL(None).malloc_trim(0)
