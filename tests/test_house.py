"""The rules of the house: `pytest tests/test_house.py`."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import click
import pytest
from conftest import ROOMS, ROOT

import rig.cli
from tools.count_names import count_names

HEAVY = {
    "torch", "numpy", "transformers", "trl", "peft", "datasets", "accelerate", "bitsandbytes", "unsloth",
    "llama_cpp", "gguf", "safetensors", "tokenizers", "httpx", "pydantic", "rich", "starlette", "uvicorn",
    "sqlalchemy", "apscheduler", "tweepy", "atproto", "mastodon", "trafilatura", "lxml",
    "psycopg", "requests", "jinja2", "feedparser", "pypdf", "prompt_toolkit",
    "huggingface_hub", "prometheus_client", "platformdirs",
}  # fmt: skip

BESIDE = ("tools", "benchmarks", "docs")
"""Python that is no part of the product."""

SPEAKING = {"rig/__init__.py"}
"""Packages that hold more than a docstring: rig its version."""


def sources(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """Every module a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide where a thing lives"
            yield node.module or ""


def modules_imported(path: Path) -> set[str]:
    """As `imports`, with what `from package import module` may name."""
    named = {
        f"{node.module}.{alias.name}"
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    return named | set(imports(path))


def test_the_front_door_is_light() -> None:
    probe = "import sys, rig.cli; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & HEAVY


@pytest.mark.parametrize("room", ROOMS[1:])
def test_no_room_reaches_into_another(room: str) -> None:
    allowed = {"rig", room}
    for path in sources(room):
        strangers = {m.partition(".")[0] for m in imports(path)} & set(ROOMS) - allowed
        assert not strangers, f"{path} imports {strangers}"
        assert "rig.cli" not in set(imports(path)), f"{path} comes in by the front door"


def test_only_the_front_door_knows_the_rooms() -> None:
    for path in sources("rig"):
        rooms = {m for m in imports(path) if m.partition(".")[0] in ROOMS[1:]}
        if path.name == "cli.py":
            assert rooms == {f"{room}.cli" for room in ROOMS[1:]}
        else:
            assert not rooms, f"{path} imports {rooms}"


def module_of(path: Path) -> str:
    """The dotted name under which a file is imported."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def parts_of(room: str, files: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """What each part of a room imports from its other parts; `files` says what each module imports.

    A part is a subpackage as a whole, or a file beside them.
    """
    graph: dict[str, set[str]] = {}
    for module, imported in files.items():
        part, *others = (".".join(name.split(".")[:2]) for name in (module, *sorted(imported)))
        graph.setdefault(part, set()).update(set(others) - {part, room})
    return graph


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """One way round in `graph`, its beginning again at the end; empty when there is none."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


@pytest.mark.parametrize("room", ROOMS)
def test_the_parts_of_a_room_form_no_circle(room: str) -> None:
    """A part is a subpackage or a file beside them; imports inside functions and for types count too."""
    modules = {module_of(path): path for path in sources(room)}
    graph = parts_of(room, {m: modules_imported(path) & {*modules} for m, path in modules.items()})
    assert not circle(graph), " <- ".join(circle(graph))


def test_a_circle_between_files_that_know_nothing_of_each_other_would_be_seen() -> None:
    files = {"serve.a.one": {"serve.b.two"}, "serve.b.three": {"serve.file"}, "serve.b.two": set()}
    assert not circle(parts_of("serve", files))
    assert circle(parts_of("serve", files | {"serve.file": {"serve.a.four"}}))


def test_no_folder_is_a_heap_and_no_file_a_scroll() -> None:
    folders: dict[Path, int] = {}
    for room in (*ROOMS, *BESIDE):
        for path in sources(room):
            folders[path.parent] = folders.get(path.parent, 0) + 1
            lines = len(path.read_text("utf-8").splitlines())
            assert lines <= 400, f"{path} has {lines} lines: a second thing is in it"
    for folder, files in folders.items():
        assert files <= 16, f"{folder} has {files} files: it wants a package"
    for path in sources("tests"):
        lines = len(path.read_text("utf-8").splitlines())
        assert lines <= 500, f"{path} has {lines} lines: split it by what it tests"


def test_a_test_file_says_which_room_it_tests() -> None:
    whole = {"test_docs.py", "test_house.py", "test_install.py"}
    for path in (ROOT / "tests").glob("test_*.py"):
        room = path.name.split("_")[1]
        assert room in ROOMS or path.name in whole, f"{path}: test_<room>_<package>.py"


@pytest.mark.parametrize("room", ROOMS)
def test_a_package_runs_nothing_of_its_own(room: str) -> None:
    """An `__init__` that imports makes whoever wants one module pay for all of them."""
    for path in sources(room):
        if path.name == "__init__.py" and path.relative_to(ROOT).as_posix() not in SPEAKING:
            body = ast.parse(path.read_text("utf-8")).body
            assert len(body) == 1, f"{path} holds more than what the package is for"


def test_a_search_for_a_name_finds_what_it_does() -> None:
    """At most 35 in 100 public functions and methods are one word: `python -m tools.count_names`."""
    counts = [count_names(ROOT / room) for room in ROOMS]
    names, short = (sum(column) for column in zip(*counts, strict=True))
    assert names > 500, "this test would see them"
    assert short <= 0.35 * names


def commands() -> Iterator[tuple[str, click.Command]]:
    def walk(path: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
        yield path, command
        if isinstance(command, click.Group):
            for name, inner in command.commands.items():
                yield from walk(f"{path} {name}", inner)

    yield from walk("rig", rig.cli.main)


@pytest.mark.parametrize(("path", "command"), list(commands()), ids=[p for p, _ in commands()])
def test_every_command_and_option_explains_itself(path: str, command: click.Command) -> None:
    assert command.help, f"{path} has no help"
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help, f"{path} {option.opts[0]} has no help"
        elif option.metavar and not option.required:
            assert option.metavar[0] == "[", f"{path}: {option.metavar} may be left out: say so"


@pytest.mark.parametrize("room", ROOMS)
def test_every_file_opens_with_what_it_decides(room: str) -> None:
    for path in sources(room):
        first = (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").partition("\n")[0]
        assert first, f"{path} does not say what it is"
        assert first[-1] in ".:;,`" or first[-1].isalnum(), f"{path}: {first!r}"


def test_nothing_names_the_machine_it_was_made_on() -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    forbidden = (
        "/work" + "/",
        "farm" + "-studio",
        "farm" + "-bench",
        "/opt" + "/pypi",
        "." + "library",
    )
    for name in filter(None, tracked):
        path = ROOT / name
        if not path.is_file() or path.suffix in {".safetensors", ".gguf", ".png"}:
            continue
        text = path.read_text("utf-8", "replace")
        for word in forbidden:
            assert word not in text, f"{name} names {word}"
        if name != "tests/test_house.py" and name.endswith((".py", ".md")):
            assert "pip install rig" not in text, f"{name}: rig on the package index is a stranger"


@pytest.mark.parametrize("room", ROOMS)
def test_the_product_knows_no_folder_beside_the_project(room: str) -> None:
    """Real data lie in a folder of their own where the tests run; who installs rig has none."""
    beside = re.compile(r"""\.\./shared|shared["']?\s*[/\\]\s*["']?data""")
    for path in (ROOT / room).rglob("*"):
        if path.is_file() and path.suffix not in {".safetensors", ".pyc"}:
            found = beside.search(path.read_text("utf-8"))
            assert not found, f"{path} names {found and found.group()}"


def test_the_extras_cover_every_room() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert {*ROOMS[1:], "notify", "all", "unsloth", "dev"} == set(project["optional-dependencies"])
    assert "Private :: Do Not Upload" in project["classifiers"]


TRAINER = "train/trainer/trl_trainer.py"
PRIVATE = {
    "train/model/generate.py": {
        "_attn_implementation",
        "_eos_token_tensor",
        "_get_logits_processor",
    },
    "train/model/packing.py": {"_attn_implementation", "_supports_attention_backend"},
}
"""What generating and packing need of a transformers model and it has no public name for."""


def foreign_privates(path: Path) -> set[str]:
    """Names with an underscore that a file takes from somebody else: attributes, imports, getattr's words."""
    nodes = list(ast.walk(ast.parse(path.read_text("utf-8"))))
    own = {
        n.name
        for n in nodes
        if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    }
    own |= {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    taken = set()
    for node in nodes:
        if isinstance(node, ast.Attribute):
            is_own = isinstance(node.value, ast.Name) and node.value.id == "self"
            if is_own and isinstance(node.ctx, ast.Store):
                own.add(node.attr)
            taken.add(node.attr)
        elif isinstance(node, ast.ImportFrom):
            taken |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "").endswith("attr"):
            taken |= {str(arg.value) for arg in node.args if isinstance(arg, ast.Constant)}
    return {name for name in taken - own if re.match("_(?!_)", name)}


def test_a_new_trl_mends_one_file() -> None:
    """All that is private to TRL's and transformers' trainer is touched in one file of training."""
    found = {str(p.relative_to(ROOT).as_posix()): foreign_privates(p) for p in sources("train")}
    assert len(found.pop(TRAINER)) > 2, "this test would see it"
    assert {name: taken for name, taken in found.items() if taken} == PRIVATE


RECIPE_ENDS_AT = {
    "train/cli.py", "train/run.py", "train/ddp_worker.py", "train/grpo.py",  # read it, and train
    "train/eval/runner.py", "train/rewards/lint_command.py",  # the other two commands
    "train/plan/plan.py", "train/plan/unsupported.py", "train/trainer/trl_config.py",  # are about all of it
}  # fmt: skip


def test_a_recipe_is_unpacked_where_it_comes_in() -> None:
    """Below these files plain arguments go on, so that each can be called without a recipe."""
    found = {
        path.relative_to(ROOT).as_posix()
        for path in sources("train")
        if "train.recipe" in imports(path) or "recipe" in names_from_train(path)
    }
    assert found == RECIPE_ENDS_AT


def names_from_train(path: Path) -> set[str]:
    """What a file imports by `from train import ...`."""
    nodes = ast.walk(ast.parse(path.read_text("utf-8")))
    taken = [n.names for n in nodes if isinstance(n, ast.ImportFrom) and n.module == "train"]
    return {alias.name for names in taken for alias in names}
