"""How a run ended reaches the person whom rig.toml names: `pytest tests/test_train_run_notify.py`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rig.errors import RigError
from support.scripted_http import Say, ScriptedServer
from support.small_runs import reward_file, start


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedServer]:
    """An ntfy on loopback that RIG_NOTIFY_TO names."""
    with ScriptedServer() as server:
        server.will_say("/", Say({}))
        monkeypatch.setenv("RIG_NOTIFY_TO", server.url.replace("http://", "ntfy://") + "/topic")
        yield server


def bodies(server: ScriptedServer) -> list[dict[str, Any]]:
    return [body for _, _, body in server.history]


def test_the_end_of_a_run_is_told_with_its_figures(
    elsewhere: Path, service: ScriptedServer
) -> None:
    start("backend.preflight=false")
    (body,) = bodies(service)
    assert body["title"] == "rig: mine is trained"
    assert "right, in the taught form" in body["message"]
    assert "Next: rig export runs/mine --gguf" in body["message"]


def test_an_alarm_is_told_once_and_a_failure_with_its_reason(
    elsewhere: Path, service: ScriptedServer
) -> None:
    dead = reward_file("def never(completions, **_):\n    return [0.0 for _ in completions]\n")
    with pytest.raises(RigError) as failed:
        start(
            f'rewards=[{{name="{dead}:never"}}]', "schedule.max_steps=12", "watch.never_learns=40",
            "evaluation.problems=0", "grpo.max_completion_length=4", "backend.preflight=false",
            "watch.stop=[\"never-learns\"]",
        )  # fmt: skip
    titles = [body["title"] for body in bodies(service)]
    assert titles[-1] == "rig: mine did not come to its end"
    assert [body["message"] for body in bodies(service)][-1] == failed.value.message
    assert len(titles) <= 2, "alarms after the first are in the log"
