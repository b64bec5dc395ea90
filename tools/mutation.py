"""Which small faults the tests would miss: `pip install mutmut==3.8.1`, then `python -m tools.mutation`.

The faults are mutmut's (a border moved, an operator swapped, an argument left out). Its own runner leaves out
module level, properties and everything decorated, and knows one set of tests for a whole tree; here one
process imports the libraries, and for each mutant a fork of it runs only the tests that reach the line.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.abc
import importlib.util
import json
import math
import os
import pickle
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
OURS = ("rig", "train", "export", "serve", "bots", "tools", "tests", "support", "conftest")
QUIET = ("-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning")
SLOW = 2.0
"""Seconds of CPU: a test that takes longer is not asked while a faster one reaches the line."""
ENOUGH = 8.0
"""Seconds of CPU that the tests of one mutant may take together."""

GROUPS: dict[str, tuple[list[str], list[str]]] = {
    "formats": (["export/quantise/ggml.py", "export/quantise/quant_types.py"], ["export_quantise_*"]),
    "adapters": (["export/checkpoint/adapter.py"], ["export_checkpoint_adapter*"]),
    "answers": (["train/data/answers.py", "train/data/[flnu]*.py"], ["train_data_[am]*"]),
    "rewards": (["train/rewards/*.py"], ["train_rewards*"]),
    "power": (["train/monitor/power.py"], ["train_monitor_power*"]),
    "caches": (["serve/engine/kv_*.py"], ["serve_engine_kv_*"]),
    "packing": (["train/model/packing.py", "train/model/generate.py"], ["train_model_[pg]*"]),
    "ledger": (["bots/ledger/*.py"], ["bots_ledger*", "bots_daemon_delivery", "bots_commands"]),
    "outlets": (["bots/outlets/*.py"], ["bots_outlets*"]),
}  # fmt: skip
"""Modules and the tests that are asked; a doctest of a module counts among its tests."""

DECLARATIONS = ("bots/ledger/tables.py",)
"""No line of it decides anything: columns, whose names every statement uses."""


@dataclass
class Mutant:
    """One small fault."""

    module: str
    line: int
    old: str
    new: str
    write: Callable[[], str] = field(repr=False)
    """Makes the whole source with the fault in it."""
    reached_by: list[str] = field(default_factory=list, repr=False)
    verdict: str = ""
    """`killed`, `survived`, or `not reached`, which counts as survived."""

    @property
    def name(self) -> str:
        """What stays the same while its lines move."""
        return f"{self.module}: {self.old} -> {self.new}"


@dataclass
class Reached:
    """What a run of the sound code showed."""

    lines: dict[str, dict[int, list[str]]]
    """By file and line, the tests that ran it; "" is an import."""
    seconds: dict[str, float]
    """CPU time of each test that passes."""
    libraries: list[str]


# ----------------------------------------------------------------------------------------------------------
# Making them


def make_mutants(path: Path) -> list[tuple[Mutant, int, int]]:
    """Each mutant of a file, and the first and last line of its statement."""
    import libcst as cst
    from libcst.metadata import MetadataWrapper, PositionProvider
    from mutmut.mutation.mutators import mutation_operators

    wrapper = MetadataWrapper(cst.parse_module(path.read_text("utf-8")))
    places = wrapper.resolve(PositionProvider)
    compound = (cst.If, cst.While, cst.For, cst.With, cst.FunctionDef, cst.Match, cst.Try)
    found: list[tuple[Any, Any, Any]] = []

    class Visitor(cst.CSTVisitor):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.within: list[cst.CSTNode] = []

        def on_visit(self, node: cst.CSTNode) -> bool:
            if isinstance(node, cst.Annotation | cst.Decorator) or is_message(node):
                return False
            if isinstance(node, (cst.SimpleStatementLine, cst.ClassDef, *compound)):
                self.within.append(node)
            for kind, operator in mutation_operators:
                if isinstance(node, kind) and node in places:
                    found.extend((node, other, self.within[-1]) for other in operator(node))
            return True

        def on_leave(self, node: cst.CSTNode) -> None:
            if self.within and self.within[-1] is node:
                self.within.pop()

    def is_message(node: cst.CSTNode) -> bool:
        """What a RigError says is for people; when it is raised is mutated."""
        if isinstance(node, cst.Raise) and isinstance(node.exc, cst.Call):
            return getattr(node.exc.func, "value", "") in ("RigError", "WrongUse")
        return isinstance(node, cst.SimpleStatementLine) and isinstance(
            node.body[0], cst.Import | cst.ImportFrom | cst.Assert
        )

    wrapper.visit(Visitor())
    module = str(path.relative_to(ROOT))
    made = []
    for node, other, statement in found:
        first = places[statement].start.line
        last = first if isinstance(statement, compound) else places[statement].end.line
        code = wrapper.module.code_for_node
        old, new = (" ".join(code(one).split()) for one in (node, other))
        line = places[node].start.line
        mutant = Mutant(module, line, old, new, partial(replace_node, wrapper.module, node, other))
        made.append((mutant, min(first, line), max(last, line)))
    return made


def replace_node(tree: Any, old: Any, new: Any) -> str:
    """The source with one node changed."""
    return str(tree.deep_replace(old, new).code)


# ----------------------------------------------------------------------------------------------------------
# Running them


class _Loader(SourceFileLoader):
    def __init__(self, name: str, path: str, source: str) -> None:
        super().__init__(name, path)
        self.source = source

    def get_code(self, fullname: str) -> CodeType:
        return compile(self.source, self.path, "exec", dont_inherit=True)


class _Finder(importlib.abc.MetaPathFinder):
    """Gives the mutated source in place of the module's own."""

    def __init__(self, mutant: Mutant) -> None:
        self.mutant = mutant
        parts = Path(mutant.module).with_suffix("").parts
        self.name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if fullname != self.name:
            return None
        file = str(ROOT / self.mutant.module)
        return importlib.util.spec_from_file_location(
            fullname, file, loader=_Loader(fullname, file, self.mutant.write())
        )


