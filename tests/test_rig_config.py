"""Which setting wins, and what a wrong one is told: `pytest tests/test_rig_config.py`."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from rig import validation
from rig.atomic import write_text
from rig.cli import main
from rig.errors import WrongUse
from support.front_door import door


@click.command()
@click.option("--port", default=1, help="A port.")
def listen(port: int) -> None:
    """Print the port."""
    click.echo(port)


def test_flag_beats_environment_beats_folder_beats_user(
    elsewhere: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def port(*arguments: str) -> str:
        return CliRunner().invoke(door(listen), ["listen", *arguments]).output.strip()

    assert port() == "1"
    write_text(own_home / "config" / "rig.toml", "[listen]\nport = 2\n")
    assert port() == "2"
    write_text(elsewhere / "rig.toml", "[listen]\nport = 3\n")
    assert port() == "3"
    monkeypatch.setenv("RIG_LISTEN_PORT", "4")
    assert port() == "4"
    assert port("--port", "5") == "5"


@pytest.mark.parametrize(
    ("toml", "says"),
    [
        ("[listn]\nport = 2\n", "did you mean 'listen'"),
        ("[listen]\nprot = 2\n", "did you mean 'port'"),
        ("listen = 2\n", "write [listen]"),
        ("[listen\n", "not valid TOML"),
    ],
)
def test_a_wrong_rig_toml_is_named_with_the_nearest(elsewhere: Path, toml: str, says: str) -> None:
    write_text(elsewhere / "rig.toml", toml)
    result = CliRunner().invoke(door(listen), ["listen"])
    assert result.exit_code == 2
    assert says in result.output


def test_config_shows_the_winner_and_its_source(elsewhere: Path, own_home: Path) -> None:
    write_text(own_home / "config" / "rig.toml", "[model]\nname = 'weak'\n")
    write_text(elsewhere / "rig.toml", "[model]\nname = 'strong'\n[outlets.x]\napi_key = 'abc'\n")
    rows = json.loads(CliRunner().invoke(main, ["config", "--json"]).stdout)
    found = {row["name"]: (row["value"], row["source"]) for row in rows}
    assert found["model.name"] == ("strong", "rig.toml")
    assert found["outlets.x.api_key"][0] == "(set, not shown)"


class Inner(validation.FrozenModel):
    learning_rate: float = 1.0


class Outer(validation.FrozenModel):
    grpo: Inner = Inner()
    many: tuple[Inner, ...] = ()
    size: int


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"size": 1, "grpo": {"learnin_rate": 1}}, "did you mean 'learning_rate'"),
        ({"size": 1, "many": [{"learning": 1}]}, "did you mean 'learning_rate'"),
        ({"size": 1, "grop": {}}, "did you mean 'grpo'"),
        ({}, "'size' is missing"),
        ({"size": "big"}, "not 'big'"),
    ],
)
def test_a_wrong_value_is_one_sentence(values: dict[str, object], says: str) -> None:
    with pytest.raises(WrongUse) as caught:
        validation.validate_as(Outer, values, "recipe.toml")
    assert says in caught.value.message
    assert "\n" not in caught.value.message
