"""`rig bench`: `pytest tests/test_serve_bench.py`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import rig.cli
from rig.model import gguf
from serve.bench import bench
from support.serve_shell import named_model, run


@pytest.fixture
def served(toy_gguf: Path, elsewhere: Path) -> Iterator[Path]:
    with named_model(toy_gguf, elsewhere) as model:
        yield model


def test_the_bench_prints_one_object_and_settings_that_rig_serve_takes(served: Path) -> None:
    done = run("bench", str(served), "--rounds", "1", "--tokens", "64", "--threads", "1", "--json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["prefill"] > 0 < found["decode"]
    assert found["bound"] == pytest.approx(found["bandwidth"] / found["bytes_per_token"])
    assert found["share_of_bound"] == pytest.approx(found["decode"] / found["bound"])
    assert [row["batch"] for row in found["batch"]] == [64, 128, 256, 512]
    assert {row["cache"] for row in found["cache"]} == {"f16", "q8_0"}
    assert found["prefix"]["bytes"] > 0
    words = found["command"].split()[2:]
    with rig.cli.main.commands["serve"].make_context("serve", words) as context:
        assert context.params["batch"] == found["settings"]["batch"]
    assert "tokens/s" in "\n".join(bench.format_report(found))


def rounds(*pairs: tuple[float, float]) -> list[dict[str, float]]:
    return [{"prefill": read, "decode": write} for read, write in pairs]


@pytest.mark.parametrize(
    ("four", "chosen"),
    [
        (rounds((100, 12), (100, 12), (100, 12)), 4),
        (rounds((100, 12), (100, 12), (100, 9)), 2),  # once slower: that is no settled matter
        (rounds((101, 10), (101, 10), (101, 10)), 2),  # too little to be more than noise
        (rounds((500, 9.9), (500, 9.9), (500, 9.9)), 4),  # reading weighs too
    ],
)
def test_only_what_is_better_each_time_is_recommended(
    four: list[dict[str, float]], chosen: int
) -> None:
    usual = rounds((100, 10), (100, 10), (100, 10))
    report = {
        "threads_usual": 2,
        "threads": [{"threads": 2, "rounds": usual}, {"threads": 4, "rounds": four}],
        "batch": [{"batch": 256, "rounds": usual}],
        "cache": [{"cache": "f16", "rounds": usual}],
    }
    assert bench.choose_settings(report) == {"threads": chosen, "batch": 256, "cache_type": "f16"}


def test_what_each_token_reads_is_all_weights_but_the_unused_rows(toy_gguf: Path) -> None:
    found = gguf.read_header(toy_gguf)
    sizes = {tensor.name: tensor.bytes for tensor in found.tensors}
    skipped = sizes["token_embd.weight"] if "output.weight" in sizes else 0
    assert bench.bytes_per_token(found) == sum(sizes.values()) - skipped
