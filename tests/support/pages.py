"""What README and docs show: blocks with their marks, command lines taken apart, links, headings."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
from conftest import ROOT

import rig.cli
from train import recipe as recipes

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
NEEDS = {
    "a GPU", "two GPUs", "the network", "an account", "root", "systemd", "PowerShell", "another machine",
    "minutes", "a model",
}  # fmt: skip
"""What the first line of a block may say that it needs: such a block is parsed and not run."""
STAYS = re.compile(r"\s*# until Ctrl-C$")
FOREIGN = {
    "adduser", "apt", "cat", "cd", "chmod", "curl", "echo", "git", "head", "journalctl", "ln", "loginctl",
    "mkdir", "mypy", "printf", "pytest", "ruff", "scp", "systemctl", ".", "base64", "pre-commit",
}  # fmt: skip
"""Programs that are not ours: nothing is known of their options."""
BARE = re.compile(r"^[A-Z][A-Z_|]*$")
"""A word that stands for another, such as NAME."""


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    page: Path
    language: str
    text: str

    @property
    def file(self) -> str:
        """The file that this block is, when its first line names one: `# rig.toml`."""
        named = re.match(r"# ([\w.-]+\.(?:toml|py))\n", self.text)
        return named[1] if named else ""

    @property
    def needs(self) -> list[str]:
        """What its first line says that it needs."""
        marked = re.match(r"# needs: (.*)\n", self.text)
        return marked[1].split(", ") if marked else []

    def script_lines(self) -> list[str]:
        """Its lines, those that go on in the next one joined, the bodies of here-documents left out."""
        text = re.sub(r"<<'(\w+)'\n.*?\n\1\n", "\n", f"{self.text}\n", flags=re.DOTALL)
        lines = text.replace("\\\n", " ").splitlines()
        return [line for line in lines if line.strip() and not line.startswith("#")]


def read_blocks(page: Path) -> list[Block]:
    """Every fenced block of a page."""
    text = page.read_text("utf-8")
    found = re.findall(r"^```(\w+)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [Block(page, language, body) for language, body in found]


def shell_blocks() -> list[Block]:
    """Every block that a person would type at a shell."""
    return [b for page in PAGES for b in read_blocks(page) if b.language in ("sh", "powershell")]


def inline_commands(page: Path) -> list[str]:
    """Every command of rig inside a sentence, such as `rig jobs`; sketches with dots are left out."""
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    found = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)]
    return [span for span in found if re.match(r"rig [a-z]", span) and "..." not in span]


def split_commands(line: str, *, powershell: bool = False) -> Iterator[list[str]]:
    """The commands of one line as words: pipes and lists apart, variables and redirections left out."""
    if powershell:
        line = line.replace("\\", "/")
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>()")
    lexer.whitespace_split = True
    words: list[str] = []
    rest = iter([*lexer, ";"])
    for word in rest:
        if word in ("|", "&&", "||", ";", "&"):
            if words:
                yield words
            words = []
        elif set(word) <= set("<>&"):
            next(rest)
        elif words or not (word == "sudo" or re.match(r"[A-Z_]+=", word)):
            words.append(word)


def check_command(words: list[str]) -> None:
    """Assert that this command line would be taken by the program it names."""
    program = re.sub(r"^\.venv/(?:bin|Scripts)/", "", words[0])
    rest = words[1:]
    if program == "rig":
        check_rig(rest)
    elif program == "make":
        makefile = (ROOT / "Makefile").read_text("utf-8")
        for target in rest:
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"no target {target}"
    elif program in ("python", "python3", "py") and rest[:2] == ["-m", "pip"]:
        check_pip(rest[2:])
    elif program == "pip":
        check_pip(rest)
    elif program in ("python", "python3", "py"):
        if rest[0] != "-m" and "/" in rest[0]:
            check_script(rest[0], rest[1:])
    else:
        assert program in FOREIGN, f"{program}: not known here, and not in FOREIGN"


def check_pip(words: list[str]) -> None:
    """Assert that what is installed by name is there: our extras, and torch in the version of today."""
    pins = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    for word in words:
        if extras := re.match(r"\.\[(.*)\]", word):
            for extra in extras[1].split(","):
                assert re.search(rf"^{extra} = \[", project, re.MULTILINE), f"no extra {extra}"
        if "==" in word:
            assert any(pin.partition("+")[0] == word for pin in pins), f"{word}: constraints differ"


def check_script(name: str, words: list[str]) -> None:
    """Assert that a script of this project is there and knows these options."""
    text = (ROOT / name).read_text("utf-8")
    for word in words:
        if word.startswith("--"):
            assert f'"{word.partition("=")[0]}"' in text, f"{name} has no {word}"


def check_rig(words: list[str], *, whole: bool = True) -> None:
    """Assert that rig's own parser takes these words; without `whole` arguments may be missing."""
    command: click.Command = rig.cli.main
    context = click.Context(command, info_name="rig")
    while True:
        inner = getattr(command, "commands", None) or getattr(command, "subcommands", {})
        if not words or words[0] not in inner:
            break
        command = inner[words[0]]
        settings = command.context_settings
        context = click.Context(command, parent=context, info_name=words[0], **settings)
        words = words[1:]
    if isinstance(command, click.Group):
        assert not words or words == ["--help"], f"there is no {context.command_path} {words[0]}"
        return
    given, left, _ = command.make_parser(context).parse_args(list(words))
    assert not left, f"{context.command_path} takes no {left}"
    for parameter in command.params:
        value = given.get(parameter.name or "")
        values = value if isinstance(value, list | tuple) else [value]
        if isinstance(parameter, click.Argument) and whole and parameter.required:
            assert any(isinstance(v, str) for v in values), (
                f"{context.command_path}: no {parameter}"
            )
        if isinstance(parameter.type, click.Path):
            continue
        for one in values:
            if isinstance(one, str) and not BARE.match(one):
                parameter.type.convert(one, parameter, context)
    if isinstance(options := given.get("options"), list | tuple):
        check_rig(["serve", "MODEL", *options])
    if command.name == "train" and isinstance(given.get("recipe"), str):
        check_recipe(given["recipe"], given.get("settings") or [])


def check_recipe(name: str, settings: list[str]) -> None:
    """Assert that a recipe that ships is there and has the keys that --set names."""
    if not BARE.match(name) and not name.endswith(".toml"):
        recipes.load_recipe(name, [s for s in settings if not BARE.match(s.partition("=")[0])])


def anchors(page: Path) -> set[str]:
    """The anchors that a page's headings make, as GitHub makes them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    heads = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def links(page: Path) -> list[str]:
    """The targets of a page's links and pictures that lie in this project."""
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    found = re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", text)
    return [target for target in found if "://" not in target]