class _Recorder:
    """A pytest plugin that notes which lines each test runs and what it costs."""

    def __init__(self, modules: Sequence[Path]) -> None:
        import coverage

        self.cover = coverage.Coverage(
            data_file=None, config_file=False, include=list(map(str, modules))
        )
        self.seconds: dict[str, float] = {}
        self.begun = 0.0
        self.cover.start()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.cover.switch_context(nodeid)
        self.begun = time.process_time()

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" and report.passed:
            self.seconds[report.nodeid] = time.process_time() - self.begun

    def finish(self) -> Reached:
        self.cover.stop()
        data = self.cover.get_data()
        lines = {name: data.contexts_by_lineno(name) for name in data.measured_files()}
        libraries = [name for name in sys.modules if name.partition(".")[0] not in OURS]
        return Reached(lines, self.seconds, libraries)


def in_fork(work: Callable[[], int], seconds: float) -> int:
    """Start `work` in a process of its own that may use so much CPU; its number is for `wait_for`."""
    import resource  # not on Windows, where there is no fork either

    child = os.fork()
    if child == 0:
        code = 99
        try:
            os.setsid()
            limit = int(seconds) + 2
            resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 1))
            nothing = os.open(os.devnull, os.O_RDWR)
            for stream in range(1 if os.environ.get("MUTATION_SHOW") else 3):
                os.dup2(nothing, stream)
            code = int(work())
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return child


def wait_for(child: int) -> int:
    """The exit code of a fork; negative for a signal."""
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # what it has started and left behind
    return code


def ask_sound_code(modules: Sequence[Path], tests: Sequence[str]) -> Reached:
    """Run the tests on the code as it is."""
    import pytest

    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) / "reached"

        def work() -> int:
            recorder = _Recorder(modules)
            pytest.main(["-q", *QUIET, *tests], plugins=[recorder])
            kept.write_bytes(pickle.dumps(recorder.finish()))
            return 0

        wait_for(in_fork(work, 3000))
        found: Reached = pickle.loads(kept.read_bytes())
    return found


def choose_tests(reached: Reached, path: Path, first: int, last: int) -> list[str]:
    """The tests that run a statement, fastest first; what only an import runs is reached by all tests."""
    lines = reached.lines.get(str(path), {})
    names = {name for at in range(first, last + 1) for name in lines.get(at, [])}
    if "" in names or not names:
        imported = any("" in lines.get(at, []) for at in range(first, last + 1))
        names = {name for found in lines.values() for name in found} if imported else set()
    known = sorted((reached.seconds[name], name) for name in names if name in reached.seconds)
    chosen: list[str] = []
    spent = 0.0
    for seconds, name in known:
        if chosen and (seconds > SLOW or spent + seconds > ENOUGH):
            break
        chosen.append(name)
        spent += seconds
    return chosen


