"""pytest tests/test_train_data_answers.py"""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from rig.model.reply_format import PLAIN, TAUGHT
from train.data import answers

SAMPLE = Path(__file__).parent / "data" / "gsm8k_sample.jsonl"

FORMS = [
    "{n}",
    "{n}.",
    "{n:,}",
    "${n:,}",
    "$ {n}",
    "{n}.00",
    "${n:,}.00",
    "\\boxed{{{n}}}",
    "$\\boxed{{{n:,}}}$",
    "\\[ \\boxed{{\\${n}}} \\]",
    "**{n:,}**",
    "{n} dollars",
    "{n:,} pairs of shoes.",
    "{n}%",
    "{n} km/h",
    "{n:,} m^2",
    "x = {n}",
    "The answer is {n}.",
    "\n  {n}\n",
    "{n:,} (rounded)",
]
"""Ways to write a whole number that all say the same."""


def golds(path: Path) -> list[str]:
    with path.open(encoding="utf-8") as lines:
        return [answers.extract_gold_answer(json.loads(line)["answer"]) for line in lines]


def whole(gold: str) -> int:
    return int(gold.replace(",", ""))


GOLDS: list[str] = sorted(set(golds(SAMPLE)), key=lambda gold: (whole(gold), gold))


def damaged(n: int) -> list[str]:
    """What must never pass for `n`."""
    digits = str(abs(n))
    return [
        str(n + 1),
        str(n * 10 + 1),
        f"{n}.5",
        str(-n if n else 1),
        f"{n} or {n + 1}",
        f"{n} {n + 2}",
        f"{n - 1}+1",
        f"2*{n}",
        f"{n}^2",
        f"{digits},0",
        f"{digits},00",
        "",
        "many",
        "\\boxed{}",
        f"\\boxed{{{n + 3}}} and not {n}",
    ]


@pytest.mark.parametrize("gold", GOLDS)
def test_a_gold_is_accepted_however_it_is_written_and_refused_when_damaged(gold: str) -> None:
    n = whole(gold)
    refused = [form for form in FORMS if not answers.matches_gold(form.format(n=n), gold)]
    accepted = [form for form in damaged(n) if answers.matches_gold(form, gold)]
    assert (refused, accepted) == ([], [])


def test_every_gold_of_gsm8k_is_accepted_in_every_form(shared: Path) -> None:
    found = golds(shared / "data" / "gsm8k" / "train.jsonl") + golds(
        shared / "data" / "gsm8k" / "test.jsonl"
    )
    assert len(found) == 7473 + 660
    for gold in set(found):  # 946 different ones stand for all
        n = whole(gold)
        assert all(answers.matches_gold(form.format(n=n), gold) for form in FORMS), gold
        assert not any(answers.matches_gold(form, gold) for form in damaged(n)), gold


@pytest.mark.parametrize(
    ("said", "gold", "why"),
    [
        ("1/2", "0.5", "a fraction is a number"),
        ("\\frac{1}{2}", "0.5", "so is one in LaTeX"),
        ("3 1/2", "3.5", "and a mixed one"),
        ("3½", "3.5", "in one sign too"),
        (".5", "0.5", "no zero before the point"),
        ("1 000", "1000", "the space of the French"),
        ("1\u202f000", "1,000", "and the narrow one that does not break"),
        ("1\\,000", "1000", "LaTeX's thin space"),
        ("1{,}000", "1000", "LaTeX's comma without a gap"),
        ("\u22123", "-3", "the true minus sign"),
        ("-$3", "-3", "a sign before the currency"),
        ("$-3", "-3", "and after it"),
        ("2 million", "2000000", "a scale in words"),
        ("10k", "10,000", "and by a letter"),
        ("5*3 = 15", "15", "what stands after the last equals sign"),
        ("H2O costs 5", "5", "a digit in a name is no number"),
        ("1e3", "1000", "powers of ten"),
        ("B", "(B)", "the letter of a choice"),
        ("Paris.", "paris", "words, but for case and full stop"),
        ("10:30 PM", "10:30 pm", "a time, to the letter"),
        ("\\sqrt 2", "\\sqrt{2}", "a formula goes to math-verify"),
        ("$1+x^2$", "x^2+1", "which knows that a sum has no order"),
    ],
)
def test_the_same_answer_is_seen_through_its_dress(said: str, gold: str, why: str) -> None:
    assert answers.matches_gold(said, gold), why


