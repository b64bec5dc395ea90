"""pytest tests/test_train_data.py"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from rig.errors import RigError, WrongUse
from rig.model.reply_format import TAUGHT
from train.data import dataset, sources

SAMPLE = Path(__file__).parent / "data" / "gsm8k_sample.jsonl"

Row = dict[str, Any]


def rows(count: int) -> list[Row]:
    return [{"question": f"What is {n}+{n}?", "answer": str(2 * n)} for n in range(count)]


def jsonl(path: Path, found: list[Row]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    return str(path)


def questions(found: list[Row]) -> list[str]:
    return [row["question"] for row in found]


def test_gsm8ks_mapping_is_built_in() -> None:
    found = dataset.load_splits(str(SAMPLE), held_out=8)
    assert (len(found.train), len(found.held_out)) == (32, 8)
    assert {"72", "850,000", "-47"} <= {row["answer"] for row in found.train + found.held_out}
    assert found.train[0]["prompt"][0] == {"role": "system", "content": TAUGHT.system_prompt}
    assert found.train[0]["prompt"][1]["content"] == found.train[0]["question"]


def test_the_real_gsm8k_is_read_whole(shared: Path) -> None:
    folder = shared / "data" / "gsm8k"
    found = dataset.load_splits(
        str(folder / "train.jsonl"), held_out_split=str(folder / "test.jsonl"), held_out=200
    )
    assert (len(found.train), len(found.held_out), found.notes) == (7473, 200, [])
    assert not {*questions(found.train)} & {*questions(found.held_out)}


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet"])
def test_every_kind_of_file_gives_the_same_rows(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"problems.{kind}"
    if kind == "jsonl":
        jsonl(path, rows(20))
    elif kind == "json":
        path.write_text(json.dumps(rows(20)), encoding="utf-8")
    elif kind == "csv":
        with path.open("w", newline="", encoding="utf-8-sig") as file:  # as Excel writes it
            writer = csv.DictWriter(file, ["question", "answer"])
            writer.writeheader()
            writer.writerows(rows(20))
    else:
        pyarrow = pytest.importorskip("pyarrow", reason="comes with the training room")
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.Table.from_pylist(rows(20)), path)
    found = dataset.load_splits(str(path), held_out=0.25)
    assert (len(found.train), len(found.held_out)) == (15, 5)
    assert (
        found.held_out_fingerprint
        == dataset.load_splits(
            jsonl(tmp_path / "x.jsonl", rows(20)), held_out=5
        ).held_out_fingerprint
    )


def test_columns_are_mapped_and_the_others_come_along(tmp_path: Path) -> None:
    source = jsonl(
        tmp_path / "a.jsonl",
        [
            {"problem": f"{n}?", "gold": n, "level": 3, "tags": ["a"], "prompts": "x"}
            for n in range(9)
        ],
    )
    found = dataset.load_splits(source, question="problem", answer="gold", held_out=2)
    assert set(found.train[0]) == {
        "prompt",
        "question",
        "answer",
        "level",
        "tags",
    }  # prompts is TRL's
    assert found.train[0]["tags"] == '["a"]'
    assert all(isinstance(row["answer"], str) for row in found.train)


def test_ready_messages_keep_their_own_system_prompt(tmp_path: Path) -> None:
    own = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}]
    bare = [{"role": "user", "content": "2+2?"}]
    source = jsonl(
        tmp_path / "a.jsonl",
        [
            {"chat": own, "answer": 2},
            {"chat": json.dumps(bare), "answer": 4},
            {"chat": [], "answer": 6},
        ],
    )
    found = dataset.load_splits(source, prompt="chat", held_out=1)
    made = {row["question"]: row["prompt"] for row in found.train + found.held_out}
    assert made["1+1?"] == own
    assert [said["role"] for said in made["2+2?"]] == ["system", "user"]
    assert "1 of 3 rows" in found.notes[0]


def test_the_same_seed_gives_the_same_sides_and_another_seed_others(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "a.jsonl", rows(100))
    first, again = (
        dataset.load_splits(source, held_out=20, seed=1),
        dataset.load_splits(source, held_out=20, seed=1),
    )
    assert (first.train, first.held_out) == (again.train, again.held_out)
    assert (
        first.held_out_fingerprint
        != dataset.load_splits(source, held_out=20, seed=2).held_out_fingerprint
    )


def test_a_limit_never_touches_the_held_out_side(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "a.jsonl", rows(100))
    whole, few = (
        dataset.load_splits(source, held_out=20),
        dataset.load_splits(source, held_out=20, limit=10),
    )
    assert len(few.train) == 10
    assert few.held_out == whole.held_out
    assert {*questions(few.train)} <= {*questions(whole.train)}


def test_a_question_that_comes_often_stands_on_one_side_only(tmp_path: Path) -> None:
    often = [row for row in rows(30) for _ in range(4)]
    often += [{"question": f"  what IS {n}+{n}? ", "answer": str(2 * n)} for n in range(30)]
    found = dataset.load_splits(jsonl(tmp_path / "a.jsonl", often), held_out=10)
    keys = [
        {" ".join(q.lower().split()) for q in questions(side)}
        for side in (found.train, found.held_out)
    ]
    assert not keys[0] & keys[1]
    assert len(found.held_out) == 10
    assert len(keys[0] | keys[1]) == 30


def test_a_question_of_both_files_is_not_trained_on_and_that_is_said(tmp_path: Path) -> None:
    train = jsonl(tmp_path / "train.jsonl", rows(30))
    judged = jsonl(tmp_path / "test.jsonl", rows(12))
    found = dataset.load_splits(train, held_out_split=judged, held_out=5)
    assert (len(found.train), len(found.held_out)) == (18, 5)
    assert found.notes == [f"12 questions of {train} stand in {judged} too and are not trained on."]


def test_two_files_with_the_same_questions_are_refused(tmp_path: Path) -> None:
    train = jsonl(tmp_path / "train.jsonl", rows(9))
    with pytest.raises(WrongUse, match=r"Every question of .* so none is left to train on"):
        dataset.load_splits(train, held_out_split=jsonl(tmp_path / "test.jsonl", rows(9)))


def test_generated_tasks_never_overlap_whatever_the_seed() -> None:
    held = {
        q
        for seed in (1, 2)
        for q in questions(dataset.load_splits("generated:arithmetic", seed=seed).held_out)
    }
    train = dataset.load_splits("generated:arithmetic", seed=1, limit=500).train
    assert len(train) == 500
    assert not held & {*questions(train)}


@pytest.mark.parametrize(
    ("found", "settings", "sentence"),
    [
        ([], {}, "has no rows"),
        (rows(5), {"answer": "anwser"}, "has no column 'anwser'; did you mean 'answer'?"),
        (rows(5), {"question": "task"}, "has no column 'task'; there are: answer, question."),
        (
            rows(5),
            {"held_out": 5},
            "has 5 different questions, and data.held_out = 5 would leave none",
        ),
        (rows(5), {"held_out": 200}, "lower it"),
        ([{"question": "1?", "answer": None}] * 5, {}, "no row has a question and a final answer"),
        (
            [{"question": f"{n}?", "answer": "Because, as it were, " * 20} for n in range(5)],
            {},
            "the column 'answer' holds such as 'Because, as it were",
        ),
        ([{"question": "", "answer": "1"}] * 5, {}, "no row has a question"),
    ],
)
def test_bad_data_is_one_sentence(
    found: list[Row], settings: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(WrongUse) as caught:
        dataset.load_splits(jsonl(tmp_path / "bad.jsonl", found), **settings)
    assert sentence in caught.value.message
    assert "bad.jsonl" in caught.value.message


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("a.jsonl", '{"question": "1?"}\n{"question"\n', "a.jsonl, line 2 is not JSON"),
        ("a.jsonl", "[1]\n", "a.jsonl, line 1 is not an object"),
        ("a.json", '{"question": "1?"}', "must hold a list of objects"),
        ("a.json", "[", "a.json is not JSON"),
        ("a.csv", "question,answer\n1,000 apples?,5\n", "line 2 has more fields than the header"),
        ("a.csv", 'question,answer\n"half,5\n', "is not CSV"),
        ("a.parquet", "no parquet", "a.parquet is not a Parquet file"),
    ],
)
def test_a_damaged_file_is_named_with_the_place(
    name: str, text: str, sentence: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    with pytest.raises(WrongUse) as caught:
        dataset.load_splits(str(path))
    assert sentence in caught.value.message


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.json"])
def test_a_file_in_another_encoding_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes("question,answer\nWas heißt 2+2?,4\n".encode("latin-1"))
    with pytest.raises(WrongUse, match=rf"{name} is not UTF-8 text \(byte \d+\): save it again"):
        dataset.load_splits(str(tmp_path / name))


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_a_table_may_separate_its_columns_as_spreadsheets_do(mark: str, tmp_path: Path) -> None:
    lines = [mark.join(("question", "answer"))] + [
        mark.join((f"{n}+1?", str(n + 1))) for n in range(9)
    ]
    (tmp_path / "a.csv").write_text("\n".join(lines), "utf-8")
    found = dataset.load_splits(str(tmp_path / "a.csv"), held_out=2)
    assert {row["question"]: row["answer"] for row in found.train + found.held_out}["3+1?"] == "4"


def test_a_missing_file_and_an_unknown_task_are_named() -> None:
    with pytest.raises(WrongUse, match=r"There is no data file no/such\.jsonl"):
        dataset.load_splits("no/such.jsonl")
    with pytest.raises(
        WrongUse, match="no generated tasks 'arithmetics'; did you mean 'arithmetic'"
    ):
        dataset.load_splits("generated:arithmetics")


def test_a_hub_set_is_read_by_its_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of files is what the data-set library can load without a network: splits by file name."""
    pytest.importorskip("datasets", reason="needs the training room: pip install -e '.[train]'")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "set"
    folder.mkdir()
    jsonl(folder / "train.jsonl", rows(30))
    jsonl(folder / "test.jsonl", rows(40)[28:])
    found = dataset.load_splits(str(folder), held_out_split="test", held_out=6)
    assert (len(found.train), len(found.held_out)) == (28, 6)
    assert "2 questions of" in found.notes[0]
    with pytest.raises(
        RigError, match=r"could not be had .*check data\.source, data\.subset and data\.split"
    ):
        dataset.load_splits(str(folder), split="validation")


