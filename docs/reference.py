"""Writes docs/reference/: what every command's --help says, and every key of a recipe and of rig.toml.

    python docs/reference.py            # write the pages again (`make docs`)
    python docs/reference.py --check    # exit code 1 when one of them is out of date (`make lint`)

The words are the program's own: help texts, and the sentences under the fields of the classes that read TOML.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import click
from click.testing import CliRunner
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

import rig.cli
from bots.articles.bot import DigestOptions
from bots.cards.bot import CardOptions
from bots.cards.database import CardPool
from bots.outlets.bluesky import BlueskySettings
from bots.outlets.file import FileSettings
from bots.outlets.mastodon import MastodonSettings
from bots.outlets.telegram import TelegramSettings
from bots.outlets.webhook import WebhookSettings
from bots.outlets.x import XSettings
from bots.settings import BotSettings, DaemonSettings
from rig.server.connect import ModelConfig
from train.monitor.power import TrainConfig
from train.recipe import Recipe

FOLDER = Path(__file__).resolve().parent / "reference"
NOTE = "<!-- Written by `make docs`: change the program's own words, not this page. -->\n"

PAGES = {
    "start": ("quickstart", "doctor", "config", "completion"),
    "train": ("train", "eval", "rewards"),
    "export": ("export",),
    "serve": ("serve", "models", "pull", "bench"),
    "shell": ("ask", "chat", "logs"),
    "bots": ("bot", "jobs", "auth"),
    "daemon": ("daemon",),
    "articles": ("summarise", "read"),
}
"""Which command stands on which page."""

RIG_TOML: dict[str, type[BaseModel]] = {
    "[model]": ModelConfig,
    "[train]": TrainConfig,
    "[daemon]": DaemonSettings,
    "[bots.NAME]": BotSettings,
    "[bots.NAME.options] of the bot cards": CardOptions,
    "[bots.NAME.options.pool] of the bot cards": CardPool,
    "[bots.NAME.options] of the bot digest": DigestOptions,
    "[outlets.x]": XSettings,
    "[outlets.bluesky]": BlueskySettings,
    "[outlets.mastodon]": MastodonSettings,
    "[outlets.telegram]": TelegramSettings,
    "[outlets.webhook]": WebhookSettings,
    "[outlets.file]": FileSettings,
}


def walk_commands(command: click.Command, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The command, the commands below it, and the words that may stand in place of its argument."""
    yield path
    inner = getattr(command, "commands", None) or getattr(command, "subcommands", {})
    for name, child in inner.items():
        yield from walk_commands(child, (*path, name))


def help_text(path: tuple[str, ...]) -> str:
    """What `rig PATH --help` prints on a screen of 100 columns, without the line about --help."""
    done = CliRunner().invoke(
        rig.cli.main, [*path, "--help"], prog_name="rig", terminal_width=100, color=False
    )
    assert done.exit_code == 0, done.output
    shown = re.sub(r"\n +-h, --help.*", "", done.output).replace("\nOptions:\n\n", "\n")
    return re.sub(r"\n{3,}", "\n\n", shown.removesuffix("Options:\n")).strip()


def commands_page(names: tuple[str, ...]) -> str:
    """The help of these commands and of all below them."""
    parts = [NOTE, f"# {', '.join(f'rig {name}' for name in names)}"]
    for name in names:
        for path in walk_commands(rig.cli.main.commands[name], (name,)):
            parts.append(f"\n## rig {' '.join(path)}\n\n```text\n{help_text(path)}\n```")
    return "\n".join(parts) + "\n"


def all_commands_page() -> str:
    """What `rig --help` prints."""
    return (
        f"{NOTE}\n# Every command\n\n```text\n{help_text(())}\n```\n\n"
        + "In full: "
        + ", ".join(f"[{page}](commands-{page}.md)" for page in PAGES)
        + ". The keys of [a recipe](recipe.md) and of [rig.toml](rig-toml.md).\n\n"
        "Results go to stdout, everything else to stderr. `--json` prints one object. Exit codes: 0 done, "
        "1 failed, 2 wrong use, 130 interrupted.\n"
    )


