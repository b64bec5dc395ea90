"""What every test gets: a home of its own, none of the caller's settings, our names unclaimed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from support import postgres

ROOMS = ("rig", "train", "export", "serve", "bots")
ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
"""Real data beside the project; absent outside its workplace, so tests that read it skip there."""

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 0)):
    # Threads of several workers on one core spin while they wait for each other, and so do those of the
    # commands they start: four minutes of test_rig_toy are fifteen seconds when each has its own core.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))


def pytest_configure(config: pytest.Config) -> None:
    """Plain names are short and can be taken; say so before anything is imported.

    Where SIGINT is ignored (`nohup make test &` in a script), a handler that does nothing takes its place:
    an ignored signal is inherited by every child, and a handler is not.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda number, frame: None)
    owners = packages_distributions()
    for room in ROOMS:
        if strangers := set(owners.get(room, [])) - {"rig"}:
            raise pytest.UsageError(f"{room!r} is also installed by {', '.join(sorted(strangers))}")


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test has a RIG_HOME of its own and none of the caller's settings or tokens."""
    for name in list(os.environ):
        if name.startswith("RIG_"):
            monkeypatch.delenv(name)
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("RIG_HOME", str(home))
    return home


@pytest.fixture
def shared() -> Path:
    """The folder of real data; the test skips where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("needs the real data in ../shared, which is not here")
    return SHARED


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run in an empty folder, so that no rig.toml and no runs/ of the caller count."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
    """A PostgreSQL of the tests' own; they skip without one, but not in CI."""
    if postgres.programs() is None and not os.environ.get("CI"):
        pytest.skip("needs PostgreSQL (initdb, pg_ctl)")
    with postgres.cluster() as url:
        yield url


@pytest.fixture
def postgresql(postgresql_server: str) -> str:
    """The address of an empty database."""
    return postgres.new_database(postgresql_server)


@pytest.fixture(scope="session")
def toy_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy model as Q8_0, made once by the real command; tests of export make their own."""
    path = tmp_path_factory.mktemp("toy") / "toy-Q8_0.gguf"
    words = ["export", "toy", "--gguf", "--quant", "Q8_0", "--no-check", "--out", str(path)]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "rig", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return path


def needs(program: str) -> pytest.MarkDecorator:
    """Skip without a system program, but not in CI, where the install step must have brought it."""
    absent = shutil.which(program) is None and not os.environ.get("CI")
    return pytest.mark.skipif(
        absent, reason=f"needs the program {program!r}, which is not installed"
    )