def test_a_hub_set_that_cannot_be_had_says_what_to_do() -> None:
    pytest.importorskip("datasets", reason="needs the training room: pip install -e '.[train]'")
    with pytest.raises(
        RigError, match=r"The data set 'nobody/nothing' could not be had .*or give a file"
    ):
        dataset.load_splits("nobody/nothing")


def test_rows_without_an_answer_are_left_out_and_counted(tmp_path: Path) -> None:
    found = rows(10)
    found[3]["answer"] = None
    found[7]["answer"] = "no idea whatever, " * 20
    loaded = dataset.load_splits(jsonl(tmp_path / "a.jsonl", found), held_out=2)
    assert len(loaded.train) + len(loaded.held_out) == 8
    assert "2 of 10 rows of" in loaded.notes[0]
    assert "(the first is line 4: it has no final answer)" in loaded.notes[0]


@pytest.mark.parametrize(
    ("cell", "gold"),
    [
        ("6*7 = 42\n#### 42", "42"),
        ("So we get $\\boxed{\\frac{1}{2}}$.", "\\frac{1}{2}"),
        ("<reasoning>6*7</reasoning><answer>42</answer>", "42"),
        (42, "42"),
        (0.5, "0.5"),
        ("Paris", "Paris"),
        ("nan", None),
        ("", None),
        ("one line\nand another", None),
    ],
)
def test_the_bare_answer_is_taken_out_of_a_cell(
    cell: object, gold: str | None, tmp_path: Path
) -> None:
    source = jsonl(tmp_path / "a.jsonl", [*rows(3), {"question": "odd", "answer": cell}])
    loaded = dataset.load_splits(source, held_out=1, seed=2)
    found = {row["question"]: row["answer"] for row in loaded.train + loaded.held_out}
    assert found.get("odd") == gold