def field_docs(model: type[BaseModel]) -> dict[str, tuple[str, str]]:
    """For each key of `model` its annotation as written and the string below it."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(model))).body
    assert isinstance(tree, ast.ClassDef)
    found: dict[str, tuple[str, str]] = {}
    last = ""
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            last = node.target.id
            found[last] = (ast.unparse(node.annotation), "")
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and last:
            found[last] = (found[last][0], " ".join(str(node.value.value).split()))
        else:
            last = ""
    return found


def shown_default(model: type[BaseModel], name: str) -> str:
    """The default as TOML would have it."""
    field = model.model_fields[name]
    if field.is_required():
        return "(needed)"
    value = field.get_default(call_default_factory=True)
    if value is None or value is PydanticUndefined:
        return ""
    shown = model.model_construct(**{name: value}).model_dump(mode="json", warnings=False)[name]
    if isinstance(shown, dict) or shown in ("", []):
        return ""
    if isinstance(shown, str) and "\n" in shown:
        return "(below)"
    if isinstance(shown, str) and re.fullmatch(r"P(\d+D|T(\d+H)?(\d+M)?(\d+S)?)", shown):
        return re.sub(r"P|T", "", shown).lower()
    return str(shown).replace("True", "true").replace("False", "false").replace("'", '"')


def keys_table(model: type[BaseModel]) -> str:
    """One table of keys: the name, the default, what it means or may be."""
    rows = ["| key | default | |", "|---|---|---|"]
    for name, (annotation, said) in field_docs(model).items():
        choices = re.match(r"Literal\[(.*?)\]", annotation)
        words = re.findall(r"'(.*?)'", choices[1]) if choices else []
        if any(word not in said for word in words):
            said = f"{said} One of {', '.join(f'`{word}`' for word in words)}.".strip()
        default = shown_default(model, name)
        rows.append(
            f"| `{name}` | {f'`{default}`' if default else ''} | {said.replace('|', '/')} |"
        )
    return "\n".join(rows)


def recipe_page() -> str:
    """Every key of a recipe, table by table."""
    parts = [
        NOTE,
        "# Every key of a recipe\n\nA recipe is one TOML file; [training](../train.md) says how it is used. "
        "`--set TABLE.KEY=VALUE` changes one key for one run.",
    ]
    for name, field in Recipe.model_fields.items():
        kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                said = " ".join((kind.__doc__ or "").split()).partition(": ")[2]
                title = f"[[{name}]]" if name == "rewards" else f"[{name}]"
                parts.append(f"\n## {title}\n\n{said[:1].upper()}{said[1:]}\n\n{keys_table(kind)}")
    said = field_docs(Recipe)["trainer"][1].partition(": ")[2]
    parts.append(f"\n## [trainer]\n\n{said[:1].upper()}{said[1:]}")
    prompt = Recipe.model_fields["reply_format"].default.system_prompt
    parts.append(f"\n## The system prompt of [reply_format]\n\n```text\n{prompt}\n```")
    return "\n".join(parts) + "\n"


def rig_toml_page() -> str:
    """Every table of rig.toml that is no command's."""
    parts = [
        NOTE,
        "# Every key of rig.toml\n\nA table named like a command gives defaults for that command's options: "
        "`[serve]` with `port = 9000` is `rig serve --port 9000`. The other tables are these. "
        "Durations are written `90s`, `15m`, `2h`, `7d`; money is US dollars. "
        'An outlet is named after its kind, or says it: `[outlets.home]` with `kind = "webhook"`. '
        "The outlet `screen` needs no table.",
    ]
    for title, model in RIG_TOML.items():
        parts.append(f"\n## {title}\n\n{keys_table(model)}")
    return "\n".join(parts) + "\n"


def pages() -> dict[Path, str]:
    """Every page of the folder and what it should say."""
    commands = {f"commands-{page}.md": commands_page(names) for page, names in PAGES.items()}
    named = {
        "commands.md": all_commands_page(),
        **commands,
        "recipe.md": recipe_page(),
        "rig-toml.md": rig_toml_page(),
    }
    return {FOLDER / name: text for name, text in named.items()}


def main(check: bool) -> int:
    """Write the pages, or say which are out of date."""
    old = [
        path
        for path, text in pages().items()
        if not path.is_file() or path.read_text("utf-8") != text
    ]
    for path in old:
        if check:
            print(f"docs/reference/{path.name} is out of date: make docs", file=sys.stderr)
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_text(pages()[path], "utf-8")
    return 1 if check and old else 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
