"""Models by name, and listed: `pytest tests/test_serve_models.py`."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import huggingface_hub.constants as hub_constants
import numpy as np
import pytest
from click.testing import CliRunner

import rig.cli
from rig.errors import WrongUse
from rig.model import gguf as model_gguf
from rig.runs import Run
from rig.server import running_servers
from serve.models import catalogue, download
from serve.models.reference import ModelReference, parse_reference
from support.fake_hub import COMMIT, FakeHub, fake_hub

REPO = "someone/Model-GGUF"


BYTES = random.Random(1).randbytes(3_000_000)


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


def gguf_file(path: Path, **keys: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, "llama")
    known = {
        "llama.context_length": 4096, "llama.block_count": 2, "llama.embedding_length": 64,
        "llama.attention.head_count": 4, "general.file_type": 7,
    }  # fmt: skip
    for key, value in (known | keys).items():
        add = writer.add_string if isinstance(value, str) else writer.add_uint32
        add(key.replace("__", "."), value)
    writer.add_tensor("token_embd.weight", np.zeros((256, 64), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


# ---------------------------------------------------------------------------------------------
# references


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("o/r", ModelReference("o/r")),
        ("o/r:Q4_K_M", ModelReference("o/r", quant="Q4_K_M")),
        ("o/r:q8_0@v2", ModelReference("o/r", quant="q8_0", revision="v2")),
        ("o/r/sub dir/m.gguf", ModelReference("o/r", file="sub dir/m.gguf")),
        ("hf:o/r:Q8_0", ModelReference("o/r", quant="Q8_0")),
        ("https://huggingface.co/o/r", ModelReference("o/r")),
        ("https://huggingface.co/o/r/blob/main/m.gguf", ModelReference("o/r", file="m.gguf")),
        (
            "microsoft/bitnet-b1.58-2B-4T-gguf:i2_s",
            ModelReference("microsoft/bitnet-b1.58-2B-4T-gguf", "i2_s"),
        ),
        ("model.gguf", None),
        ("./o/r", None),
        ("../o/r", None),
        ("/abs/o/r", None),
        ("C:\\models\\m.gguf", None),
        ("o/r/../../etc/passwd.gguf", None),
        ("", None),
    ],
)
def test_a_reference_is_known_by_its_form(text: str, reference: ModelReference | None) -> None:
    assert parse_reference(text) == reference
    if reference is not None:
        assert parse_reference(str(reference)) == reference


@pytest.mark.parametrize(
    ("asked", "names", "chosen"),
    [
        (ModelReference("o/r"), ["m-Q4_K_M.gguf", "m-Q8_0.gguf"], ["m-Q4_K_M.gguf"]),
        (ModelReference("o/r"), ["only.gguf", "README.md"], ["only.gguf"]),
        (ModelReference("o/r", "q8_0"), ["m.Q8_0.gguf", "m.Q4_K_M.gguf"], ["m.Q8_0.gguf"]),
        (
            ModelReference("o/r", "Q4_K"),
            ["m-Q4_K_M.gguf", "m-Q4_K_S.gguf", "m-Q4_K.gguf"],
            ["m-Q4_K.gguf"],
        ),
        (ModelReference("o/r", "Q4_K_M"), ["m-UD-Q4_K_M.gguf", "m-Q4_K_M.gguf"], ["m-Q4_K_M.gguf"]),
        (ModelReference("o/r", "f16"), ["m-f16.gguf", "mmproj-m-f16.gguf"], ["m-f16.gguf"]),
        (ModelReference("o/r", "i2_s"), ["ggml-model-i2_s.gguf"], ["ggml-model-i2_s.gguf"]),
        (
            ModelReference("o/r", "Q8_0"),
            ["Q8_0/m-Q8_0-00002-of-00002.gguf", "Q8_0/m-Q8_0-00001-of-00002.gguf", "m-Q4_0.gguf"],
            ["Q8_0/m-Q8_0-00001-of-00002.gguf", "Q8_0/m-Q8_0-00002-of-00002.gguf"],
        ),
        (ModelReference("o/r", file="b.gguf"), ["a.gguf", "b.gguf"], ["b.gguf"]),
    ],
)
def test_the_right_files_are_chosen(
    asked: ModelReference, names: list[str], chosen: list[str]
) -> None:
    assert asked.choose_files(names) == chosen


@pytest.mark.parametrize(
    ("asked", "names", "says"),
    [
        (ModelReference("o/r"), ["model.safetensors"], "no GGUF file"),
        (
            ModelReference("o/r"),
            ["../../.bashrc.gguf", "/etc/m.gguf", "..\\m.gguf"],
            "no GGUF file",
        ),
        (ModelReference("o/r"), ["m-Q5_0.gguf", "m-Q8_0.gguf"], "there are: Q5_0, Q8_0"),
        (
            ModelReference("o/r", "Q2_K"),
            ["m-Q5_0.gguf", "m-Q8_0.gguf"],
            "no Q2_K; there are: Q5_0, Q8_0",
        ),
        (ModelReference("o/r", file="x.gguf"), ["m-Q5_0.gguf"], "no x.gguf; there are"),
        (
            ModelReference("o/r", "Q8_0"),
            ["a-Q8_0.gguf", "b-Q8_0.gguf"],
            "several files.*a-Q8_0.gguf, b-Q8_0",
        ),
    ],
)
def test_what_cannot_be_chosen_says_what_there_is(
    asked: ModelReference, names: list[str], says: str
) -> None:
    with pytest.raises(WrongUse, match=says):
        asked.choose_files(names)


# ---------------------------------------------------------------------------------------------
# which file a name means


def test_a_run_is_its_last_export(elsewhere: Path) -> None:
    run = Run.create(elsewhere / "runs/reason", recipe="", base="toy")
    with pytest.raises(WrongUse, match="rig export reason --gguf"):
        catalogue.find_model_file("reason")
    for name in ("old.gguf", "new.gguf"):
        gguf_file(run.path / name)
    run.update_record("exported", exports=[{"file": "old.gguf"}, {"file": "new.gguf"}])
    assert (
        catalogue.find_model_file("reason").name
        == catalogue.find_model_file("runs/reason").name
        == "new.gguf"
    )
    assert (
        catalogue.served_model_name("runs/reason", catalogue.find_model_file("reason")) == "reason"
    )


def test_a_file_and_a_folder_with_one_model_are_taken(elsewhere: Path) -> None:
    path = gguf_file(elsewhere / "here/m.gguf")
    assert (
        catalogue.find_model_file("here/m.gguf").resolve()
        == catalogue.find_model_file("here").resolve()
        == path
    )
    gguf_file(elsewhere / "here/n.gguf")
    with pytest.raises(WrongUse, match=r"several models: name one of m.gguf, n.gguf"):
        catalogue.find_model_file("here")


def test_a_pulled_model_is_found_by_any_of_its_names(hub: FakeHub, elsewhere: Path) -> None:
    path = fetch(f"{REPO}:Q4_K_M")
    for name in (
        f"{REPO}:Q4_K_M",
        f"{REPO}:q4_k_m",
        REPO,
        f"{REPO}/Model-Q4_K_M.gguf",
        f"hf:{REPO}",
    ):
        assert catalogue.find_model_file(name) == path
    with pytest.raises(WrongUse, match=rf"no Q8_0; there are: Q4_K_M.*rig pull {REPO}:Q8_0"):
        catalogue.find_model_file(f"{REPO}:Q8_0")


def test_another_revision_is_another_model(hub: FakeHub, elsewhere: Path) -> None:
    path = fetch(f"{REPO}:Q4_K_M@v2")
    assert (
        catalogue.find_model_file(f"{REPO}:Q4_K_M@v2")
        == catalogue.find_model_file(f"{REPO}:Q4_K_M@{COMMIT[:8]}")
        == path
    )
    with pytest.raises(WrongUse, match=r"another revision: rig pull .*@v3"):
        catalogue.find_model_file(f"{REPO}:Q4_K_M@v3")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("org/repo:Q4_K_M", "rig pull org/repo:Q4_K_M"),
        ("nonsense", "no run, file or pulled model called nonsense"),
        ("empty", "neither a run folder nor holds a GGUF"),
    ],
)
def test_what_is_nowhere_says_how_to_get_it(elsewhere: Path, name: str, says: str) -> None:
    (elsewhere / "empty").mkdir()
    with pytest.raises(WrongUse, match=says):
        catalogue.find_model_file(name)


# ---------------------------------------------------------------------------------------------
# listing


def test_all_models_are_listed_with_what_they_need(elsewhere: Path) -> None:
    run = Run.create(elsewhere / "runs/reason", recipe="", base="toy")
    taught = gguf_file(run.path / "reason-Q8_0.gguf", rig__reasoning_open="<reasoning>")
    run.update_record("exported", exports=[{"file": taught.name}])
    pulled = gguf_file(download.models_folder() / "o/r/m-Q4_K_M.gguf")
    broken = elsewhere / "broken.gguf"
    broken.write_bytes(b"<html>not found</html>")
    url = "http://127.0.0.1:1"
    announced = running_servers.announce_server("reason", url=url)
    result = CliRunner().invoke(rig.cli.main, ["models", str(broken), "--json"])
    running_servers.withdraw_server(announced)
    rows = {row["name"]: row for row in json.loads(result.stdout)}
    assert set(rows) == {"reason", "o/r:Q4_K_M", str(broken)}
    assert rows["reason"]["taught"]
    assert not rows["o/r:Q4_K_M"]["taught"]
    assert rows["reason"]["note"] == f"running at {url}"
    assert (rows["o/r:Q4_K_M"]["path"], rows["o/r:Q4_K_M"]["context"]) == (str(pulled), 4096)
    assert rows["o/r:Q4_K_M"]["quant"] == "Q8_0", "what the file says, whatever its name"
    assert rows["o/r:Q4_K_M"]["fits"] == 4096
    assert rows[str(broken)]["fits"] == 0
    assert rows["reason"]["fingerprint"] == model_gguf.fingerprint_file(taught)
    assert "not a GGUF" in rows[str(broken)]["note"]
    for row in rows.values():
        if row["quant"] != "?":
            assert catalogue.find_model_file(row["name"]), "every name that is shown can be used"


def test_a_bad_file_never_hides_the_others(elsewhere: Path) -> None:
    good = gguf_file(Path("here/good.gguf"))
    raw = good.read_bytes()
    Path("here/cut.gguf").write_bytes(raw[:200])
    Path("here/empty.gguf").touch()
    Path("here/folder.gguf").mkdir()
    Path("here/gone.gguf").symlink_to("nowhere")
    Path("here/loop.gguf").symlink_to("loop.gguf")
    os.mkfifo("here/pipe.gguf")
    Path("here/zero.gguf").symlink_to("/dev/zero")
    gguf_file(Path("here/layers.gguf"), **{"llama.block_count": 2**31 - 1})
    gguf_file(Path("here/heads.gguf"), **{"llama.attention.head_count": "x"})
    gguf_file(Path("here/parts-00001-of-04000.gguf"), **{"split.count": 4000})
    rows = {Path(row.path).name: row for row in catalogue.list_models([Path("here")])}
    assert len(rows) == 11
    assert rows["good.gguf"].fits > 0
    assert all(row.note.endswith(".") for name, row in rows.items() if name != "good.gguf"), rows
    assert len(catalogue.format_models(list(rows.values()))) == 12


def test_the_listing_is_text_for_a_person(elsewhere: Path) -> None:
    gguf_file(download.models_folder() / "o/r/m.gguf")
    result = CliRunner().invoke(rig.cli.main, ["models"])
    assert result.stdout.splitlines()[0].split() == [
        "MODEL",
        "SIZE",
        "QUANT",
        "TRAINED",
        "ON",
        "FINGERPRINT",
        "HERE",
    ]
    assert "fits, with a context of 4096" in result.stdout


def test_no_models_say_how_to_get_one(elsewhere: Path) -> None:
    result = CliRunner().invoke(rig.cli.main, ["models"])
    assert (result.exit_code, result.stdout) == (0, "")
    assert "rig pull org/repo:Q4_K_M" in result.stderr
    assert json.loads(CliRunner().invoke(rig.cli.main, ["models", "--json"]).stdout) == []
