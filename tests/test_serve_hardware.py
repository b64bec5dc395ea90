"""What the machine gives: `pytest tests/test_serve_hardware.py`."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from serve.hardware import machine

GIB = 2**30


def huge_pages() -> bool:
    """Whether the C library can ask for huge pages and the kernel gives them."""
    name, version = platform.libc_ver()
    says = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    new = name == "glibc" and tuple(map(int, version.split(".")[:2])) >= (2, 35)
    return new and says.exists() and "[never]" not in says.read_text()


def lay_out(root: Path, files: dict[str, str]) -> Path:
    """A box that we do not own, as the files its kernel would show."""
    for name, text in {"proc/meminfo": meminfo(16, 12), **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n", "utf-8")
    return root


def meminfo(total: float, free: float) -> str:
    return (
        f"MemTotal: {int(total * 2**20)} kB\nMemFree: 1000 kB\nMemAvailable: {int(free * 2**20)} kB"
    )


def topology(cores: list[str]) -> dict[str, str]:
    """`cores` as the kernel writes the logical CPUs of each."""
    return {
        f"sys/devices/system/cpu/cpu{cpu}/topology/core_cpus_list": core
        for core in cores
        for cpu in machine.parse_cpu_list(core)
    }


ALL = frozenset(range(64))


V2 = {"proc/self/cgroup": "0::/user.slice/rig.service"}


RIG = "sys/fs/cgroup/user.slice/rig.service"


PAIRS = [f"{2 * n}-{2 * n + 1}" for n in range(4)]  # four cores with two threads each


BOXES: list[tuple[str, dict[str, str], frozenset[int], int]] = [
    ("N100: four small cores and no others", topology(["0", "1", "2", "3"]), ALL, 4),
    ("NUC11: four cores, eight threads", topology(PAIRS), ALL, 4),
    (
        "threads numbered apart, as on desktops",
        topology([f"{n},{n + 4}" for n in range(4)]),
        ALL,
        4,
    ),
    (
        "i7-12700: eight fast cores with two threads, four slow ones",
        topology([f"{2 * n}-{2 * n + 1}" for n in range(8)] + [str(n) for n in range(16, 20)])
        | {"sys/devices/cpu_core/cpus": "0-15", "sys/devices/cpu_atom/cpus": "16-19"},
        ALL,
        8,
    ),
    (
        "pinned to the slow cores: those are what there is",
        topology([f"{2 * n}-{2 * n + 1}" for n in range(2)] + ["4", "5", "6"])
        | {"sys/devices/cpu_core/cpus": "0-3", "sys/devices/cpu_atom/cpus": "4-6"},
        frozenset({4, 5}),
        2,
    ),
    (
        "RK3588: four A55 and four A76, by capacity",
        topology([str(n) for n in range(8)])
        | {
            f"sys/devices/system/cpu/cpu{n}/cpu_capacity": "530" if n < 4 else "1024"
            for n in range(8)
        },
        ALL,
        4,
    ),
    (
        "two fast kinds on one phone chip: both count, the slow kind does not",
        topology([str(n) for n in range(8)])
        | {
            f"sys/devices/system/cpu/cpu{n}/cpu_capacity": "340"
            if n < 4
            else "870"
            if n < 7
            else "1024"
            for n in range(8)
        },
        ALL,
        4,
    ),
    ("taskset to both threads of one core is one core", topology(PAIRS), frozenset({0, 1}), 1),
    ("taskset to one thread of two cores is two cores", topology(PAIRS), frozenset({0, 2}), 2),
    ("no topology to read, as in some containers", {}, frozenset({0, 1, 2}), 3),
    ("quota of two", topology(PAIRS) | V2 | {f"{RIG}/cpu.max": "200000 100000"}, ALL, 2),
    (
        "quota of one and a half: two threads would be throttled and wait for each other",
        topology(PAIRS) | V2 | {f"{RIG}/cpu.max": "150000 100000"},
        ALL,
        1,
    ),
    (
        "quota of a half is still one",
        topology(PAIRS) | V2 | {f"{RIG}/cpu.max": "50000 100000"},
        ALL,
        1,
    ),
    ("no quota", topology(PAIRS) | V2 | {f"{RIG}/cpu.max": "max 100000"}, ALL, 4),
    (
        "a quota further up holds too",
        topology(PAIRS)
        | V2
        | {f"{RIG}/cpu.max": "max 100000", "sys/fs/cgroup/user.slice/cpu.max": "300000 100000"},
        ALL,
        3,
    ),
    (
        "version 1, in a container that sees the host's path",
        topology(PAIRS)
        | {
            "proc/self/cgroup": "4:cpu,cpuacct:/docker/abc\n5:memory:/docker/abc",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "200000",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
        },
        ALL,
        2,
    ),
    (
        "version 1 without a quota",
        topology(PAIRS)
        | {"proc/self/cgroup": "4:cpu:/", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1"},
        ALL,
        4,
    ),
]


@pytest.mark.parametrize(
    ("files", "affinity", "threads"), [b[1:] for b in BOXES], ids=[b[0] for b in BOXES]
)
def test_threads_are_the_performance_cores_that_are_really_ours(
    tmp_path: Path, files: dict[str, str], affinity: frozenset[int], threads: int
) -> None:
    assert machine.inspect_machine(lay_out(tmp_path, files), affinity).threads == threads


MEMORY: list[tuple[str, dict[str, str], float, float]] = [
    ("no control group", {}, 16, 12),
    ("no limit", V2 | {f"{RIG}/memory.max": "max", f"{RIG}/memory.current": "5"}, 16, 12),
    (
        "a limit: what is used counts, page cache that can go does not",
        V2
        | {
            f"{RIG}/memory.max": str(4 * GIB),
            f"{RIG}/memory.current": str(3 * GIB),
            f"{RIG}/memory.stat": f"anon {GIB}\nfile {2 * GIB}\ninactive_file {2 * GIB}",
        },
        4,
        3,
    ),
    (
        "memory.high slows down before memory.max kills",
        V2
        | {
            f"{RIG}/memory.max": str(8 * GIB),
            f"{RIG}/memory.high": str(6 * GIB),
            f"{RIG}/memory.current": str(GIB),
        },
        6,
        5,
    ),
    (
        "the slice above is tighter",
        V2
        | {
            f"{RIG}/memory.max": str(8 * GIB),
            f"{RIG}/memory.current": str(GIB),
            "sys/fs/cgroup/user.slice/memory.max": str(4 * GIB),
            "sys/fs/cgroup/user.slice/memory.current": str(2 * GIB),
        },
        4,
        2,
    ),
    (
        "a limit above what the machine has free changes nothing",
        V2 | {f"{RIG}/memory.max": str(64 * GIB), f"{RIG}/memory.current": "0"},
        16,
        12,
    ),
    (
        "version 1",
        {
            "proc/self/cgroup": "5:memory:/lxc/box",
            "sys/fs/cgroup/memory/lxc/box/memory.limit_in_bytes": str(2 * GIB),
            "sys/fs/cgroup/memory/lxc/box/memory.usage_in_bytes": str(GIB),
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": str(9 * GIB),
        },
        2,
        1,
    ),
    (
        "already over the limit: nothing, not less than nothing",
        V2 | {f"{RIG}/memory.max": str(GIB), f"{RIG}/memory.current": str(2 * GIB)},
        1,
        0,
    ),
]


@pytest.mark.parametrize(
    ("files", "memory", "free"), [m[1:] for m in MEMORY], ids=[m[0] for m in MEMORY]
)
def test_free_memory_is_what_the_kernel_will_really_give(
    tmp_path: Path, files: dict[str, str], memory: float, free: float
) -> None:
    found = machine.inspect_machine(lay_out(tmp_path, files), frozenset({0}))
    assert (found.memory, found.free) == (memory * GIB, free * GIB)


def test_this_very_box_is_looked_at() -> None:
    found = machine.inspect_machine()
    assert 1 <= found.threads <= (os.cpu_count() or 1)
    assert 0 < found.free <= found.memory
    assert str(found.threads) in found.describe_machine()


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        (None, "glibc.malloc.hugetlb=1"),
        ("glibc.malloc.arena_max=2", "glibc.malloc.arena_max=2:glibc.malloc.hugetlb=1"),
        ("glibc.malloc.hugetlb=0", "glibc.malloc.hugetlb=0"),  # somebody has decided
    ],
)
def test_a_process_with_a_model_asks_for_huge_pages(
    monkeypatch: pytest.MonkeyPatch, before: str | None, expected: str
) -> None:
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    if before is not None:
        monkeypatch.setenv("GLIBC_TUNABLES", before)
    assert machine.model_environment() == {**os.environ, "GLIBC_TUNABLES": expected}


@pytest.mark.skipif(not huge_pages(), reason="needs glibc 2.35 and a kernel that gives huge pages")
def test_the_kernel_gives_them() -> None:
    """64 MiB taken and filled as llama.cpp takes its weights: how much of it lies in huge pages."""
    probe = (
        "import ctypes; n = 64 << 20; at = ctypes.c_void_p(); libc = ctypes.CDLL(None); "
        "libc.posix_memalign(ctypes.byref(at), 64, n); ctypes.memset(at, 1, n); "
        "print(open('/proc/self/smaps_rollup').read())"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe],
        env=machine.model_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    (row,) = (row for row in done.stdout.splitlines() if row.startswith("AnonHugePages"))
    assert int(row.split()[1]) >= 32 << 10, row


def test_a_narrower_affinity_is_seen_by_a_real_process() -> None:
    one = min(os.sched_getaffinity(0))
    code = "from serve.hardware import machine; print(machine.inspect_machine().threads)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        preexec_fn=lambda: os.sched_setaffinity(0, {one}),
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "1"
