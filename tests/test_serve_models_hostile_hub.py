"""A hub that makes no progress, lies about sizes and names, or leads away, ends in a sentence."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable, Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import click
import huggingface_hub.constants as hub_constants
import pytest
from click.testing import CliRunner

import rig.cli
from rig.errors import RigError, WrongUse
from serve.models import download
from serve.models.reference import ModelReference, parse_reference
from support.fake_hub import _Quiet, _serve

DATA = bytes(range(256)) * 512
SHA = hashlib.sha256(DATA).hexdigest()
Answer = Callable[[Any], None]


class Hub:
    """One repository whose listing and bytes are what a test says; `asked` counts who wants the bytes."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = [row("m.gguf")]
        self.sha: object = "a" * 40
        self.answer: Answer = lambda handler: handler.reply(200, DATA)
        self.asked = 0
        hub = self

        class Handler(_Quiet):
            def do_GET(self) -> None:
                if "/api/models/" in self.path:
                    found = {"id": "o/r", "modelId": "o/r", "sha": hub.sha, "siblings": hub.rows}
                    self.reply(200, json.dumps(found | {"tags": []}).encode())
                else:
                    hub.asked += "/resolve/" in self.path
                    hub.answer(self)

        self.server: ThreadingHTTPServer = _serve(Handler)


def row(name: str, size: object = len(DATA), sha: object = SHA) -> dict[str, Any]:
    return {"rfilename": name, "size": size, "lfs": {"size": 1, "sha256": sha, "pointerSize": 1}}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    found = Hub()
    monkeypatch.setattr(hub_constants, "ENDPOINT", f"http://127.0.0.1:{found.server.server_port}")
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)  # type: ignore[attr-defined]
    yield found
    found.server.shutdown()
    found.server.server_close()


def pull(reference: str = "o/r") -> Path:
    found = parse_reference(reference)
    assert found is not None
    return download.pull_model(found, lambda *_: None)


def drip(handler: Any) -> None:
    """One byte more than was asked from, then the connection ends."""
    start = int((handler.headers.get("range") or "bytes=0-")[6:-1])
    handler.send_response(206 if start else 200)
    handler.send_header("content-length", str(len(DATA) - start))
    handler.end_headers()
    handler.wfile.write(DATA[start : start + 1])
    handler.close_connection = True


def redirect(to: str | None) -> Answer:
    return lambda handler: handler.reply(302, b"", {"location": to or handler.path})


@pytest.mark.parametrize(
    ("answer", "says", "most"),
    [
        (lambda h: h.reply(200, b""), r"broke off at 0 of 131,072 bytes \(nothing came\), 5 times", 5),
        (lambda h: h.reply(206, b""), r"broke off at 0 of", 5),
        (lambda h: h.reply(200, DATA[:1000]), r"broke off at 1,000 of", 5),
        (drip, r"broke off at 5 of", 5),
        (lambda h: h.reply(503, b""), r"the hub answered 503\), 5 times", 5),
        (lambda h: h.reply(416, b""), r"answered 416", 1),
        (lambda h: h.reply(200, gzip.compress(DATA), {"content-encoding": "gzip"}), r"sent packed", 1),
        (lambda h: h.reply(200, DATA, {"content-encoding": "br"}), r"sent packed", 1),
        (lambda h: h.reply(206, DATA[9:], {"content-range": "bytes 9-131071/131072"}), "another part", 1),
        (lambda h: h.reply(200, b"x" * len(DATA)), r"came damaged", 1),
        (lambda h: h.reply(200, DATA * 2), r"sends more than it said", 1),
        (redirect(None), r"leads nowhere", 25),
        (redirect("file:///etc/passwd"), r"broke off|leads nowhere", 5),
        (redirect("http://[::bad"), r"broke off|leads nowhere", 5),
    ],
)  # fmt: skip
def test_a_hub_that_brings_nothing_is_given_up_after_a_few_tries(
    hub: Hub, answer: Answer, says: str, most: int
) -> None:
    hub.answer = answer
    with pytest.raises(RigError, match=says):
        pull()
    assert hub.asked <= most
    assert not list(download.models_folder().rglob("*.gguf"))


def test_what_is_no_gguf_is_thrown_away(hub: Hub) -> None:
    done = CliRunner().invoke(rig.cli.main, ["pull", "o/r"])
    assert done.exit_code == 1
    assert "is not a GGUF, whatever its name says" in done.stderr
    assert not list(download.models_folder().rglob("*.gguf"))


@pytest.mark.parametrize("size", [0, -5, 2**62, "5", 1.5, None, True])
def test_a_size_that_is_none_is_refused(hub: Hub, size: object) -> None:
    hub.rows = [row("m.gguf", size)]
    with pytest.raises(RigError, match=r"bytes: rig won't pull it|no hub does"):
        pull()
    assert hub.asked == 0


