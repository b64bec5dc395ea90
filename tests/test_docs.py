"""README and docs say what is true: `pytest tests/test_docs.py`.

Every command line is held against the program that it names. The blocks without a mark are also run, page by
page, as somebody who reads them in their order would.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

import click
import httpx
import pytest
from click.testing import CliRunner
from conftest import ROOMS, ROOT

import rig.cli
from bots.outlets.build import build_outlet
from rig.config import read_toml
from support import pages
from support.pages import Block
from train import recipe as recipes

HAND_WRITTEN = [page for page in pages.PAGES if page.parent.name != "reference"]
READ_IN_TURN = ("train.md", "export.md", "serve.md", "bots.md")
"""Pages that go on where the one before ended."""
ALONE = ("README.md", "your-own-bot.md", "mini-pc.md", "windows.md", "benchmarks.md")


def called(page: Path) -> str:
    return str(page.relative_to(ROOT))


# ---------------------------------------------------------------------------------------------
# what stands on the pages


@pytest.mark.parametrize("block", pages.shell_blocks(), ids=lambda b: called(b.page))
def test_every_command_line_is_one_that_its_program_takes(block: Block) -> None:
    assert set(block.needs) <= pages.NEEDS
    for line in block.script_lines():
        for words in pages.split_commands(line, powershell=block.language == "powershell"):
            pages.check_command(words)


@pytest.mark.parametrize("page", HAND_WRITTEN, ids=called)
def test_every_command_inside_a_sentence_is_there(page: Path) -> None:
    for span in pages.inline_commands(page):
        for words in pages.split_commands(span):
            pages.check_rig(words[1:], whole=False)


@pytest.mark.parametrize(
    "words",
    [
        ["train", "toy-arithmetic", "--nmae", "x"],
        ["train", "toy-arithmetic", "--set", "schedule.max_stepz=2"],
        ["train", "toy-arithmetics"],
        ["serve", "MODEL", "--port", "http"],
        ["serve", "install", "MODEL", "--prot", "1"],
        ["bot", "enabel", "cards"],
        ["bot", "enable"],
    ],
    ids=" ".join,
)
def test_a_command_line_that_is_wrong_would_be_noticed(words: list[str]) -> None:
    with pytest.raises((AssertionError, click.ClickException)):
        pages.check_rig(words)


@pytest.mark.parametrize("page", HAND_WRITTEN, ids=called)
def test_code_stands_in_fenced_blocks_of_a_known_kind(page: Path) -> None:
    text = page.read_text("utf-8")
    kinds = re.findall(r"^```(\w*)$", text, re.MULTILINE)[::2]
    assert set(kinds) <= {"sh", "powershell", "toml", "python", "text"}
    outside = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    assert not re.search(r"\n\n    \S", outside), "an indented block escapes the tests"


@pytest.mark.parametrize("page", pages.PAGES, ids=called)
def test_links_lead_somewhere(page: Path) -> None:
    for target in pages.links(page):
        path, _, anchor = target.partition("#")
        goal = (page.parent / path).resolve() if path else page
        assert goal.exists(), f"{called(page)} leads to {target}"
        if anchor:
            assert anchor in pages.anchors(goal), f"{called(page)} leads to {target}"


def test_no_page_is_too_long_to_read() -> None:
    lengths = {called(p): len(p.read_text("utf-8").splitlines()) for p in pages.PAGES}
    assert lengths.pop("README.md") <= 120
    assert {name: n for name, n in lengths.items() if n > 250} == {}


def test_the_tree_of_the_readme_is_the_tree() -> None:
    (tree,) = (b.text for b in pages.read_blocks(ROOT / "README.md") if b.text.startswith("rig/ "))
    shown, room = set(), ""
    for line in tree.splitlines():
        name, caption = line.strip().split("/", 1)
        assert 0 < len(caption.strip()) <= 50, line
        room = room if line.startswith(" ") else name
        shown.add(f"{room}/{name}" if line.startswith(" ") else name)
    packages = {
        str(path.parent.relative_to(ROOT))
        for room in ROOMS
        for path in (ROOT / room).rglob("__init__.py")
    }
    assert shown == packages | {"tools"}


def test_the_figures_of_the_readme_stand_in_the_results() -> None:
    results = (ROOT / "benchmarks" / "RESULTS.md").read_text("utf-8").splitlines()
    rows = re.findall(r"^\| .*\d+\.\d+.*$", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE)
    assert len(rows) == 2
    for row in rows:
        figures = re.findall(r"(?<![-\w.])\d+\.\d+(?![-\w])", row)
        assert len(figures) == 2
        assert any(all(f" {f} " in line for f in figures) for line in results), figures


def test_the_reference_is_what_the_program_says() -> None:
    done = subprocess.run(
        [sys.executable, "docs/reference.py", "--check"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


TOML = [b for page in HAND_WRITTEN for b in pages.read_blocks(page) if b.language == "toml"]


@pytest.mark.parametrize("block", TOML, ids=lambda b: f"{called(b.page)}: {b.file}")
def test_configuration_is_read_by_its_own_reader(block: Block, elsewhere: Path) -> None:
    values = tomllib.loads(block.text)
    if "rewards" in values:
        recipes.parse_recipe(block.text, block.file)
        return
    (elsewhere / "rig.toml").write_text(block.text, "utf-8")
    (elsewhere / "proverb.py").write_text("def proverb(context): ...\n", "utf-8")
    for command in ("config", "jobs", "serve status"):
        done = CliRunner().invoke(rig.cli.main, command.split())
        assert done.exit_code == 0, done.output
    tables = read_toml(elsewhere / "rig.toml").get("outlets", {})
    for bot in values.get("bots", {}).values():
        for name in bot["outlets"]:
            build_outlet(name, tables)


def test_a_python_block_is_a_file_that_a_page_goes_on_to_use() -> None:
    for page in HAND_WRITTEN:
        blocks = pages.read_blocks(page)
        for number, block in enumerate(blocks):
            if block.language == "python" and page.name != "your-own-bot.md":
                rest = [b for b in blocks if b is not block and not b.needs]
                assert any(block.file in b.text for b in rest), f"{called(page)}, block {number}"


# ---------------------------------------------------------------------------------------------
# what happens when they are followed


@dataclass
class Reader:
    """Somebody who types what the pages show, in a folder and a RIG_HOME of their own."""

    folder: Path
    env: dict[str, str]
    ports: dict[str, str]
    """Port on the page: port here."""
    read: list[str] = field(default_factory=list)
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def follow(self, page: Path) -> None:
        """Do everything that a page shows without a mark; what stays running ends with the page."""
        self.read.append(page.name)
        try:
            for block in pages.read_blocks(page):
                text = block.text
                for port, mine in self.ports.items():
                    text = text.replace(port, mine)
                if block.file:
                    (self.folder / block.file).write_text(text, "utf-8")
                elif block.language == "sh" and not block.needs:
                    self._type(text)
        finally:
            self.leave()

    def leave(self) -> None:
        """End what was started, as a person would; it must end well."""
        ends = []
        for child in self.running:
            child.send_signal(signal.SIGTERM)
            ends.append(child.wait(60))
        self.running.clear()
        subprocess.run(["rig", "serve", "stop"], env=self.env, capture_output=True, check=False)
        assert set(ends) <= {0, -signal.SIGTERM}, ends

    def _type(self, text: str) -> None:
        stays = [line for line in text.splitlines() if pages.STAYS.search(line)]
        plain = "\n".join(line for line in text.splitlines() if line not in stays)
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", plain],
            cwd=self.folder,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, f"{plain}\n{done.stdout}{done.stderr}"
        for line in stays:
            command = ["bash", "-c", f"exec {pages.STAYS.sub('', line)}"]
            with (self.folder / "stays.log").open("ab") as log:
                child = subprocess.Popen(
                    command, cwd=self.folder, env=self.env, stdout=log, stderr=log
                )
            self.running.append(child)
            port = self.ports["8378" if "daemon" in line else "8377"]
            self._wait_for(f"http://127.0.0.1:{port}/health", child)

    def _wait_for(self, url: str, child: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            assert child.poll() is None, (self.folder / "stays.log").read_text("utf-8")
            try:
                if httpx.get(url).status_code == 200:
                    return
            except httpx.TransportError:
                pass  # it does not listen yet
            time.sleep(0.2)
        raise AssertionError(f"{url} did not answer within 90 s")


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def new_reader(folder: Path) -> Reader:
    """A reader whose `rig` is the one that is tested."""
    (folder / "bin").mkdir()
    (folder / "here").mkdir()
    program = folder / "bin" / "rig"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -P -m rig "$@"\n', "utf-8")
    program.chmod(0o755)
    ports = {"8377": free_port(), "8378": free_port()}
    home = folder / "home"
    (home / "config").mkdir(parents=True)
    (home / "config" / "rig.toml").write_text(
        f'[daemon]\nlisten = "127.0.0.1:{ports["8378"]}"\n[serve]\nport = {ports["8377"]}\n',
        "utf-8",
    )
    path = os.pathsep.join(
        (str(folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"])
    )
    env = {k: v for k, v in os.environ.items() if not k.startswith("RIG_")}
    env |= {"PATH": path, "PYTHONPATH": str(ROOT), "RIG_HOME": str(home)}
    env["OMP_NUM_THREADS"] = "1"  # two threads that spin hurt beside the other worker's tests
    return Reader(folder / "here", env, ports)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    """One reader for the pages that go on from each other."""
    pytest.importorskip("trl", reason="needs every room: pip install -e '.[all]'")
    return new_reader(tmp_path_factory.mktemp("reader"))


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", READ_IN_TURN)
def test_a_page_can_be_followed_after_those_before_it(reader: Reader, name: str) -> None:
    for before in READ_IN_TURN[: READ_IN_TURN.index(name) + 1]:
        if before not in reader.read:
            reader.follow(ROOT / "docs" / before)


@pytest.mark.parametrize("name", ALONE)
def test_a_page_can_be_followed_alone(tmp_path: Path, name: str) -> None:
    new_reader(tmp_path).follow(ROOT / "docs" / name)
