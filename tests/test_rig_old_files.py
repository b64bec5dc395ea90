"""A run, a GGUF and a ledger that an older rig made: `pytest tests/test_rig_old_files.py`.

`tests/data/before_the_move` was written by the commands of the last commit before modules were moved and two
things were renamed. Whatever is in those files must still be read; the two renamed things say what to rename.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from conftest import ROOT

import rig.cli
from rig import runs
from rig.atomic import write_text
from rig.errors import WrongUse
from support.serve_server import Server
from train import recipe as recipes

OLD = ROOT / "tests" / "data" / "before_the_move"


def rig_(*words: str) -> Result:
    return CliRunner().invoke(rig.cli.main, list(words))


@pytest.fixture
def old_run(elsewhere: Path) -> Path:
    folder = elsewhere / "runs" / "before"
    shutil.copytree(OLD / "run", folder)
    return folder


def rename_base(run: Path) -> None:
    record = (run / "run.json").read_text("utf-8")
    write_text(run / "run.json", record.replace('"base": "embedded"', '"base": "toy"'))


def rename_table(run: Path) -> None:
    recipe = (run / "recipe.toml").read_text("utf-8").replace('"embedded"', '"toy"')
    write_text(run / "recipe.toml", recipe.replace("[speech]", "[reply_format]"))


def test_an_old_run_says_what_to_rename_and_is_exported_then(old_run: Path, own_home: Path) -> None:
    assert runs.Run.open(old_run).state == "checked"
    refused = rig_("export", "before", "--gguf", "--no-check")
    assert refused.exit_code == 2
    assert "`embedded` is called `toy` now" in refused.output
    assert '"base": "toy"' in refused.output
    rename_base(old_run)
    refused = rig_("export", "before", "--gguf", "--no-check")
    assert refused.exit_code == 1
    assert "speech.json is called reply_format.json now: rename it." in refused.output
    (old_run / "adapter" / "speech.json").rename(old_run / "adapter" / "reply_format.json")
    done = rig_("export", "before", "--gguf")
    assert done.exit_code == 0, done.output
    assert "nothing is wrong" in done.output


def test_an_old_recipe_says_what_to_rename_and_is_read_then(old_run: Path) -> None:
    text = (old_run / "recipe.toml").read_text("utf-8")
    assert "use_vllm = false" in text
    with pytest.raises(WrongUse, match=r"\[speech\] is called \[reply_format\] now"):
        recipes.parse_recipe(text, "recipe.toml")
    rename_table(old_run)
    found = recipes.parse_recipe((old_run / "recipe.toml").read_text("utf-8"), "recipe.toml")
    assert (found.model.name, found.schedule.max_steps, found.lora.r) == ("toy", 3, 2)
    assert found.reply_format.reasoning_open == "<reasoning>"


def test_the_old_recipe_s_name_leads_to_the_new_one() -> None:
    refused = rig_("train", "embedded-arithmetic", "--plan")
    assert refused.exit_code == 2
    assert "toy-arithmetic" in refused.output


def test_an_old_gguf_is_served_in_the_form_it_was_taught(tmp_path: Path, own_home: Path) -> None:
    with Server(OLD / "model.gguf", tmp_path) as server:
        reply = server.chat("A shop had 43 keys. It bought 22. How many keys?", max_tokens=40)
        assert reply.status_code == 200, reply.text
        assert reply.json()["choices"][0]["message"]["content"]


def test_an_old_ledger_is_read_and_goes_on(elsewhere: Path, own_home: Path) -> None:
    place = own_home / "data"
    place.mkdir(parents=True, exist_ok=True)
    shutil.copy(OLD / "ledger.sqlite", place / "ledger.sqlite")
    told = rig_("bot", "history")
    assert told.exit_code == 0, told.output
    assert told.output.count("tick → file") == 2
    assert "Oskapt mwmatls" in told.output