@pytest.mark.parametrize("sha", ["", "../../" + SHA[6:], SHA[:63], None, 7])
def test_a_hash_that_is_none_is_refused(hub: Hub, sha: object) -> None:
    hub.rows = [row("m.gguf", sha=sha)]
    with pytest.raises(RigError, match=r"no hash for|no hub does"):
        pull()


@pytest.mark.parametrize("sha", ["../../../x", "", None, "main"])
def test_a_commit_that_is_none_is_refused(hub: Hub, sha: object) -> None:
    hub.sha = sha
    with pytest.raises(RigError, match="names no commit"):
        pull()


@pytest.mark.parametrize(
    "name",
    [
        "../../evil.gguf", "/tmp/evil.gguf", "a/../../evil.gguf", "..\\evil.gguf", "a/./b.gguf",
        "a//b.gguf", "a\0b.gguf", "a\n\x1b]0;x\x07.gguf", "\u202efgug.gguf", "C:evil.gguf", "a\x9bb.gguf",
        "a" * 300 + ".gguf",
    ],
)  # fmt: skip
def test_a_name_that_is_no_file_of_its_own_is_passed_over(hub: Hub, name: str) -> None:
    hub.rows = [row(name)]
    with pytest.raises(WrongUse, match="has no GGUF file") as caught:
        pull()
    assert caught.value.message.isprintable()
    hub.rows = [row(name), row("good-Q8_0.gguf")]
    assert pull("o/r:Q8_0").read_bytes() == DATA


def test_nothing_is_written_through_a_link(hub: Hub, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("keep", "utf-8")
    folder = download.models_folder() / "o/r"
    folder.mkdir(parents=True)
    (folder / "m.gguf").symlink_to(victim)
    (folder / f".m.gguf.{SHA[:12]}.part").symlink_to(victim)
    assert pull().read_bytes() == DATA
    assert victim.read_text("utf-8") == "keep"


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("https://huggingface.co/o/r/resolve/dev/m.gguf", ModelReference("o/r", None, "m.gguf", "dev")),
        ("https://huggingface.co/o/r/blob/dev/a/m.gguf", ModelReference("o/r", None, "a/m.gguf", "dev")),
        ("https://hf.co/o/r/resolve/main/m.gguf?download=true", ModelReference("o/r", None, "m.gguf")),
        ("https://hf.co/o/r/resolve/v1/my%20m.gguf#x", ModelReference("o/r", None, "my m.gguf", "v1")),
        ("https://huggingface.co/o/r/resolve/refs%2Fpr%2F3/m.gguf",
         ModelReference("o/r", None, "m.gguf", "refs/pr/3")),
        ("https://huggingface.co/o/r/tree/main", ModelReference("o/r")),
        ("https://huggingface.co/o/r/tree/dev/", ModelReference("o/r", revision="dev")),
        ("https://huggingface.co/o/r/tree/main/Q4_K_M", ModelReference("o/r", None, "Q4_K_M/")),
        ("hf.co/o/r:Q8_0", ModelReference("o/r", "Q8_0")),
        ("huggingface.co/o/r", ModelReference("o/r")),
        ("hf://o/r:Q8_0@dev", ModelReference("o/r", "Q8_0", None, "dev")),
        ("o/r@main", ModelReference("o/r")),
        ("https://huggingface.co/o/r/resolve/../m.gguf", None),
        ("o/r/x", None),
    ],
)  # fmt: skip
def test_a_link_means_what_it_shows(text: str, reference: ModelReference | None) -> None:
    assert parse_reference(text) == reference


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("https://example.org/o/r", "example.org is not the hub that rig asks"),
        ("https://huggingface.co/o/r/resolve/v1/m.gguf@v2", "names two branches, v1 and v2"),
    ],
)
def test_a_link_that_rig_can_t_follow_says_why(text: str, says: str) -> None:
    with pytest.raises(click.UsageError, match=says):
        parse_reference(text)


def test_a_folder_of_a_tree_is_the_model_in_it() -> None:
    names = ["Q4/m-00001-of-00002.gguf", "Q4/m-00002-of-00002.gguf", "Q8/m.gguf", "Q8/n-Q8_0.gguf"]
    assert ModelReference("o/r", file="Q4/").choose_files(names) == names[:2]
    assert ModelReference("o/r", "Q8_0", "Q8/").choose_files(names) == ["Q8/n-Q8_0.gguf"]
    with pytest.raises(WrongUse, match="several files"):
        ModelReference("o/r", file="Q8/").choose_files(names)