def judge_mutant(mutant: Mutant) -> int:
    """Start the fork that tries a mutant."""

    def work() -> int:
        import pytest

        finder = _Finder(mutant)
        sys.meta_path.insert(0, finder)
        try:  # now, because pytest's own finder would read a file that is asked for its doctests
            importlib.import_module(finder.name)
        except Exception:
            return 1
        return int(pytest.main(["-x", "-q", *QUIET, "--timeout", "20", *mutant.reached_by]))

    return in_fork(work, 10 + 4 * ENOUGH)


def run_mutants(mutants: Sequence[Mutant], jobs: int) -> Iterator[Mutant]:
    """Try each; yields them as they are decided."""
    running: dict[int, Mutant] = {}
    waiting = list(reversed(mutants))
    while waiting or running:
        while waiting and len(running) < jobs:
            mutant = waiting.pop()
            if not mutant.reached_by:
                mutant.verdict = "not reached"
                yield mutant
                continue
            running[judge_mutant(mutant)] = mutant
        if running:
            child = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT).si_pid  # type: ignore[union-attr]
            code = wait_for(child)
            mutant = running.pop(child)
            mutant.verdict = "survived" if code == 0 else "killed"
            yield mutant


# ----------------------------------------------------------------------------------------------------------


def interval(killed: int, tried: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share.

    >>> [round(end, 3) for end in interval(90, 100)]
    [0.826, 0.945]
    """
    z, share = 1.96, killed / tried
    middle = share + z * z / (2 * tried)
    half = z * math.sqrt(share * (1 - share) / tried + z * z / (4 * tried * tried))
    below = 1 + z * z / tried
    return (middle - half) / below, (middle + half) / below


def main() -> None:
    """Print a line for each survivor and a row for each module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("groups", nargs="*", help=f"of: {', '.join(GROUPS)} (all)")
    parser.add_argument("--sample", type=int, help="try so many of each module, drawn at random")
    parser.add_argument("--seed", type=int, default=14)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, help="add each verdict to this file, a line of JSON")
    parser.add_argument("--again", type=Path, help="try only what survived in this file")
    options = parser.parse_args()
    os.chdir(ROOT)
    os.environ.update(OMP_NUM_THREADS="1", PYTHONDONTWRITEBYTECODE="1", HF_HUB_OFFLINE="1")
    survived = {}
    if options.again:
        lines = map(json.loads, options.again.read_text("utf-8").splitlines())
        survived = {
            f"{one['module']}: {one['old']} -> {one['new']}": one["verdict"] for one in lines
        }
    for group in options.groups or GROUPS:
        try_group(group, options, {name for name, said in survived.items() if said != "killed"})


def try_group(group: str, options: Any, survived: set[str]) -> None:
    """Make, choose, try and count the mutants of one group."""
    patterns, tests = GROUPS[group]
    modules = sorted(path for pattern in patterns for path in ROOT.glob(pattern))
    modules = [path for path in modules if str(path.relative_to(ROOT)) not in DECLARATIONS]
    files = [
        str(path) for pattern in tests for path in sorted(ROOT.glob(f"tests/test_{pattern}.py"))
    ]
    reached = ask_sound_code(modules, [*files, *map(str, modules)])
    for name in reached.libraries:
        try:
            importlib.import_module(name)
        except Exception:  # a module that another one makes: whoever needs it imports it again
            continue
    draw = random.Random(options.seed)
    for path in modules:
        module = str(path.relative_to(ROOT))
        made = []
        for mutant, first, last in make_mutants(path):
            mutant.reached_by = choose_tests(reached, path, first, last)
            made.append(mutant)
        sound = Mutant(module, 0, "sound", "sound", path.read_text, [*reached.seconds])
        if [one.verdict for one in run_mutants([sound], 1)] != ["survived"]:
            raise RuntimeError(f"The tests of {module} fail on the sound code (MUTATION_SHOW=1).")
        few = made
        if options.sample and options.sample < len(made):
            few = draw.sample(made, options.sample)
        if options.again:
            few = [one for one in few if one.name in survived]
        if not few:
            continue
        for mutant in run_mutants(few, options.jobs):
            row = {k: getattr(mutant, k) for k in ("module", "line", "old", "new", "verdict")}
            if options.out:
                with options.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
            if mutant.verdict != "killed":
                print(
                    f"{module}:{mutant.line} {mutant.verdict}: {mutant.old} -> {mutant.new}",
                    flush=True,
                )
        killed = sum(one.verdict == "killed" for one in few)
        low, high = interval(killed, len(few))
        share = f"{killed / len(few):.0%} ({low:.0%} to {high:.0%})"
        print(f"| {module} | {len(made)} | {len(few)} | {killed} | {share} |", flush=True)


if __name__ == "__main__":
    main()
