"""Finding a server or starting one, by any number of callers: `pytest tests/test_rig_server_connect.py`.

What is started here is a stand-in for `rig serve`: a real process with a real port that announces itself.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rig import paths
from rig.errors import RigError, WrongUse
from rig.runs import Run
from rig.server import connect, running_servers
from support.scripted_http import Say, ScriptedServer

STAND_IN = """
import json, os, sys, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from rig.server import running_servers
name, idle, plan = sys.argv[1], float(sys.argv[2]), json.loads(sys.argv[3])
print("loading the model", flush=True)
time.sleep(plan.get("load", 0))
if "dies" in plan:
    sys.exit("Error: " + plan["dies"])
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        sick = os.path.exists(plan.get("sick", "/no/such/file"))
        self.send_response(503 if sick else 200)
        self.end_headers()
        self.wfile.write(json.dumps({"data": [{"id": str(os.getpid())}]}).encode())
    def log_message(self, *_):
        pass
http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=http.serve_forever, daemon=True).start()
path = running_servers.announce_server(name, url=f"http://127.0.0.1:{http.server_port}")
time.sleep(idle)
running_servers.withdraw_server(path)
"""


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch, elsewhere: Path) -> Iterator[dict[str, Any]]:
    """How the stand-in behaves: `load` seconds, `dies` with a sentence, `sick` while that file is there."""
    plan: dict[str, Any] = {}

    def command(name: str, idle: int) -> list[str]:
        arguments = [running_servers.model_identity(name), str(idle), json.dumps(plan)]
        return [sys.executable, "-c", STAND_IN, *arguments]

    monkeypatch.setattr(connect, "serve_command", command)
    yield plan
    for found in running_servers.live_servers():
        connect.stop_server(found)


def eventually(true: Callable[[], bool], seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_a_server_is_started_found_again_and_leaves_nothing(plan: dict[str, Any]) -> None:
    found = connect.start_server("some/model:Q4_K_M", idle=60, timeout=30)
    assert (
        connect.find_running_server("some/model:Q4_K_M")
        == found
        == connect.find_running_server(None)
    )
    assert connect.find_running_server("other/model") is None
    connect.stop_server(found)
    assert eventually(lambda: running_servers.live_servers() == []), (
        "silent first, and gone a moment later"
    )
    assert not [
        p for p in (paths.state_dir() / "servers").iterdir() if p.suffix in (".json", ".alive")
    ]


def test_it_leaves_by_itself_and_its_parent_keeps_no_zombie(plan: dict[str, Any]) -> None:
    found = connect.start_server("m", idle=1, timeout=30)
    assert eventually(lambda: connect.find_running_server("m") is None)
    assert eventually(lambda: not Path(f"/proc/{found['pid']}").exists())


CALLER = """
import sys
from rig.server import connect
import test_rig_server_connect, json
connect.serve_command = lambda name, idle: [
    sys.executable, "-c", test_rig_server_connect.STAND_IN, name, "60", '{"load": 1}'
]
with connect.connect_model(model="shared/model") as client:
    print(client.model_info()["id"])
