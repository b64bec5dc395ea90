"""pytest tests/test_serve_api_abuse.py: eight who mean harm and one person who reads, all at once.

Eight seconds by default; `-m slow` takes ten minutes, or as many as ABUSE_MINUTES says, and looks at the
memory: a server that has just begun has filled none of its places, and grows in its first minute.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks.serve_abuse import abuse_server
from support import serve_gguf
from support.serve_server import Server

SECONDS = [
    8.0,
    pytest.param(60 * float(os.environ.get("ABUSE_MINUTES", "10")), marks=pytest.mark.slow),
]
ENDLESS = {"logit_bias": {"264": -100}}


@pytest.mark.parametrize("seconds", SECONDS)
def test_a_person_reads_on_while_eight_others_do_their_worst(
    tmp_path: Path, seconds: float
) -> None:
    model = serve_gguf.write(tmp_path / "plain.gguf")
    with Server(model, tmp_path / "home", "--parallel", "4") as server:
        if seconds > 60:
            abuse_server(server.url, server.process.pid, server._log, 60.0, settle=10.0, **ENDLESS)
        found = abuse_server(
            server.url,
            server.process.pid,
            server._log,
            seconds,
            settle=10.0 if seconds > 60 else 2.0,
            **ENDLESS,
        )
        assert server.chat("hi").status_code == 200
    assert found.streams, found
    assert not found.broken, found.broken[:3]
    assert found.crashes == 0
    assert found.log_bytes < 5 << 20
    assert found.longest_gap < (2 if seconds > 60 else 20), found
    if seconds > 60:
        assert found.memory_after < 1.05 * found.memory_before + 16, found
    assert {"200", "400"} <= set(found.requests), found.requests
    assert not {"500", "502"} & set(found.requests), found.requests