def test_prompts_that_are_too_long_are_left_out_and_counted(tmp_path: Path) -> None:
    found = rows(40)
    for row in found[:4]:
        row["question"] += " please" * 50
    loaded = dataset.load_splits(jsonl(tmp_path / "a.jsonl", found), held_out=10)
    long = sum("please" in question for question in questions(loaded.train))

    def words(prompts: list[list[dict[str, str]]]) -> list[int]:
        return [len(prompt[-1]["content"].split()) for prompt in prompts]

    short = dataset.drop_long_prompts(loaded, words, 10)
    assert 0 < long == len(loaded.train) - len(short.train)
    assert short.held_out == loaded.held_out, "the yardstick stays"
    assert f"{long} of 30 training prompts have more than 10 tokens" in short.notes[0]
    with pytest.raises(WrongUse, match=r"raise data\.max_prompt_length"):
        dataset.drop_long_prompts(loaded, words, 2)


def test_the_rows_make_a_table_for_the_trainer(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="needs the training room")
    found: list[Row] = rows(6)
    found[0] |= {"level": 1, "note": None}
    found[1] |= {"level": "hard"}
    loaded = dataset.load_splits(jsonl(tmp_path / "a.jsonl", found), held_out=1)
    table = datasets.Dataset.from_list(loaded.train)
    assert set(table.column_names) == {"prompt", "question", "answer", "level", "note"}


def test_a_file_is_read_without_the_data_set_library(tmp_path: Path) -> None:
    found = sources.read_source(jsonl(tmp_path / "a.jsonl", rows(2)))
    assert [row for _, row in found] == rows(2)
