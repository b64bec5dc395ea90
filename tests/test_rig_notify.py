"""A person is told: `pytest tests/test_rig_notify.py`. The services are real HTTP on loopback."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import rig.cli
from rig import notify
from rig.errors import WrongUse
from support.scripted_http import Say, ScriptedServer

pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated")  # Apprise's import

TOPIC = "a-topic-nobody-guesses"


@pytest.fixture
def service() -> Iterator[ScriptedServer]:
    with ScriptedServer() as server:
        server.will_say("/", Say({"id": "1", "event": "message"}))
        server.will_say("/hook", Say({}))
        yield server


def ntfy(server: ScriptedServer) -> str:
    return server.url.replace("http://", "ntfy://") + f"/{TOPIC}"


def rig_notify(*words: str) -> Result:
    return CliRunner().invoke(rig.cli.main, ["notify", *words])


def write_toml(value: str) -> None:
    Path("rig.toml").write_text(f"[notify]\nto = {value}\n")


@pytest.mark.parametrize("form", ['"{}"', '["{}"]', '["@topics.txt"]'])
def test_the_addresses_of_rig_toml_are_told(
    elsewhere: Path, service: ScriptedServer, form: str
) -> None:
    write_toml(form.format(ntfy(service)))
    Path("topics.txt").write_text(f"# mine\n{ntfy(service)}\n\n")
    done = rig_notify("A title: ümlaut", "--", "and\nits words")
    assert done.exit_code == 0, done.output
    ((_, _, body),) = service.history
    assert (body["topic"], body["title"], body["message"]) == (
        TOPIC, "A title: ümlaut", "and\nits words",
    )  # fmt: skip
    assert done.output.endswith(": told\n")


def test_one_deaf_address_does_not_keep_the_others_from_hearing(
    elsewhere: Path, service: ScriptedServer
) -> None:
    hook = service.url.replace("http://", "json://") + "/hook"
    write_toml(json.dumps(["ntfy://127.0.0.1:9/unreachable", "nonsense", hook]))
    done = rig_notify("--test")
    assert done.exit_code == 1
    assert [path for path, _, _ in service.history] == ["/hook"]
    assert "2 of 3 addresses could not be told." in done.output
    assert "an address: it is no address that Apprise knows" in done.output


def test_an_error_of_the_service_is_a_sentence_without_the_secret(
    elsewhere: Path, service: ScriptedServer
) -> None:
    service.will_say("/", Say({"error": f"topic {TOPIC} is reserved"}, 403))
    write_toml(json.dumps([ntfy(service)]))
    done = rig_notify("--test", "--json")
    (found,) = json.loads(done.stdout.splitlines()[0])
    assert "403" in found["fault"]
    assert TOPIC not in found["fault"]


def test_the_addresses_are_never_shown(elsewhere: Path, service: ScriptedServer) -> None:
    write_toml(json.dumps([ntfy(service)]))
    shown = CliRunner().invoke(rig.cli.main, ["config"]).output
    assert "notify.to" in shown
    assert TOPIC not in shown


def test_without_an_address_it_says_how_to_give_one(elsewhere: Path) -> None:
    done = rig_notify("--test")
    assert done.exit_code == 2
    assert 'to = ["ntfy://' in done.output


@pytest.mark.parametrize("value", ["3", "[1]", '["@nowhere.txt"]', '["@folder"]'])
def test_a_wrong_table_is_a_sentence(elsewhere: Path, value: str) -> None:
    Path("folder").mkdir()
    write_toml(value)
    done = rig_notify("--test")
    assert done.exit_code == 2
    assert "[notify]" in done.output


def test_an_address_is_kept_once_whatever_names_it() -> None:
    assert notify.read_addresses("ntfy://a  ntfy://b ntfy://a") == ("ntfy://a", "ntfy://b")
    assert notify.read_addresses([]) == ()
    with pytest.raises(WrongUse, match="in quotes"):
        notify.read_addresses([b"ntfy://a"])  # type: ignore[list-item]


def test_a_process_tells_through_a_child_and_is_never_hurt(
    elsewhere: Path, service: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    notify.tell_person("nobody", "is there", wait=True)
    assert service.history == []
    write_toml(json.dumps([ntfy(service)]))
    notify.tell_person("--help", "-- starts like an option", wait=True)
    ((_, _, body),) = service.history
    assert (body["title"], body["message"]) == ("--help", "-- starts like an option")
    service.will_say("/", Say({}, 500))
    notify.tell_person("a", "b", wait=True)
    assert "1 of 1 addresses could not be told" in caplog.text
    Path("rig.toml").write_text("[notify\n")
    notify.tell_person("a", "b", wait=True)
    assert "is not valid TOML" in caplog.text


def test_a_long_message_is_cut_where_services_would_refuse_it(
    elsewhere: Path, service: ScriptedServer
) -> None:
    (sent,) = notify.send_notification("t", "word " * 3000, [ntfy(service)])
    assert not sent.fault
    messages: list[Any] = [body["message"] for _, _, body in service.history]
    assert len(messages) == 1
    assert messages[0].endswith(" ...")
    assert len(messages[0]) <= notify.LONGEST


def test_a_file_of_addresses_can_be_private(elsewhere: Path) -> None:
    path = Path("topics.txt")
    path.write_text("ntfy://a\n")
    path.chmod(stat.S_IRUSR | stat.S_IWUSR)
    assert notify.read_addresses("@topics.txt") == ("ntfy://a",)