"""


@pytest.mark.parametrize("callers", [3])
def test_callers_at_the_same_moment_start_one_server(plan: dict[str, Any], callers: int) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CALLER],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for _ in range(callers)
    ]  # fmt: skip
    said = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0] * callers, said
    assert len({out for out, _ in said}) == 1, "all came to the same process"
    assert len(running_servers.live_servers()) == 1
    assert sum("Loading" in err for _, err in said) == 1, "one of them loaded it"


@pytest.mark.slow
@pytest.mark.parametrize("round_", range(20))
def test_again_and_again_they_start_one(plan: dict[str, Any], round_: int) -> None:
    test_callers_at_the_same_moment_start_one_server(plan, 12)


def test_what_a_killed_server_left_is_swept_away(plan: dict[str, Any]) -> None:
    first = connect.start_server("m", idle=60, timeout=30)
    os.kill(first["pid"], signal.SIGKILL)
    assert eventually(lambda: running_servers.live_servers() == [])
    second = connect.start_server("m", idle=60, timeout=30)
    assert second["pid"] != first["pid"]
    assert running_servers.live_servers("m") == [second]


def test_a_stranger_on_the_port_of_a_dead_server_is_not_taken_for_it(plan: dict[str, Any]) -> None:
    with ScriptedServer() as stranger:
        path = (
            paths.state_dir() / "servers" / f"{running_servers.model_key('m')}-{os.getpid()}.json"
        )
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"model": "m", "url": stranger.url, "pid": os.getpid()}))
        assert connect.find_running_server("m") is None
        assert stranger.history == [], "it was not even asked"
    assert not path.exists()


def test_half_an_announcement_is_no_server(plan: dict[str, Any]) -> None:
    path = running_servers.announce_server("m", url="http://127.0.0.1:1")
    path.write_text('{"model": ')
    assert running_servers.live_servers("m") == []
    running_servers.withdraw_server(path)


def test_a_server_that_dies_while_loading_is_told_with_its_own_words(plan: dict[str, Any]) -> None:
    plan["dies"] = "m needs 40 GiB, and 2 are free here."
    with pytest.raises(
        RigError, match="m could not be served: m needs 40 GiB, and 2 are free here"
    ):
        connect.start_server("m", idle=60, timeout=30)
    assert running_servers.live_servers() == []


def test_a_server_that_never_gets_ready_is_stopped(plan: dict[str, Any]) -> None:
    plan["load"] = 60
    begun = time.monotonic()
    with pytest.raises(RigError, match=r"not ready after 1 s.*start_timeout"):
        connect.start_server("m", idle=60, timeout=1)
    assert time.monotonic() - begun < 15
    assert running_servers.live_servers() == []


def test_a_living_server_that_is_not_well_is_waited_for(
    plan: dict[str, Any], tmp_path: Path
) -> None:
    sick = tmp_path / "sick"
    plan["sick"] = str(sick)
    first = connect.start_server("m", idle=60, timeout=30)
    sick.touch()
    assert connect.find_running_server("m") is None
    with pytest.raises(RigError, match="does not answer: stop it"):
        connect.start_server("m", idle=60, timeout=1)
    sick.unlink()
    assert connect.start_server("m", idle=60, timeout=30) == first, "no rival was started"


def test_ctrl_c_while_it_loads_stops_it_too(plan: dict[str, Any]) -> None:
    probe = CALLER.replace('"load": 1', '"load": 60')
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    caller = subprocess.Popen(
        [sys.executable, "-c", probe], env=environment, stderr=subprocess.PIPE
    )
    log = paths.state_dir() / "servers" / f"{running_servers.model_key('shared/model')}.log"
    assert eventually(lambda: log.exists() and b"loading" in log.read_bytes())
    children = Path(f"/proc/{caller.pid}/task/{caller.pid}/children").read_text().split()
    caller.send_signal(signal.SIGINT)
    caller.communicate(timeout=20)
    assert len(children) == 1
    assert eventually(lambda: not Path(f"/proc/{children[0]}").exists())


# ---------------------------------------------------------------------------------------------
# which one


def test_one_model_has_one_name_however_it_is_written(elsewhere: Path) -> None:
    run = Run.create(elsewhere / "runs/reason", recipe="", base="toy")
    weights = run.path / "reason-Q8_0.gguf"
    weights.write_bytes(b"GGUF")
    assert running_servers.model_identity("reason") == str(run.path.resolve()), (
        "nothing is exported yet"
    )
    run.update_record("exported", exports=[{"file": weights.name}])
    names = ["reason", "runs/reason", str(run.path), "runs/reason/reason-Q8_0.gguf", str(weights)]
    assert {running_servers.model_identity(name) for name in names} == {str(weights)}
    assert running_servers.model_identity("org/repo:Q4_K_M") == "org/repo:Q4_K_M"


def test_new_weights_under_the_old_name_are_another_model(
    plan: dict[str, Any], elsewhere: Path
) -> None:
    weights = elsewhere / "m.gguf"
    weights.write_bytes(b"old")
    first = connect.start_server(str(weights), idle=60, timeout=30)
    assert connect.find_running_server(str(weights)) == first
    weights.write_bytes(b"newer")
    assert connect.find_running_server(str(weights)) is None


def test_without_a_model_the_newest_server_answers(plan: dict[str, Any]) -> None:
    connect.start_server("first", idle=60, timeout=30)
    second = connect.start_server("second", idle=60, timeout=30)
    with connect.connect_model() as client:
        assert client.url == second["url"]


def test_an_announcement_is_for_its_user_alone(elsewhere: Path) -> None:
    path = running_servers.announce_server("m", url="http://127.0.0.1:1", api_key="s3cret")
    assert path.stat().st_mode & 0o077 == 0
    assert path.parent.stat().st_mode & 0o077 == 0
    running_servers.withdraw_server(path)
    assert not path.exists()


def test_a_server_announces_anew_under_the_same_process(elsewhere: Path) -> None:
    path = running_servers.announce_server("m", url="http://127.0.0.1:1")
    assert running_servers.announce_server("m", url="http://127.0.0.1:2") == path
    assert [found["url"] for found in running_servers.live_servers("m")] == ["http://127.0.0.1:2"]
    running_servers.withdraw_server(path)
    running_servers.withdraw_server(path)


def test_nothing_named_and_nothing_running_says_what_to_give(elsewhere: Path) -> None:
    with pytest.raises(WrongUse, match=r"--model RUN\|FILE or --url"):
        connect.connect_model()


def test_the_table_model_decides_when_nothing_is_given(
    plan: dict[str, Any], elsewhere: Path
) -> None:
    (elsewhere / "rig.toml").write_text('[model]\nname = "of/the-table"\nidle = 7\n')
    with connect.connect_model() as client:
        assert client.url == running_servers.live_servers("of/the-table")[0]["url"]


def test_an_address_wins_and_is_not_asked_before_it_is_needed(elsewhere: Path) -> None:
    (elsewhere / "rig.toml").write_text('[model]\nurl = "http://nuc:8377"\nname = "llama3.1"\n')
    with connect.connect_model() as client:
        assert (client.url, client.model) == ("http://nuc:8377", "llama3.1")
    with connect.connect_model("http://other:1", api_key="k") as client:
        assert client.url == "http://other:1"


def test_with_an_address_a_file_of_ours_is_not_a_name_of_theirs(elsewhere: Path) -> None:
    (elsewhere / "m.gguf").write_bytes(b"GGUF")
    with ScriptedServer() as server:
        server.will_say("/v1/models", Say({"data": [{"id": "theirs"}]}))
        with connect.connect_model(server.url, "m.gguf") as client:
            assert client.model == "theirs"


def test_the_real_command_is_rig_serve_on_any_port(elsewhere: Path) -> None:
    asked = connect.serve_command("org/repo:Q8_0", 300)
    assert asked[1:] == [
        "-P",
        "-m",
        "rig",
        "serve",
        "org/repo:Q8_0",
        "--port",
        "0",
        "--idle-exit",
        "300",
    ]
