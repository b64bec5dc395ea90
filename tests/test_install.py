"""What a room's extra brings, seen in an environment that holds nothing else: `pytest tests/test_install.py`.

The wheel is built for real. The environment is a fresh one that gets the wheel and, linked from here, exactly
the distributions that the extra asks for: so a room that needs more than its extra says fails to import.
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from email import message_from_bytes
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import pytest
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HEAVY = {"torch", "transformers", "trl", "peft", "datasets", "accelerate", "bitsandbytes"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(out),
        str(ROOT),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(out.glob("*.whl"))


def needed(wheel: Path, extra: str) -> dict[str, Distribution]:
    """Every distribution that the wheel's `extra` brings, with what those need in turn."""
    with zipfile.ZipFile(wheel) as archive:
        metadata = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        own = message_from_bytes(archive.read(metadata)).get_all("Requires-Dist") or []
    found: dict[str, Distribution] = {}
    waiting: list[tuple[str, frozenset[str]]] = [("rig", frozenset({extra}))]
    seen = set()
    while waiting:
        name, extras = item = waiting.pop()
        if item in seen:
            continue
        seen.add(item)
        requires = own
        if name != "rig":
            try:
                dist = found[canonicalize_name(name)] = distribution(name)
            except PackageNotFoundError as error:
                raise AssertionError(f"{extra} needs {name}, which is not here") from error
            requires = dist.requires or []
        for text in requires:
            requirement = Requirement(text)
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": e}) for e in extras or {""}):
                waiting.append((requirement.name, frozenset(requirement.extras)))
    return found


def files(dist: Distribution) -> Iterator[tuple[Path, Path]]:
    """Each installed file of a distribution with its place below site-packages; scripts left out."""
    for path in dist.files or []:
        if ".." not in path.parts and path.suffix != ".pyc":
            yield Path(str(dist.locate_file(path))), Path(str(path))


def environment(folder: Path, wheel: Path, extra: str) -> Path:
    """A fresh environment with the wheel and what `extra` brings; returns its Python."""
    venv.create(folder, with_pip=False)
    site = next((folder / "lib").glob("python*")) / "site-packages"
    for dist in needed(wheel, extra).values():
        for source, place in files(dist):
            (site / place).parent.mkdir(parents=True, exist_ok=True)
            if not (site / place).exists():
                os.symlink(source, site / place)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return folder / "bin" / "python"


def run(python: Path, code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return subprocess.run(
        [python, "-P", "-c", code], cwd=cwd, capture_output=True, text=True, check=False, env=clean
    )


IMPORT_ALL = """
import importlib, pkgutil, sys
room = importlib.import_module({room!r})
assert "site-packages" in room.__file__, room.__file__
for found in pkgutil.walk_packages(room.__path__, {room!r} + "."):
    if not found.name.endswith("__main__"):
        importlib.import_module(found.name)
assert importlib.util.find_spec("torch") is None
print(len([m for m in sys.modules if m.startswith({room!r})]))
"""


@pytest.mark.skipif(os.name == "nt", reason="symbolic links need rights on Windows")
@pytest.mark.parametrize("room", ["export", "serve", "bots"])
def test_a_room_installs_alone_and_without_torch(tmp_path: Path, wheel: Path, room: str) -> None:
    assert not set(needed(wheel, room)) & HEAVY
    python = environment(tmp_path / "env", wheel, room)
    done = run(python, IMPORT_ALL.format(room=room), tmp_path)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 1


@pytest.mark.skipif(os.name == "nt", reason="symbolic links need rights on Windows")
def test_a_missing_extra_is_one_sentence_that_names_it(tmp_path: Path, wheel: Path) -> None:
    python = environment(tmp_path / "env", wheel, "bots")
    done = run(
        python,
        "import sys; sys.argv[1:] = ['train', 'toy-arithmetic']; import rig.__main__",
        tmp_path,
    )
    assert done.returncode == 1
    assert "-e '.[train]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_wheel_carries_the_data(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "rig/toy/model.safetensors" in names
    assert "train/recipes/toy-arithmetic.toml" in names
    assert "rig/py.typed" in names
    assert any(n.startswith("bots/articles/samples/") for n in names)


def test_the_wheel_leaves_at_home_what_only_makes_or_checks_rig(wheel: Path) -> None:
    """The toy model's maker, the tests and the benchmarks are of no use to who installs rig."""
    assert (ROOT / "tools/toy_model/__main__.py").is_file()
    assert (ROOT / "rig/toy/README.md").is_file()
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names if not name.startswith("rig-")}
    assert tops == {"rig", "train", "export", "serve", "bots"}
    assert not any("toy_model" in name or "test_" in name for name in names)


def test_the_front_door_opens_without_any_room_installed(tmp_path: Path, wheel: Path) -> None:
    folder = tmp_path / "bare"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    import click

    code = (
        f"import sys; sys.path[:0] = [{str(folder)!r}, {str(Path(click.__file__).parents[1])!r}]\n"
        "sys.argv[1:] = ['--help']; import rig.__main__"
    )
    done = run(Path(sys.executable), code, tmp_path)
    assert "quickstart" in done.stdout
