"""Models pulled from a hub that breaks off and lies: `pytest tests/test_serve_models_download.py`."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants as hub_constants
import pytest

from rig.errors import RigError, WrongUse
from serve.models import download
from serve.models.reference import parse_reference
from support.fake_hub import COMMIT, FakeHub, fake_hub

REPO = "someone/Model-GGUF"


BYTES = b"GGUF" + random.Random(1).randbytes(2_999_996)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with fake_hub() as found:
        monkeypatch.setattr(hub_constants, "ENDPOINT", found.url)
        monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", False)
        found.files[REPO] = {
            "README.md": b"hello",
            "Model-Q4_K_M.gguf": BYTES,
            "Model-Q8_0.gguf": BYTES * 2,
            "mmproj-Model-f16.gguf": b"eyes",
        }
        yield found


@pytest.fixture
def told() -> list[tuple[str, int, int]]:
    return []


def fetch(text: str, told: list[tuple[str, int, int]] | None = None) -> Path:
    reference = parse_reference(text)
    assert reference is not None
    seen = [] if told is None else told
    return download.pull_model(reference, lambda *row: seen.append(row))


def test_a_model_is_pulled_checked_and_remembered(
    hub: FakeHub, told: list[tuple[str, int, int]]
) -> None:
    path = fetch(f"{REPO}:Q4_K_M", told)
    assert path.read_bytes() == BYTES
    assert path == download.models_folder() / REPO / "Model-Q4_K_M.gguf"
    record = download.read_record(path)
    assert record["sha256"] == hashlib.sha256(BYTES).hexdigest()
    assert (record["repo"], record["revision"], record["size"]) == (REPO, COMMIT, len(BYTES))
    assert told[-1] == ("Model-Q4_K_M.gguf", len(BYTES), len(BYTES))
    assert {p.name for p in path.parent.iterdir()} <= {
        "Model-Q4_K_M.gguf", "Model-Q4_K_M.gguf.json", ".Model-Q4_K_M.gguf.lock"
    }  # fmt: skip
    served = hub.served
    assert fetch(f"{REPO}:q4_k_m") == path
    assert hub.served == served, "the second time nothing is fetched"


def test_a_broken_connection_is_gone_on_with_and_costs_nothing(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)  # type: ignore[attr-defined]
    hub.breaks_after = [700_000, 1, 0, 1_000_000]
    assert fetch(f"{REPO}:Q4_K_M").read_bytes() == BYTES
    assert hub.served == len(BYTES), "not a byte twice"
    assert hub.ranges == [None, "bytes=700000-", "bytes=700001-", "bytes=700001-", "bytes=1700001-"]


def test_a_hub_that_hiccups_is_asked_again(hub: FakeHub) -> None:
    hub.answers = [503, 502]
    assert fetch(f"{REPO}:Q4_K_M").read_bytes() == BYTES


def test_a_connection_that_stays_away_ends_in_a_sentence_and_is_gone_on_with(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)  # type: ignore[attr-defined]
    hub.breaks_after = [1_000_000, *[0] * download.TRIES]
    with pytest.raises(RigError, match=r"broke off at 1,000,000 of 3,000,000 bytes.*same command"):
        fetch(f"{REPO}:Q4_K_M")
    assert not list(download.models_folder().rglob("*.gguf")), "half a model has no name yet"
    assert fetch(f"{REPO}:Q4_K_M").read_bytes() == BYTES
    assert hub.served == len(BYTES)


def test_a_server_that_knows_no_ranges_is_read_from_the_start(hub: FakeHub) -> None:
    hub.ignores_ranges = True
    hub.breaks_after = [1_000_000]
    assert fetch(f"{REPO}:Q4_K_M").read_bytes() == BYTES


def test_a_damaged_download_is_noticed_thrown_away_and_pulled_anew(hub: FakeHub) -> None:
    hub.tampered = BYTES[:-1] + b"?"
    with pytest.raises(RigError, match="came damaged"):
        fetch(f"{REPO}:Q4_K_M")
    assert not [p for p in download.models_folder().rglob("*") if p.suffix in (".gguf", ".part")]
    hub.tampered = None
    assert fetch(f"{REPO}:Q4_K_M").read_bytes() == BYTES


def test_a_part_that_was_tampered_with_is_noticed(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)  # type: ignore[attr-defined]
    hub.breaks_after = [1_000_000, *[0] * download.TRIES]
    with pytest.raises(RigError, match="broke off"):
        fetch(f"{REPO}:Q4_K_M")
    (part,) = download.models_folder().rglob("*.part")
    part.write_bytes(bytes(1_000_000))
    with pytest.raises(RigError, match="damaged"):
        fetch(f"{REPO}:Q4_K_M")


def test_a_server_that_sends_too_much_is_not_written_without_end(hub: FakeHub) -> None:
    hub.tampered = BYTES * 3
    with pytest.raises(RigError, match="more than it said"):
        fetch(f"{REPO}:Q4_K_M")


def test_new_content_under_the_old_name_is_pulled(hub: FakeHub) -> None:
    first = fetch(f"{REPO}:Q4_K_M")
    hub.files[REPO]["Model-Q4_K_M.gguf"] = BYTES[::-1]
    assert fetch(f"{REPO}:Q4_K_M") == first
    assert first.read_bytes() == BYTES[::-1]


def test_all_parts_of_a_split_model_come(hub: FakeHub) -> None:
    names = [f"Q6_K/m-Q6_K-{n:05d}-of-00003.gguf" for n in (1, 2, 3)]
    hub.files[REPO] |= {name: name.encode() for name in names}
    path = fetch(f"{REPO}:Q6_K")
    assert path == download.models_folder() / REPO / names[0]
    assert all(
        (download.models_folder() / REPO / name).read_bytes() == name.encode() for name in names
    )


def test_the_token_goes_to_the_hub_and_not_to_where_it_points(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    fetch(f"{REPO}:Q4_K_M")
    assert {key for place, key in hub.keys if place == "api"} == {"Bearer hf_secret"}
    assert {key for place, key in hub.keys if place == "cdn"} == {None}


def test_a_full_disk_is_seen_before_it_is_full(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("usage", (), {"free": 1_000_000})
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: usage)  # type: ignore[attr-defined]
    with pytest.raises(RigError, match="make room first"):
        fetch(f"{REPO}:Q4_K_M")
    assert hub.served == 0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("no/such", "no model no/such"),
        ("gated/one", r"terms accepted.*hf auth login"),
        (f"{REPO}:Q4_K_M@nope", "no revision 'nope'"),
        (f"{REPO}:Q2_K", "no Q2_K; there are: Q4_K_M, Q8_0"),
    ],
)
def test_what_the_hub_refuses_is_a_sentence(hub: FakeHub, text: str, says: str) -> None:
    hub.gated.add("gated/one")
    with pytest.raises((RigError, WrongUse), match=says):
        fetch(text)


def test_without_a_hash_nothing_is_believed(hub: FakeHub) -> None:
    hub.without_hash = True
    with pytest.raises(RigError, match="no hash"):
        fetch(f"{REPO}:Q4_K_M")


def test_no_hub_and_no_network_are_a_sentence(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_constants, "ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(RigError, match="can't be asked"):
        fetch(f"{REPO}:Q4_K_M")
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(RigError, match="HF_HUB_OFFLINE"):
        fetch(f"{REPO}:Q4_K_M")


def _pull_command(hub: FakeHub, *words: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0"}
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "rig", "pull", *words],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_the_command_prints_the_path_and_nothing_else(hub: FakeHub) -> None:
    process = _pull_command(hub, f"{REPO}:Q4_K_M", "--json")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    found = json.loads(out)
    assert Path(found["path"]).read_bytes() == BYTES
    assert "100 %" in err


@pytest.mark.parametrize("kills", [2, pytest.param(40, marks=pytest.mark.slow)])
def test_killed_at_any_moment_it_goes_on_where_it_was(hub: FakeHub, kills: int) -> None:
    hub.pace = 0.02 if kills < 10 else 0.08
    dice = random.Random(kills)
    killed = 0
    for _ in range(kills):
        process = _pull_command(hub, f"{REPO}:Q4_K_M")
        target = hub.served + dice.randrange(1, len(BYTES) // (kills + 1))
        while hub.served < target and process.poll() is None:
            time.sleep(0.005)
        killed += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=30)
        assert not list(download.models_folder().rglob("Model-Q4_K_M.gguf"))
    hub.pace = 0
    process = _pull_command(hub, f"{REPO}:Q4_K_M")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert Path(out.strip()).read_bytes() == BYTES
    assert killed == kills
    # what was on its way when it was killed comes twice: at most the buffers of a connection
    assert hub.served < len(BYTES) + kills * 1_500_000


def test_ctrl_c_keeps_what_has_come(hub: FakeHub) -> None:
    hub.pace = 0.02
    process = _pull_command(hub, f"{REPO}:Q4_K_M")
    while hub.served < 1_000_000:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Interrupted" in err
    assert "Traceback" not in err
    (part,) = download.models_folder().rglob("*.part")
    assert part.stat().st_size > 0


def test_two_at_a_time_do_not_write_into_each_other(hub: FakeHub) -> None:
    hub.pace = 0.02
    first = _pull_command(hub, f"{REPO}:Q4_K_M")
    while not hub.served:
        assert first.poll() is None
        time.sleep(0.01)
    with pytest.raises(RigError, match="Another process is pulling"):
        fetch(f"{REPO}:Q4_K_M")
    hub.pace = 0
    out, err = first.communicate(timeout=60)
    assert first.returncode == 0, err
    assert Path(out.strip()).read_bytes() == BYTES