@pytest.mark.parametrize(
    ("said", "gold", "why"),
    [
        ("5 or 6", "5", "hedging"),
        ("5-6", "5", "a range"),
        ("5 6", "5", "two numbers"),
        ("10:30", "10", "a time is no number"),
        ("1/2/2020", "1", "nor is a date"),
        ("10/2", "5", "the division is left to the reader"),
        ("2^10", "1024", "so is the power"),
        ("1.000", "1000", "a point is a decimal point"),
        ("1,5", "1.5", "a comma is none"),
        ("12,34", "1234", "nor does it stand after two digits"),
        ("1,0000", "10000", "nor before four"),
        ("-", "5", "no digit at all"),
        ("5 million", "5", "a scale counts"),
        ("11", "Apollo 11", "a name is not its number"),
        ("Apollo 12", "Apollo 11", "nor another name"),
        ("A", "B", "another letter"),
        ("x+2", "x+1", "another formula"),
        ("5", "", "no gold, no match"),
        ("1/0", "1", "not a number"),
        ("9" * 1000, "9", "absurdly long"),
    ],
)
def test_another_answer_is_refused(said: str, gold: str, why: str) -> None:
    assert not answers.matches_gold(said, gold), why


@pytest.mark.parametrize(
    "said", ["9^{9^{9^{9}}}", "9^{99999}", "99999!", "\\frac{" * 50, "x" * 5000]
)
def test_a_hostile_formula_is_refused_at_once(said: str) -> None:
    assert not answers.matches_gold(said, "x^2+1")


def test_formulas_are_compared_in_other_threads_too() -> None:
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.append(answers.matches_gold("y+z", "z+y")))
    thread.start()
    thread.join()
    assert found == [True]


@pytest.mark.parametrize(
    ("text", "final"),
    [
        ("<reasoning>\n2+2=4\n</reasoning>\n<answer>\n4\n</answer>\n", "4"),
        ("<reasoning>2+2=5</reasoning>", None),  # a thought alone holds no answer
        ("<reasoning>2+2=4, so", None),  # nor does one that was cut off
        (
            "<think>maybe 7</think>It is 4.",
            "It is 4.",
        ),  # other models' thoughts do not count either
        ("<think>maybe 7, or", None),
        ("<answer>4", "4"),  # no closing tag
        ("<answer>4</answer><answer>5</answer>", "5"),  # the last one counts
        ("<answer>2+2 = 4 and 5</answer>", "5"),
        ("The answer is 18 dollars. I used 3 steps.", "18 dollars"),
        ("**Answer:** 18", "18"),
        ("Final answer: $1,024.50", "$1,024.50"),
        ("16-3-4 = 9\n#### 9", "9"),
        ("So \\boxed{\\frac{1}{2}} it is.", "\\frac{1}{2}"),
        ("She sells 9 eggs for 2 dollars, which makes 18", "18"),
        ("", None),
        ("I don't know.", "I don't know."),
    ],
)
def test_a_clear_final_answer_is_found_in_any_form(text: str, final: str | None) -> None:
    assert answers.extract_final_answer(text) == final


def test_an_untaught_model_answers_with_its_whole_text() -> None:
    assert answers.extract_tagged_answer("4", PLAIN) == "4"
    assert answers.extract_final_answer("It makes 4", PLAIN) == "It makes 4"
    assert answers.extract_tagged_answer("4", TAUGHT) is None


def test_a_hedge_in_two_blocks_is_no_strict_answer() -> None:
    assert answers.extract_tagged_answer("<answer>4</answer> <answer>5</answer>") is None
    assert answers.extract_tagged_answer("<answer></answer>") is None
