"""pytest tests/test_train_data_marks.py"""

from __future__ import annotations

import sys
import threading
from typing import Any

import pytest

from train.data import answers, formulas, undress
from train.rewards.binding import bind_reward

pytest.importorskip("math_verify", reason="needs the training room: pip install -e '.[train]'")

# Of each kind: gold -> what earns the mark, and what does not.
KINDS: dict[str, dict[str, tuple[list[str], list[str]]]] = {
    "a negation is no answer": {
        "42": (
            [],
            [
                "not 42",
                "isn't 42",
                "anything but 42",
                "other than 42",
                "42 is wrong",
                "no 42",
                "never 42",
                "neither 42",
                "cannot be 42",
                "≠42",
                "\\neq 42",
                "!=42",
                "not equal to 42",
                "nicht 42",
            ],
        ),
    },
    "plus or minus is two answers": {
        "5": ([], ["±5", "\\pm5", "+/-5", "+-5", "plus or minus 5", "∓5", "5 or -5"]),
        "±5": (["±5", "\\pm 5", "5, -5", "-5, 5"], ["±6"]),
    },
    "a factorial is another number": {
        "5": ([], ["5!", "5 !", "5!!"]),
        "120": ([], ["5!"]),
        "5!": (["120", "5!"], ["4!"]),
    },
    "the number in a power is not the power": {
        "3x^2": (["3x^2", "3 x^2", "3*x^2", "3x²", "x^2*3"], ["3", "3x^3", "3y^2", "9", "2"]),
    },
    "an unknown, a side, a relation": {
        "x+1": ([], ["1"]),
        "n-1": ([], ["n+1", "1"]),
        "2i": (["2i"], ["2", "i", "-2i"]),
        "x > 5": (["5 < x"], ["x<5", "5", "x ≥ 5"]),
        "x \\ge 5": (["x>=5"], []),
        "x \\leq 5": (["x ≤ 5"], []),
    },
    "letters divide, multiply and count": {
        "\\frac{a}{2}": (["a/2", "0.5a"], ["2", "\\frac{b}{2}"]),
        "x^2": ([], ["x^3"]),
        "O(n^2)": (["O(n^2)", "O(n²)"], ["O(n^3)"]),
        "3\\frac{1}{2}": (["3.5", "7/2", "3 1/2", "3½"], ["31/2", "-3.5"]),
        "-3.5": (["-3\\frac12"], []),
    },
    "a letter behind the digits, a constant, a root": {
        "5m": ([], ["5"]),
        "5 m": (["5 m", "5"], []),
        "5": (["5m"], ["5 xy", "f(5)", "O(5)"]),
        "2n+5": ([], ["5"]),
        "5xy": ([], ["5"]),
        "5ab": ([], ["5"]),
        "5 xy": ([], ["5"]),
        "2pi": ([], ["2"]),
        "2\\pi": (["2pi", "2π", "6.283185"], ["6.28"]),
        "2e": ([], ["2"]),
        "\\sqrt{2}": (["√2", "sqrt(2)", "1.414214"], ["2"]),
        "2\\sqrt{3}": (["2sqrt(3)", "\\sqrt{12}"], []),
        "2^{10}": (["2**10", "1024"], []),
        "\\log 4": ([], ["4"]),
        "x": ([], ["|x|"]),
    },
    "a point, an interval": {
        "(3,4)": (["(3, 4)", "3, 4", "(3;4)"], ["4,3", "[3,4]", "(3,4]", "3"]),
        "(4,3)": ([], ["(3,4)"]),
        "[1,2)": (["[1,2)", "[1, 2.0)"], ["(1,2)"]),
        "(3,100)": (["(3,100)", "(3, 100)"], ["3100"]),
        "(\\frac{1}{2}, 3)": (["(1/2, 3)"], []),
        "(0.5,3)": (["\\left(\\frac12,3\\right)"], []),
        "(1,2)": ([], ["(1,2,3)"]),
        "(-∞,5)": (["(-\\infty, 5)"], []),
        "(-\\infty, 5)": (["(-oo,5)"], ["(-\\infty,5]"]),
    },
    "several solutions": {
        "1,-2": (["1, -2", "-2,1", "1 and -2", "x=1 or x=-2"], ["1", "1,2", "1,-2,3"]),
        "x=-2 or x=1": (["x=1, x=-2"], []),
        "\\{-2,1\\}": (["{1,-2}"], []),
        "y=2,x=1": (["x=1,y=2"], []),
        "x=1,y=2": (["1,2"], ["x=2,y=1", "2,1"]),
        "1,2": ([], ["1,1"]),
        "2,3,3": ([], ["2,2,3"]),
    },
    "what has the value, and an equation": {
        "x=5": (["x=5", "5", "x = 5.0"], ["y=5"]),
        "x^2=4": (["x^2=4", "4=x^2"], ["2", "4"]),
        "2x+1=7": ([], ["7"]),
        "y=2x+1": (["2x+1", "y=2x+1"], ["y=2x+2"]),
    },
    "dashes and minus words": {
        "-5": (
            ["‐5", "‑5", "‒5", "–5", "—5", "−5", "－5", "﹣5", "minus 5", "negative 5", "Minus $5"],
            [],
        ),
        "5": ([], ["−5", "minus 5"]),
        "2": ([], ["5 minus 3"]),
    },
    "powers of ten": {
        "300000000": (["3 × 10^8"], []),
        "3e8": (["3*10^8", "3 \\times 10^{8}", "3·10⁸"], ["3 × 10^7", "3", "310^8"]),
        "300,000,000": (["3.0 x 10^8"], []),
        "100000": (["10^5"], []),
        "0.001": (["10^{-3}"], []),
        "2.5\\cdot10^{-4}": (["2.5e-4"], []),
        "3 \\times 10^8": (["3 × 10^8"], []),
        "10^8": ([], ["8"]),
        "6.02 \\times 10^{23}": (["6.02e23"], []),
    },
    "degrees": {
        "45": (["45°", "45º"], []),
        "45^\\circ": (["45"], []),
        "45 degrees": (["45^{\\circ}"], []),
        "45°": (["45 deg"], ["46°"]),
        "90": (["90°C"], []),
    },
    "separators, and another base": {
        "100000": (["1,00,000"], ["10,00,00"]),
        "1234567": (["12,34,567"], []),
        "100000.5": (["1,00,000.50"], []),
        "100": ([], ["1,00"]),
        "1,00,000": (["100000"], []),
        "500000": (["5 lakh"], []),
        "20000000": (["2 crore"], []),
        "1000": (["1'000", "1_000"], []),
        "10": ([], ["1010_2"]),
        "1010": ([], ["1010_2"]),
        "1010_2": (["1010_{2}"], ["1010", "1010_3"]),
    },
    "decimals as floats and roundings": {
        "0.10000000149011612": (["0.1"], ["0.2"]),
        "0.30000000000000004": (["0.3"], []),
        "2.299999952316284": (["2.3"], []),
        "1/3": (["0.333333", "0.3333333333"], ["0.33", "0.333334"]),
        "3.3333333333333335": (["10/3"], []),
        "1": ([], ["1.000001"]),
        "1.000001": ([], ["1"]),
        "0.0000002": ([], ["0.0000001"]),
        "1000001": ([], ["1000000"]),
        "3.14159265358979": (["3.14159265"], []),
        "123456.8": ([], ["123456.7"]),
        "100": ([], ["99.99"]),
        "0.1": ([], ["0.1000001"]),
    },
    "percents": {
        "50": (["50%"], []),
        "50%": (["50", "0.5", "50 percent", "50 per cent"], ["0.5%", "51%"]),
        "0.5": (["50%"], ["0.5%"]),
        "0.5%": (["0.005"], []),
        "12.5": (["12.5%"], []),
        "5": (["500%"], []),
        "500%": (["5"], []),
    },
    "units": {
        "5 miles": ([], ["5 km"]),
        "$5": ([], ["5 cents"]),
        "5 dollars": (["$5"], []),
        "$5.00": (["5 dollars"], []),
        "5 minutes": ([], ["5 hours"]),
        "5 hours": (["5 hrs", "5 hours a day"], []),
        "5 km": (["5 km/h"], []),
        "60": (["60 mph"], []),
        "5": (["5 cm^2", "5 sq. ft"], []),
        "5 cm^2": (["5 cm²"], []),
        "5 ft": (["5 feet"], []),
    },
    "one number however it is dressed": {
        "42": (
            [
                "4２",
                "４２",
                "٤٢",
                "42\u200b",
                "42.",
                "42,",
                "(42)",
                '"42"',
                "~42",
                "about 42",
                "42?",
                "6*7=42",
                "0042",
                "42.000",
                "4.2e1",
            ],
            [
                "4 2",
                "0x2A",
                "42e",
                "42!",
                "at least 42",
                "less than 42",
                "more than 42",
                "up to 42",
                ">42",
                "<42",
                "42+",
                "42 or more",
                "between 41 and 43",
                "42 + 0",
                "6*7",
                "42/1",
                "84/2",
                "--42",
                "-(42)",
                "42.0001",
            ],
        ),
        "-42": (["- 42"], []),
    },
    "words, letters, times, ratios, ranges": {
        "listen": ([], ["silent"]),
        "cat": (["cat"], ["act"]),
        "Paris, France": (["Paris, France"], []),
        "Paris": ([], ["not Paris", "Paris or London", "London"]),
        "A": (["(A)", "A. Paris", "Option A", "a"], ["B", "A or B", "A. x B. y"]),
        "Yes": (["yes"], []),
        "yes": ([], ["No"]),
        "10:30": (["10:30"], ["10:31"]),
        "1:2": (["1:2", "1 : 2", "1 to 2"], ["2:1", "2:4"]),
        "2:1": ([], ["2"]),
        "2": ([], ["2:1"]),
        "5-10": (["5-10"], ["5", "-5"]),
        "5–10": (["5 - 10"], []),
    },
    "LaTeX of numbers": {
        "Paris": (["\\text{Paris}"], []),
        "A": (["\\text{(A)}"], []),
        "0.75": (["$\\frac{3}{4}$"], []),
        "3/4": (["\\dfrac34"], ["\\frac{3}{4}x"]),
        "\\frac{3}{4}x": ([], ["3/4"]),
        "-1/2": (["\\frac{-1}{2}"], []),
        "\\frac{3}{4}": (["0.75", "\\frac{6}{8}"], []),
        "2/3": ([], ["\\frac{2}{4}"]),
    },
    "matrices and unions": {
        "\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}": (
            ["\\begin{pmatrix}1\\\\2\\end{pmatrix}"],
            ["\\begin{pmatrix}2\\\\1\\end{pmatrix}"],
        ),
        "(1,2]\\cup[3,4)": (["(1,2] ∪ [3,4)"], ["(1,2) ∪ [3,4)"]),
    },
    "a gold that is a sentence": {
        "The answer is 42.": (["42"], []),
        "Answer: 42": (["42"], []),
        "approximately 42": (["42"], []),
        "Total: 42 dollars": (["42", "42 dollars"], []),
        "Tom has 42 cups.": (["42"], ["43"]),
        "~42": (["42"], []),
        "42 cups in all": (["42"], []),
        "It's 42": (["42"], []),
        "= 42": (["42"], []),
        "Tom does not have 42 cups": ([], ["42"]),
        "There are 42 cups.": (["42"], []),
        "He needs $42.": (["42"], []),
        "Apollo 11": (["Apollo 11"], ["11"]),
        "We get 42": (["42"], []),
        "So the result is 42 km.": (["42"], []),
        "The answer: 42": (["42"], []),
        "Final Answer: **42**": (["42"], []),
        "The answer is -42.": (["-42"], []),
        "The answer is 42 (rounded).": (["42"], []),
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_right_is_paid_and_wrong_is_not(kind: str) -> None:
    for gold, (right, wrong) in KINDS[kind].items():
        assert [said for said in right if not answers.matches_gold(said, gold)] == [], gold
        assert [said for said in wrong if answers.matches_gold(said, gold)] == [], gold


@pytest.mark.parametrize(
    ("gold", "wrong"),
    [
        ("3x^2", "3"), ("x+1", "1"), ("n-1", "n+1"), ("2i", "2"), ("x > 5", "x < 5"), (r"\frac{a}{2}", "2"),
        ("x^2", "x^3"), ("O(n^2)", "O(n^3)"), (r"3\frac{1}{2}", "31/2"),
    ],
)  # fmt: skip
def test_a_wrong_answer_that_keeps_the_golds_number_earns_nothing(gold: str, wrong: str) -> None:
    reward: Any = bind_reward("correct")
    said = [f"<reasoning>x</reasoning><answer>{one}</answer>" for one in (wrong, gold)]
    assert reward(completions=said, prompts=["?", "?"], answer=[gold, gold]) == [0.0, 1.0]


@pytest.mark.parametrize(
    ("cell", "gold"),
    [
        ("The answer is 42.", "42"),
        ("Answer: 42", "42"),
        ("approximately 42", "42"),
        ("Total: 42 dollars", "42 dollars"),
        ("Tom has 42 cups.", "42 cups"),
        ("A long proof without figures. " * 8 + "Final answer: 42", "42"),
        ("~42", "42"),
        ("42 cups in all", "42 cups in all"),
        ("## Step 1\n6*7 = 42\n#### 42", "42"),
        ("Hence \\boxed{x^2}.", "x^2"),
        ("Apollo 11", "Apollo 11"),
        ("not 42", "not 42"),
        ("x = 42", "x = 42"),
        ("Yes", "Yes"),
    ],
)
def test_a_cell_is_reduced_to_what_a_model_would_write(cell: str, gold: str) -> None:
    assert answers.extract_gold_answer(cell) == gold
    if "42" in gold and "not" not in gold:
        assert answers.matches_gold("42", gold)
        assert not answers.matches_gold("43", gold)


@pytest.mark.parametrize(
    ("text", "final"),
    [
        ("#### Step 1\n2 + 2 = 4\n\n#### Step 2\n4 + 4 = 8\n\nTherefore, the answer is 8.", "8"),
        ("#### Step 1\n2 + 2 = 4\n#### Step 2\n4 + 4 = 8", "8"),
        ("2 + 2 = 4\n#### 4\nI hope this helps in 2026.", "4"),
        ("2 + 2 = 4 #### $4", "$4"),
        ("####\n4", "4"),
    ],
)
def test_headings_are_no_answers(text: str, final: str) -> None:
    assert answers.matches_gold(answers.extract_final_answer(text), final)


def test_any_of_several_accepted_answers_counts() -> None:
    gold = answers.join_answers(["one half", "0.5", "1/2"])
    assert answers.accepted_answers(gold) == ["one half", "0.5"]
    said = ["One half.", "50%", "1/2", "0.6", "half of it"]
    assert [answers.matches_gold(one, gold) for one in said] == [True, True, True, False, False]
    assert answers.join_answers(["2", "2 cups"]) == "2"
    assert answers.accepted_answers('["not closed"') == ['["not closed"']
    assert answers.accepted_answers('["a" "b"]') == ['["a" "b"]']


# ----------------------------------------------------------------------------------------------------------
# No reply may hang a reward: what is long is not looked at, what is deep is not asked, the rest is counted


@pytest.mark.parametrize(
    "said",
    [
        "9^{9^9}", "9^{99999}", "9**9**9**9", "99999!", "(10!)!", "5!!", "2^2^2^2", "(a+b+c+d)^{500}",
        "((a+b+c+d+e+f)^{9})^{9}", "(a+b+c+d+e+f+g+h)^{20}", "[a+b+c+d]^{500}", "(x+1)^{999}",
        r"\sum_{i=1}^{10^9} i", r"\binom{10^8}{10^7}", r"\int_0^1 x^x dx", r"\prod_{i=1}^{10^9} i",
        "((((((((((1))))))))))+x", r"\frac{" * 50, "x" * 5000, "9" * 5000 + "x", "10000000000000^{999}",
        "12345678901234567890" * 8 + "x",
    ],
)  # fmt: skip
def test_a_hostile_formula_is_refused_unread(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*_: str) -> bool:
        raise AssertionError("math-verify was asked")

    monkeypatch.setattr(formulas, "_ask", asked)
    monkeypatch.setattr(formulas, "_warm_up", lambda: None)
    assert not answers.matches_gold(said, "x^2+1")
    assert not answers.matches_gold(said, "(x, y^2)")
    assert not answers.matches_gold("x^2+1", said)


@pytest.mark.parametrize(
    "ordinary",
    ["(x^2+1)^{10}", "(x+1)^{10}(y+z)^5", "x^{100}", "12!", "2^{100}", "3.141592653589793"],
)
def test_an_ordinary_formula_is_not_taken_for_hostile(ordinary: str) -> None:
    assert not formulas.is_hostile(ordinary)


@pytest.mark.parametrize(
    ("text", "border"),
    [("(" * 8 + "x" + ")" * 8, False), ("(" * 9 + "x" + ")" * 9, True), ("x" * 200, False), ("x" * 201, True),
     ("(x+1)^{100}", False), ("(x+1)^{101}", True), ("x^{999}", False), ("x^{1000}", True), ("99!", False),
     ("100!", True)],
)  # fmt: skip
def test_the_borders_of_what_is_asked(text: str, border: bool) -> None:
    assert formulas.is_hostile(text) == border


@pytest.mark.parametrize(
    "reply",
    [
        "9" * 100_000, "1/" + "1" * 50_000 + ".1", "1" + " 1" * 50_000, "1_000" * 20_000, "1 1/2 " * 20_000,
        r"\frac{" * 20_000, r"\boxed{" * 20_000, "{" * 100_000, "*a" * 50_000, "½" * 50_000, "²" * 50_000,
        "x=1," * 20_000, "Tom has " * 10_000 + "42", "1 and " * 20_000,
    ],
)  # fmt: skip
def test_a_long_reply_is_looked_at_up_to_a_limit(
    reply: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def counted(text: str) -> str:
        seen.append(len(text))
        return undress.undress(text)

    monkeypatch.setattr("train.data.number.undress", counted)
    monkeypatch.setattr("train.data.answers.undress", counted)
    for gold in ("42", "x^2+1", "(3,4)", "Paris", "A"):
        assert not answers.matches_gold(reply, gold)
        assert not answers.matches_gold(gold, reply)
    answers.extract_final_answer(reply)
    answers.extract_gold_answer(reply)
    assert max(seen, default=0) <= answers.LONGEST


def test_a_comparison_stops_when_its_calls_are_spent_and_gives_the_profiler_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said, gold = "(a+1)(b+1)(c+1)", "(1+c)(1+b)(1+a)"
    formulas.formulas_agree.cache_clear()
    assert answers.matches_gold(said, gold)
    formulas.formulas_agree.cache_clear()
    monkeypatch.setattr(formulas, "CALLS", 10)
    mine = lambda *_: None  # noqa: E731 - a profiler of somebody else
    sys.setprofile(mine)
    try:
        assert not answers.matches_gold(said, gold)
        assert sys.getprofile() is mine
    finally:
        sys.setprofile(None)
        formulas.formulas_agree.cache_clear()


def test_formulas_are_compared_in_other_threads_with_the_same_budget() -> None:
    found: list[bool] = []
    pairs = [
        ("y+z", "z+y"),
        ("y-z", "z-y"),
        (r"\sqrt{8}", r"2\sqrt{2}"),
        ("(a+b+c+d)^{500}", "x^2"),
    ]
    threads = [
        threading.Thread(
            target=lambda: found.append(
                tuple(answers.matches_gold(*pair) for pair in pairs) == (True, False, True, False)
            )
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 4
