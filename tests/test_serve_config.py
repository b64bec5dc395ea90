"""pytest tests/test_serve_config.py: the settings on their way from the command to the engine's process."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from rig.errors import RigError
from serve import cli, server
from serve.config import EngineConfig, ServerConfig
from serve.engine import worker
from support import serve_gguf

CONFIG = EngineConfig(
    model="m.gguf",
    ctx=4096,
    parallel=2,
    threads=3,
    batch=128,
    parked_bytes=7,
    kv_type="q8_0",
    flash_attn=False,
    mlock=True,
    adapters=("a.gguf", "b.gguf"),
    disk="prefixes",
    disk_bytes=2**40,
    template="t.jinja",
    drafting=False,
)
"""Every field is another than its default."""


def test_every_setting_of_the_engine_comes_back_from_json() -> None:
    defaults = EngineConfig(model="", ctx=0)
    assert all(getattr(CONFIG, f.name) != getattr(defaults, f.name) for f in fields(CONFIG))
    assert EngineConfig.from_json(CONFIG.to_json()) == CONFIG


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"paralel": 4}, "EngineConfig has no 'paralel'; did you mean 'parallel'?"),
        ({"ctx": "4096"}, "ctx must be int, and '4096' is not"),
        ({"ctx": None}, "ctx must be int, and None is not"),
        ({"ctx": 40.5}, "ctx must be int, and 40.5 is not"),
        ({"ctx": True}, "ctx must be int, and True is not"),
        ({"mlock": 1}, "mlock must be bool, and 1 is not"),
        ({"model": 7}, "model must be str, and 7 is not"),
        ({"adapters": "a.gguf"}, "adapters must be tuple[str, ...], and 'a.gguf' is not"),
        ({"adapters": ["a.gguf", 2]}, "adapters must be tuple[str, ...], and ('a.gguf', 2) is not"),
    ],
)
def test_a_setting_that_is_unknown_or_of_another_type_is_refused(
    change: dict[str, Any], says: str
) -> None:
    with pytest.raises(RigError) as error:
        EngineConfig.from_json(json.dumps(asdict(CONFIG) | change))
    assert says in error.value.message


@pytest.mark.parametrize(
    ("text", "says"),
    [('{"model": "m"}', "'ctx'"), ("{", "is not JSON"), ("[1]", "is not a JSON object")],
)
def test_settings_that_are_not_whole_are_refused(text: str, says: str) -> None:
    with pytest.raises(RigError, match="EngineConfig") as error:
        EngineConfig.from_json(text)
    assert says in error.value.message


def test_the_settings_of_the_http_side_are_checked_and_show_no_key() -> None:
    assert ServerConfig("m", time_limit=5, api_key=None).time_limit == 5, "a whole number will do"
    assert "hidden" not in repr(ServerConfig("m", api_key="hidden"))
    with pytest.raises(RigError, match=r"waiting must be int, and 1\.5 is not"):
        ServerConfig("m", waiting=1.5)  # type: ignore[arg-type]
    with pytest.raises(RigError, match=r"api_key must be str \| None") as error:
        ServerConfig("m", api_key=b"hidden")  # type: ignore[arg-type]
    assert "hidden" not in error.value.message


def test_every_option_of_the_command_reaches_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_home: Path
) -> None:
    model = serve_gguf.write(tmp_path / "m.gguf")
    lora = serve_gguf.write_lora(tmp_path / "lora.gguf")
    (tmp_path / "key").write_text("hidden")
    (tmp_path / "key").chmod(0o600)
    built: list[server.ModelServer] = []
    monkeypatch.setattr(server.ModelServer, "serve_until_stopped", lambda made: built.append(made))
    words = (
        f"{model} --host localhost --port 0 --ctx 1024 --parallel 3 --threads 1 --batch 64"
        f" --cache-type q8_0 --no-flash-attn --mlock --lora poet={lora} --queue 5 --idle-exit 7"
        f" --idle-unload 6 --no-system --no-draft --prefix-cache 0.5 --allow-host box"
        f" --api-key-file {tmp_path / 'key'} --body-limit 2 --time-limit 9"
    )
    done = CliRunner().invoke(cli.serve, words.split())
    assert done.exit_code == 0, done.output
    (made,) = built
    Path(made._host._crumb).unlink()
    engine, http, idle = made._host.config, made._app.config, made._app.idle
    assert replace(engine, parked_bytes=0) == EngineConfig(
        model=str(model),
        ctx=1024,
        parallel=3,
        threads=1,
        batch=64,
        parked_bytes=0,
        kv_type="q8_0",
        flash_attn=False,
        mlock=True,
        adapters=(str(lora),),
        disk=str(own_home / "cache" / "prefixes"),
        disk_bytes=2**29,
        drafting=False,
    )
    assert engine.parked_bytes > 0, "what was counted on is what may be used"
    assert replace(http, fingerprint="") == ServerConfig(
        name="m",
        parallel=3,
        waiting=5,
        api_key="hidden",
        hosts=("box", "localhost"),
        body_limit=2 << 20,
        time_limit=9.0,
        add_system=False,
        adapters=("poet",),
    )
    assert len(http.fingerprint) > 8
    assert (idle.unload_after, idle.exit_after) == (6, 7)


def test_cells_on_disk_belong_to_one_file_and_one_way_to_compute(tmp_path: Path) -> None:
    """Cells of another file, or computed otherwise, must not be found again."""
    path = tmp_path / "m.gguf"
    path.write_bytes(b"weights")
    config = EngineConfig(model=str(path), ctx=512)
    first = worker.cell_family(config)
    assert worker.cell_family(replace(config, ctx=1024, threads=4)) == first
    others = [
        worker.cell_family(replace(config, kv_type="q8_0")),
        worker.cell_family(replace(config, flash_attn=False)),
    ]
    path.write_bytes(b"Weights")  # exported again while the server had unloaded it
    os.utime(path, ns=(1, 1))
    others.append(worker.cell_family(config))
    path.write_bytes(b"more weights")
    os.utime(path, ns=(1, 1))
    others.append(worker.cell_family(config))
    (tmp_path / "n.gguf").write_bytes(b"more weights")
    os.utime(tmp_path / "n.gguf", ns=(1, 1))
    others.append(worker.cell_family(replace(config, model=str(tmp_path / "n.gguf"))))
    assert len({first, *others}) == 6
