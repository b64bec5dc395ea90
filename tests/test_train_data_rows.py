"""pytest tests/test_train_data_rows.py"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rig.errors import WrongUse
from rig.model.reply_format import TAUGHT
from train.data import cells, dataset
from train.data.dataset import DataSplits
from train.rewards.binding import bind_reward

Row = dict[str, Any]

ASKED = [
    (f"Tom has {n + 2} cups and gets {n} more. How many cups?", str(2 * n + 2)) for n in range(12)
]


def write(path: Path, make: Callable[[str, str], Row]) -> str:
    lines = [json.dumps(make(question, gold)) for question, gold in ASKED]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def golds(found: DataSplits) -> dict[str, str]:
    return {row["question"]: row["answer"] for row in found.train + found.held_out}


def chat(question: str) -> list[Row]:
    return [{"role": "user", "content": question}]


# ----------------------------------------------------------------------------------------------------------
# Rows as other tools have them


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (lambda q, a: {"prompt": chat(q), "reward_model": {"ground_truth": a, "style": "rule"}},
         {"prompt": "prompt", "answer": "reward_model.ground_truth"}),
        (lambda q, a: {"prompt": chat(q), "reward_model": {"ground_truth": a, "style": "rule"}},
         {"prompt": "prompt", "answer": "reward_model"}),
        (lambda q, a: {"prompt": chat(q), "reward_model": json.dumps({"ground_truth": a})},
         {"prompt": "prompt", "answer": "reward_model.ground_truth"}),
        (lambda q, a: {"a.b": q, "meta": {"gold": [{"text": a}]}},
         {"question": "a.b", "answer": "meta.gold.0.text"}),
        (lambda q, a: {"messages": [{"role": "user", "content": [{"type": "text", "text": q}]}], "answer": a},
         {"prompt": "messages"}),
        (lambda q, a: {"messages": [{"role": "user", "content": {"type": "text", "text": q}}], "answer": a},
         {"prompt": "messages"}),
        (lambda q, a: {"prompt": str(chat(q)), "answer": a}, {"prompt": "prompt"}),
        (lambda q, a: {"prompt": json.dumps(chat(q), indent=1), "answer": a}, {"prompt": "prompt"}),
        (lambda q, a: {"prompt": f"[{{'role': 'system','content':''}}\n{{'role': 'user', 'content': '{q}'}}]",
                       "answer": a}, {"prompt": "prompt"}),
        (lambda q, a: {"question": {"text": q, "lang": "en"}, "answer": {"value": a, "unit": "cups"}}, {}),
        (lambda q, a: {"question": q, "answer": [a, f"{a} cups"]}, {}),
        (lambda q, a: {"question": q, "answer": str([a, f"{a} cups"])}, {}),
        (lambda q, a: {"question": q, "answer": {"text": [a], "answer_start": [7]}}, {}),
        (lambda q, a: {"messages": [*chat(q), {"role": "assistant", "content": f"It is {a}."}], "answer": a},
         {"prompt": "messages"}),
        (lambda q, a: {"messages": [*chat(q), {"role": "assistant", "content": a}]},
         {"prompt": "messages", "answer": "messages.-1.content"}),
        (lambda q, a: {"conversations": [{"from": "human", "value": q},
         {"from": "gpt", "value": a}], "answer": a},
         {"prompt": "conversations"}),
        (lambda q, a: {"conversations": [{"from": "Human", "value": q}, {"from": "gpt", "value": a}]},
         {"prompt": "conversations", "answer": "conversations.-1.value"}),
        (lambda q, a: {"instruction": q, "input": "", "output": a},
         {"question": "instruction", "answer": "output"}),
        (lambda q, a: {"question": q, "answer": f"The answer is {a}."}, {}),
        (lambda q, a: {"question": q, "answer": int(a)}, {}),
        (lambda q, a: {"question": q, "answer": float(a)}, {}),
    ],
)  # fmt: skip
def test_nested_rows_give_the_question_and_the_gold(
    make: Callable[[str, str], Row], settings: Row, tmp_path: Path
) -> None:
    found = dataset.load_splits(write(tmp_path / "a.jsonl", make), held_out=4, **settings)
    assert golds(found) == dict(ASKED)
    assert found.train[0]["prompt"][-1] == {"role": "user", "content": found.train[0]["question"]}


def test_any_of_several_golds_is_paid(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", lambda q, a: {"question": q, "answer": [a, f"code {a}x"]})
    row = dataset.load_splits(source, held_out=4).train[0]
    number = json.loads(row["answer"])[0]
    said = [f"<answer>{one}</answer>" for one in (number, f"code {number}x", "zzz", row["answer"])]
    reward: Any = bind_reward("correct")
    assert reward(completions=said, answer=[row["answer"]] * 4)[:3] == [1.0, 1.0, 0.0]


def test_what_a_prompt_leaves_off_or_hides_is_said(tmp_path: Path) -> None:
    own = {"role": "system", "content": "You are a tutor."}
    source = write(
        tmp_path / "a.jsonl",
        lambda q, a: {"m": [own, *chat(q), {"role": "assistant", "content": a}], "answer": a},
    )
    reply, system = dataset.load_splits(source, prompt="m", held_out=4).notes
    assert "12 of 12 rows of" in reply
    assert "end in a reply, which is left off" in reply
    assert "bring a system prompt of their own, so the model is not told the form" in system
    shown = {"role": "system", "content": f"You are a tutor.\n{TAUGHT.system_prompt}"}
    source = write(tmp_path / "b.jsonl", lambda q, a: {"m": [shown, *chat(q)], "answer": a})
    assert dataset.load_splits(source, prompt="m", held_out=4).notes == []
    source = write(tmp_path / "c.jsonl", lambda q, a: {"m": [own, *chat(q)], "answer": a})
    assert dataset.load_splits(source, prompt="m", held_out=4, system_prompt="").notes == []


@pytest.mark.parametrize(
    ("make", "settings", "sentence"),
    [
        (lambda q, a: {"prompt": chat(q), "reward_model": {"style": "rule", "index": 1}},
         {"prompt": "prompt", "answer": "reward_model"},
         "its answer is a dictionary (fields: style, index); name one by a dotted path"),
        (lambda q, a: {"question": q, "reward_model": {"ground_truth": a}}, {"answer": "reward_model.truth"},
         "no field 'truth' in the column 'reward_model'; "),
        (lambda q, a: {"question": q, "reward_model": "x"},
         {"answer": "reward_model.truth"}, "no field 'truth'"),
        (lambda q, a: {"messages": [*chat(q), {"role": "assistant", "content": a}]}, {"prompt": "messages"},
         "end in a reply, which is the gold with data.answer = 'messages.-1.content'"),
        (lambda q, a: {"c": [{"from": "human", "value": q}, {"from": "gpt", "value": a}]}, {"prompt": "c"},
         "data.answer = 'c.-1.value'"),
        (lambda q, a: {"messages": chat(q), "answer": a}, {}, "are a prompt: data.prompt = 'messages'"),
        (lambda q, a: {"m": [{"speaker": "me", "said": q}], "answer": a}, {"prompt": "m"},
         "line 1: a message has 'speaker', 'said' instead of role and content"),
        (lambda q, a: {"m": [{"role": "assistant", "content": q}], "answer": a}, {"prompt": "m"},
         "line 1: none of its messages is the user's"),
        (lambda q, a: {"m": [{"role": "user", "content": [{"type": "image_url"}]}], "answer": a},
         {"prompt": "m"},
         "holds a part of type 'image_url', and only text is read"),
        (lambda q, a: {"m": "[{'role': 'user', 'content': broken}]", "answer": a}, {"prompt": "m"},
         "looks like a list of messages and is neither JSON nor Python's"),
        (lambda q, a: {"m": [q], "answer": a}, {"prompt": "m"}, "its prompt is a list of texts"),
        (lambda q, a: {"m": [3], "answer": a}, {"prompt": "m"}, "a message is no object"),
        (lambda q, a: {"question": {"lang": "en"}, "answer": a}, {}, "its question is a dictionary"),
        (lambda q, a: {"question": q, "answer": []}, {}, "line 1: it has no final answer"),
        (lambda q, a: {"question": q, "answer": float("nan")}, {}, "line 1: it has no final answer"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_one_sentence(
    make: Callable[[str, str], Row], settings: Row, sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(WrongUse) as caught:
        dataset.load_splits(write(tmp_path / "a.jsonl", make), held_out=4, **settings)
    assert sentence in caught.value.message


def test_a_question_in_brackets_stays_a_question(tmp_path: Path) -> None:
    odd = ["[1,2) in words?", '{"a": 1} has how many keys?', "['a', 'b'] how long?", "{x: x > 2}?"]
    lines = [json.dumps({"question": one, "answer": "2"}) for one in odd]
    (tmp_path / "a.jsonl").write_text("\n".join(lines), "utf-8")
    assert set(golds(dataset.load_splits(str(tmp_path / "a.jsonl"), held_out=1))) == set(odd)


def test_an_interval_in_brackets_stays_one_gold() -> None:
    assert [cells.read_gold(cell) for cell in ("[3,4]", "(3, 4]", "{1, 2}")] == [
        "[3,4]",
        "(3, 4]",
        "{1, 2}",
    ]


@pytest.mark.parametrize(
    ("cell", "gold"),
    [
        (0.1, "0.1"), (0.10000000149011612, "0.1"), (0.30000000000000004, "0.30000000000000004"),
        (1e22, "1e+22"),
        (-3.0, "-3"), (2.299999952316284, "2.3"), (1e300, "1e+300"), (True, "True"), (12345678901234567890123,
         "12345678901234567890123"), ("  ", None), ("N/A", None), ([None, ""], None), (float("inf"), "inf"),
    ],
)  # fmt: skip
def test_numbers_are_golds_as_a_person_writes_them(cell: object, gold: str | None) -> None:
    assert cells.read_gold(cell) == gold


# ----------------------------------------------------------------------------------------------------------
# Files as people have them


def table(mark: str = ",", header: str = "question{m}answer", quote: str = "") -> str:
    rows = [f"{quote}{q}{quote}{mark}{a}" for q, a in ASKED]
    return "\n".join([header.format(m=mark), *rows]) + "\n"


FILES: dict[str, bytes] = {
    "UPPER.JSONL": "".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in ASKED).encode(),
    "rows.ndjson": "\n\n".join(json.dumps({"question": q, "answer": a}) for q, a in ASKED).encode(),
    "tabs.tsv": table("\t").encode(),
    "tabs.csv": table("\t").encode(),
    "semicolons.csv": table(";").encode("utf-8-sig"),
    "pipes.csv": table("|").encode(),
    "hint.csv": ("sep=;\n" + table(";")).encode(),
    "hint_crlf.csv": ("sep=|\r\n" + table("|").replace("\n", "\r\n")).encode(),
    "spaces.csv": table(", ", quote='"').encode(),
    "utf16.csv": table(quote='"').encode("utf-16"),
    "utf16.jsonl": "\n".join(json.dumps({"question": q, "answer": a}) for q, a in ASKED).encode("utf-16"),
    "cr.csv": table(quote='"').replace("\n", "\r").encode(),
    "wrapped.json": json.dumps({"v": 1, "data": [{"question": q, "answer": a} for q, a in ASKED]}).encode(),
    "aufgaben 日本.jsonl": "\n".join(json.dumps({"question": q, "answer": a}) for q, a in ASKED).encode(),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_read_as_people_have_it(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(FILES[name])
    assert golds(dataset.load_splits(str(tmp_path / name), held_out=4)) == dict(ASKED)


def test_a_header_may_hold_the_separator_in_quotes(tmp_path: Path) -> None:
    header = '"question, as asked, in full"{m}answer'
    (tmp_path / "a.csv").write_text(table(";", header), "utf-8")
    found = dataset.load_splits(
        str(tmp_path / "a.csv"), question="question, as asked, in full", held_out=4
    )
    assert golds(found) == dict(ASKED)


def test_quotes_behind_a_backslash_and_very_long_cells_are_read(tmp_path: Path) -> None:
    said = [(f'Ann says "{q}" What is it?', a) for q, a in ASKED] + [("x " * 70_000, "5")]
    lines = ["question,answer"] + ['"{}",{}'.format(q.replace('"', '\\"'), a) for q, a in said]
    (tmp_path / "a.csv").write_text("\n".join(lines), "utf-8")
    limit = csv.field_size_limit()
    assert golds(dataset.load_splits(str(tmp_path / "a.csv"), held_out=4)) == {
        q.strip(): a for q, a in said
    }
    assert csv.field_size_limit() == limit


def test_a_second_file_to_judge_on_may_be_written_in_capitals(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", lambda q, a: {"question": q, "answer": a})
    judged = write(tmp_path / "TEST.JSONL", lambda q, a: {"question": f"{q} Really?", "answer": a})
    found = dataset.load_splits(train, held_out_split=judged, held_out=5)
    assert (len(found.train), len(found.held_out)) == (12, 5)


@pytest.mark.parametrize("width", [32, 64])
def test_decimals_of_a_float_column_are_met_by_the_plain_decimal(
    width: int, tmp_path: Path
) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="comes with the training room")
    parquet = pytest.importorskip("pyarrow.parquet")
    kind = pyarrow.float32() if width == 32 else pyarrow.float64()
    values = [0.1 * (at + 1) for at in range(12)]
    asked = pyarrow.array([q for q, _ in ASKED])
    rows = pyarrow.table({"question": asked, "answer": pyarrow.array(values, kind)})
    parquet.write_table(rows, tmp_path / "a.parquet")
    found = dataset.load_splits(str(tmp_path / "a.parquet"), held_out=4)
    reward: Any = bind_reward("correct")
    for at, (question, _) in enumerate(ASKED):
        said = [f"<answer>{(at + shift) / 10:.1f}</answer>" for shift in (1, 2)]
        assert reward(completions=said, answer=[golds(found)[question]] * 2) == [1.0, 0.0]


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("a.csv", "question,answer\n1?,1\n\"2\n?\",2\n3?,3,4\n", "line 5 has more fields"),
        ("a.csv", "sep=;\nquestion;answer\n1?;1;1\n", "line 3 has more fields"),
        ("a.csv", "question,answer\n1?,1\n\"2\" x?,2\n", "line 3 is not CSV"),
        ("a.csv", "question,answer,answer\n1?,1,1\n", "two columns called 'answer': rename one"),
        ("a.jsonl", '{"question": "1?", "answer": "1"}\n\n\n{"question": "2?"}\n[', "line 5 is not JSON"),
        ("a.jsonl", "[" * 100_000, "line 1 is not JSON"),
        ("a.jsonl", '{"question": "1?", "answer": ' + "9" * 5000 + "}", "line 1 is not JSON"),
        ("a.json", '{"a": [{"question": "1?"}], "b": [{"question": "2?"}]}', "must hold a list of objects"),
        ("a.xlsx", "PK", "is of a kind that is not read: save it as one of .jsonl, .ndjson"),
        ("a.jsonl.gz", "x", "is of a kind that is not read"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_named_with_the_line_an_editor_shows(
    name: str, text: str, sentence: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(text, "utf-8")
    with pytest.raises(WrongUse) as caught:
        dataset.load_splits(str(tmp_path / name), held_out=1)
    assert sentence in caught.value.message


def test_a_row_that_is_left_out_is_named_by_its_line(tmp_path: Path) -> None:
    lines = [json.dumps({"question": q, "answer": a}) for q, a in ASKED]
    lines[3] = "\n\n" + json.dumps({"question": "no gold?", "answer": None})
    (tmp_path / "a.jsonl").write_text("\n".join(lines), "utf-8")
    found = dataset.load_splits(str(tmp_path / "a.jsonl"), held_out=2)
    assert "(the first is line 6: it has no final answer)" in found.notes[0]
    (tmp_path / "a.csv").write_text('question,answer\n"1\n2?",3\n4?,\n5?,6\n7?,8\n', "utf-8")
    found = dataset.load_splits(str(tmp_path / "a.csv"), held_out=1)
    assert "(the first is line 4: it has no final answer)" in found.notes[0]


# ----------------------------------------------------------------------------------------------------------
# What breaks a tokenizer, a table or a call


def test_half_a_character_is_replaced_and_whole_ones_stay(tmp_path: Path) -> None:
    lines = [
        f'{{"question": "What is {n} \\ud83d plus \\ud83d\\ude00?", "answer": "{n}"}}'
        for n in range(9)
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(lines), "utf-8")
    (tmp_path / "a.json").write_text(f"[{','.join(lines)}]", "utf-8")
    for name in ("a.jsonl", "a.json"):
        found = dataset.load_splits(str(tmp_path / name), held_out=3)
        assert set(golds(found)) == {f"What is {n} \ufffd plus \U0001f600?" for n in range(9)}
        assert len(found.held_out_fingerprint) == 16


def test_whole_numbers_of_any_size_make_a_table(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="needs the training room")
    path = tmp_path / "a.jsonl"
    for size in (2**63 - 1, 2**63, 10**30):
        lines = [json.dumps({"question": q, "answer": a, "id": size}) for q, a in ASKED]
        path.write_text("\n".join(lines), "utf-8")
        found = dataset.load_splits(str(path), held_out=4)
        kept = datasets.Dataset.from_list(found.train)[0]["id"]
        assert kept == (size if size < 2**63 else str(size))


@pytest.mark.parametrize(
    "column", ["self", "lenient", "reply_format", "completions", "function", "columns", ""]
)
def test_a_column_of_any_name_changes_no_mark(column: str, tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", lambda q, a: {"question": q, "answer": a, column: "x"})
    row = dataset.load_splits(source, held_out=4).train[0]
    extra = {name: [row[name]] * 2 for name in row if name != "prompt"}
    for name, marks in {"correct": [1.0, 0.0], "length": [1.0, 1.0], "format": [0.0, 0.0]}.items():
        reward: Any = bind_reward(name)
        said = [f"<answer>{row['answer']}</answer>", row["answer"]]
        assert reward(prompts=[row["prompt"]] * 2, completions=said, **extra) == marks
