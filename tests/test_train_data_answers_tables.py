"""Every word and sign that an answer may be dressed in: `pytest tests/test_train_data_answers_tables.py`."""

# ruff: noqa: SIM905 - lists of names read best as text

from __future__ import annotations

import logging
from fractions import Fraction

import pytest

from train.data import answers, formulas, lists, number, undress, units

FUNCTIONS = """
sin cos tan cot sec csc log exp lim max min gcd lcm mod det deg sqrt arcsin arccos arctan sinh cosh
tanh infinity infty inf theta alpha beta""".split()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_s_name_is_part_of_a_formula(name: str) -> None:
    assert formulas.is_formula(f"{name}(x)")
    assert formulas.is_formula(f"{name.upper()}(x)")
    assert not formulas.is_formula(f"{name}y(x)")


@pytest.mark.parametrize(
    ("text", "formula"),
    [
        ("x", True), ("X", True), ("x y", True), ("xy", False), ("XY", False), ("abc", False),
        ("abc2", True),
        ("abcd2", False), ("7", True), ("a_n", True), ("|x|", True), ("n!", True), ("<", True),
        ("so it is", False),
        ("1010_2", False), ("3-5", False), ("10:30", False), ("1-2-2026", False), ("x-3", True),
        (r"\alpha\beta", True), (r"\begin {array} 1 \end {array}", True), ("Łódź 2", False),
        ("+".join("x" * 100), True), ("+".join("x" * 101), False),
    ],
)  # fmt: skip
def test_what_is_a_formula(text: str, formula: bool) -> None:
    assert formulas.is_formula(text) == formula


@pytest.mark.parametrize(
    ("text", "latex"),
    [
        ("2**x", "2^x"), ("3e8", r"3\cdot 10^{8}"), ("3E-8", r"3\cdot 10^{-8}"), ("3e", "3e"),
        ("3e8m", "3e8m"),
        ("x<=1", r"x\le 1"), ("x≤1", r"x\le 1"), ("x>=1", r"x\ge 1"), ("x≥1", r"x\ge 1"),
        ("x!=1", r"x\ne 1"),
        ("x≠1", r"x\ne 1"), ("sqrt(3)", r"\sqrt{3}"), (r"\sqrt(3)", r"\sqrt(3)"), ("sin x", r"\sin  x"),
        (r"\sin x", r"\sin x"), ("asin x", "asin x"), ("sinx", "sinx"), ("ln x", r"\ln  x"),
        ("2pi", r"2\pi"),
        ("(-oo,1)", r"(-\infty ,1)"), ("infinity", r"\infty"), ("x_inf", r"x_\infty"), ("infA", "infA"),
        ("inf", r"\infty"), ("Inf", "Inf"),
        ("bINF", "bINF"), (r"\infty", r"\infty"), ("oops", "oops"), ("zoo", "zoo"), ("ZOO", "ZOO"),
        ("Zinf", "Zinf"),
        ("$x$", "x"), ("x\ny", "x y"), ("theta", r"\theta"), ("alpha+beta", r"\alpha +\beta"),
        ("cos x", r"\cos  x"), ("tan x", r"\tan  x"), ("cot x", r"\cot  x"), ("log x", r"\log  x"),
        ("exp x", r"\exp  x"), ("infty", r"\infty"),
    ],
)  # fmt: skip
def test_what_people_type_becomes_latex(text: str, latex: str) -> None:
    assert formulas.plain_latex(text) == latex


def test_only_math_verify_is_told_to_be_quiet() -> None:
    pytest.importorskip("math_verify", reason="needs the training room: pip install -e '.[train]'")
    root = logging.getLogger().level
    formulas._normalization.cache_clear()
    logging.getLogger("math_verify").setLevel(logging.NOTSET)
    assert answers.matches_gold("u+w", "w+u")
    assert logging.getLogger("math_verify").level == logging.CRITICAL
    assert logging.getLogger().level == root


@pytest.mark.parametrize(
    ("said", "gold", "same"),
    [
        ("(1,2)", "1 < x < 2", True), ("[1,2]", "1 < x < 2", False), ("(5,\\infty)", "x > 5", True),
        ("[5,\\infty)", "x > 5", False), ("x \\in (1,2)", "1 < x < 2", True),
        ("2*x*y", "2xy", True), ("x^{2}", "x^2", True), ("5x m", "5x", False),
    ],
)  # fmt: skip
def test_an_interval_is_the_inequality_that_describes_it(said: str, gold: str, same: bool) -> None:
    pytest.importorskip("math_verify", reason="needs the training room: pip install -e '.[train]'")
    assert answers.matches_gold(said, gold) == same


# ----------------------------------------------------------------------------------------------------------
# Lists


@pytest.mark.parametrize(
    ("text", "around", "parts"),
    [
        ("2:1", ":", ("2", "1")), ("2 to 1", ":", ("2", "1")), ("1:2:3", ":", ("1", "2", "3")),
        ("(3,100)", "()", ("3", "100")), ("3,100, 7", "", ("3,100", "7")),
        ("(1,000, 2)", "()", ("1,000", "2")),
        ("(1,000,2)", "()", ("1", "000", "2")), ("1,000, 2,000", "", ("1,000", "2,000")),
        ("1;2", "", ("1", "2")),
        ("[1,2)", "[)", ("1", "2")), ("{3}", "{}", ("3",)), (r"\{3\}", "{}", ("3",)),
        ("a and b", "", ("a", "b")),
        ("a, b, and c", "", ("a", "b", "c")), ("x OR y", "", ("x", "y")),
        ("f(1,2), 3", "", ("f(1,2)", "3")),
        ("((1,2),3)", "()", ("(1,2)", "3")), ("$1$, $2$.", "", ("1", "2")), ("1,2,", "", None),
        ("(3)", "", None),
        ("1,000", "", None), ("(1,2) + (3,4)", "", None), ("land", "", None), ("and", "", None),
        ("1,,2", "", None),
        ("(1,2", "", None), ("a,100", "", ("a", "100")), ("1,00", "", ("1", "00")),
        ("1,0000", "", ("1", "0000")),
    ],
)  # fmt: skip
def test_the_parts_of_an_answer(text: str, around: str, parts: tuple[str, ...] | None) -> None:
    found = lists.split_list(text)
    assert found == (None if parts is None else lists.Parts(around, parts))


@pytest.mark.parametrize(
    ("said", "gold", "same"),
    [
        ("1, 2", "(1, 2)", True), ("1, 2", "{1, 2}", True), ("{1, 2}", "1, 2", True),
        ("(1, 2)", "1, 2", True),
        ("[1, 2]", "1, 2", True), ("[1, 2)", "1, 2", False), ("(1, 2)", "[1, 2]", False),
        ("{1, 2}", "(1, 2)", False),
        ("1, 2", "[1, 2]", False), ("2, 1", "1, 2", True), ("{2, 1}", "1, 2", True),
        ("(2, 1)", "1, 2", False),
        ("2, 1", "(1, 2)", False), ("1:2", "1, 2", False), ("1, 1, 2", "1, 2, 2", False),
        ("1, 2, 3", "1, 2", False),
        ("x=1, 2", "2, x=1", True), ("x=1, y=2", "2, 1", False), ("y=2, x=1", "x=1, y=2", True),
        (", ".join("abcdefghijkl"), ", ".join("lkjihgfedcba"), True),
        (", ".join("abcdefghijklm"), ", ".join("mlkjihgfedcba"), False),
        (", ".join("abcdefghijklm"), ", ".join("abcdefghijklm"), True),
    ],
)  # fmt: skip
def test_which_brackets_and_orders_are_the_same_list(said: str, gold: str, same: bool) -> None:
    parts = lists.split_list(gold)
    assert parts is not None
    assert lists.same_list(said, parts, str.__eq__) == same


# ----------------------------------------------------------------------------------------------------------
# Numbers and signs

SCALES = {
    "k": 3, "hundred": 2, "thousand": 3, "lakh": 5, "lakhs": 5, "million": 6, "crore": 7, "crores": 7,
    "billion": 9, "bn": 9, "trillion": 12,
}  # fmt: skip


@pytest.mark.parametrize("scale", SCALES)
def test_a_scale_multiplies_and_takes_its_decimals_with_it(scale: str) -> None:
    for word in (scale, scale.upper()):
        assert number.parse_number(f"7{word}") == 7 * 10 ** SCALES[scale]
        found = number.read_number(f"7.125{word}")
        assert found is not None
        assert found.value == Fraction(7125 * 10 ** SCALES[scale], 1000)
        assert found.decimals == max(0, 3 - SCALES[scale])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Total: - 5", -5), ("Loss: -5", -5), ("Total - 5", 5), ("(- 5)", -5), ("x = - 5", -5),
        ("a-5", None),
        ("5-6", None), ("- 5", -5), ("+5", 5), (".5", Fraction(1, 2)), ("5.", 5), ("1,00", None),
        ("1,000", 1000),
        ("1,00,000", 100_000), ("12,34,567", 1_234_567), ("1,0000", None), ("12,34", None),
        ("1/3", Fraction(1, 3)),
        ("4/2", None), ("1/0", None), ("1/2/3", None), ("5e-1", Fraction(1, 2)), ("5e3", 5000),
        ("0.25%", Fraction(1, 4)),
        ("H2O", None), ("x1", None), ("A. 5", 5), ("(b) 5", 5), ("c: 5", 5), ("x = 1, y = 2", None),
        ("3 = 3", 3),
        ("4!", None), ("4.5...", None), ("4.5…", None), ("it's 5", 5), ("5 a day", 5), ("I have 5", 5),
        ("5 A", 5),
        ("5 a", None), ("5 x", None), ("5x", None), ("5 mm", 5), ("5mm", 5), ("5 xy", None),
        ("5 so", 5), ("5abc", None),
        ("5 cups", 5), ("5 bcd", None), ("5 try", 5), ("5 x1y", 5), ("5cups", 5),
        ("9" * 400, int("9" * 400)), ("9" * 401, None),
    ],
)  # fmt: skip
def test_the_one_number_of_a_text(text: str, value: Fraction | int | None) -> None:
    assert number.parse_number(text) == value


SHORT = """
km cm mm nm kg mg lb lbs oz ft in yd yds mi hr hrs min mins sec secs ms ml mL cl GB MB KB TB Hz kHz
MHz GHz kW kWh MW mph kph rpm am pm AM PM st nd rd th pts cal kcal USD EUR GBP CHF INR deg psi sq cu
pcs yr yrs pct usd eur kJ kPa Pa eV mol kN mA mV""".split()


def test_short_units_touch_the_digits_and_variables_do_not() -> None:
    assert [unit for unit in SHORT if number.parse_number(f"5{unit}") != 5] == []
    assert [unit for unit in SHORT if number.read_number(f"5{unit}", gold=True) is None] == []
    assert set(SHORT) == units.SHORT


@pytest.mark.parametrize("letter", "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
def test_a_single_letter_is_a_unit_or_a_variable(letter: str) -> None:
    unit = letter in "gmshlLtVWNJAKCFk"
    assert number.parse_number(f"5 {letter}") == (5 if unit else None)
    assert number.parse_number(f"5 {letter}^2") == (5 if unit else None)
    if letter not in "kK":  # 5k is 5000
        assert number.read_number(f"5{letter}", gold=True) is None


def test_words_of_two_letters_are_words() -> None:
    words = """am an as at be by do go he if in is it me my of oh ok on per so to up us vs we rs id pm"""
    assert [word for word in words.split() if number.parse_number(f"5 {word} all") != 5] == []
    for pair in ("xy", "ab", "uv", "qq"):
        assert number.parse_number(f"5 {pair} all") is None


SAME_UNITS = [
    "mm millimeter", "cm centimeter", "m meter metre meters", "km kilometer", "inch inches", "foot feet ft",
    "yard yd yards", "mile miles", "mg milligram", "g gram grams", "kg kilogram kilo", "ton tonne",
    "ounce oz",
    "second sec s seconds", "minute min", "hour hr h hrs Hours", "day", "week", "month", "year yr",
    "dollar USD Dollars", "cent ¢ cents", "euro EUR", "ml milliliter millilitre", "liter litre l L", "gallon",
]  # fmt: skip


def test_each_unit_is_its_own_and_no_other() -> None:
    groups = [line.split() for line in SAME_UNITS]
    for at, group in enumerate(groups):
        assert not any(units.clash(f"{one} a day", other) for one in group for other in group)
        rest = [word for other in groups[:at] + groups[at + 1 :] for word in other if word != "day"]
        assert all(units.clash(one, other) for one in group for other in rest), group
    assert not units.clash("cups", "km")
    assert not units.clash("km", "")
    assert not units.clash("", "km")


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("x²⁻¹", "x^{2-1}"), ("x⁰¹²³⁴", "x^{01234}"), ("x⁵⁶⁷⁸⁹", "x^{56789}"), ("xⁿ⁺¹", "x^{n+1}"),
        ("xⁿ", "x^n"),
        ("1⁄2", "1/2"), ("1∕2", "1/2"), ("4÷2", "4/2"), ("2×3", r"2\times 3"), ("2✕3", r"2\times 3"),
        ("2·3", r"2\cdot 3"), ("2⋅3", r"2\cdot 3"), ("2π", r"2\pi "), ("∞", r"\infty "),
        ("θ", r"\theta "),
        ("≤", r"\le "), ("≥", r"\ge "), ("≠", r"\ne "), ("±5", r"\pm 5"), ("∓5", r"\mp 5"),
        ("A∪B", r"A\cup B"),
        ("A∩B", r"A\cap B"), ("45°", "45 degrees "), ("45º", "45 degrees "), ("5¢", "5 cents"),
        ("it’s", "it's"),
        ("“a”", '"a"'), ("1，2", "1,2"), ("≈5", r"\approx 5"), ("−‐‑‒–—―⁻﹘﹣－"[:7], "-" * 7),
        ("﹘﹣－", "---"),
        ("\u200b\u200c\u200d\u200e\u200f\u2060\ufeff\u00ad5", "5"),
        ("1\u00a02\u20073\u20094\u202f5\u30006", "1 2 3 4 5 6"),
        ("ＡＢ！～", "AB!~"), ("٤٢", "42"), ("½", " 1/2"), ("é", "é"), ("√2", r"\sqrt{2}"),
        ("√(x+1)", r"\sqrt{x+1}"),
        ("√ x", r"\sqrt{x}"),
    ],
)  # fmt: skip
def test_every_sign_of_unicode_has_a_plain_one(text: str, plain: str) -> None:
    assert undress.plain_signs(text) == plain


@pytest.mark.parametrize(
    ("text", "bare"),
    [
        *((f"{sign} 5", "5") for sign in ("$", r"\$", *"€£¥₹₩₽₺₫฿₦₱₴₪")),
        *((f"{word} 5", "5") for word in ("US", "USD", "EUR", "GBP", "CHF", "INR", "Rs", "Rs.")),
        ("US$5", "5"), ("us 5", "us 5"), ("rs 5", "rs 5"), ("USA 5", "USA 5"),
        (r"\frac{}{2}", r"\frac{}{2}"),
        (r"\frac12", r"\frac{1}{2}"), (r"\dfrac{1}2", r"\frac{1}{2}"), (r"3\tfrac 1{2}", r"3\frac{1}{2}"),
        (r"\frac1{}", r"\frac{1}{}"), (r"\text{ab} c", "ab c"), (r"1\,000", "1,000"), (r"x\,y", "xy"),
        (r"50\%", "50%"),
        (r"45^{\circ}", "45 degrees"), (r"45\degree", "45 degrees"), (r"45^\circ", "45 degrees"),
        ("1{,}000", "1,000"),
        ("**5**", "5"), ("_5_", "5"), ("`5`", "5"), ("~~5~~", "5"), ("2*3*4", "2*3*4"),
        ("a_1_b", "a_1_b"),
        (r"\left(1,2\right]", "(1,2]"), (r"\[5\]", "5"), (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed{5", r"\boxed{5"),
        (r"\boxed{1} or \boxed{2}", "2"), (r"\mathrm{m}", "m"), (r"\leftarrow", r"\leftarrow"),
    ],
)  # fmt: skip
def test_what_is_taken_off_an_answer(text: str, bare: str) -> None:
    assert undress.undress(text) == bare


# ----------------------------------------------------------------------------------------------------------
# Sentences

VERBS = """
is are was were be has have had get gets got make makes made need needs take takes took cost costs
equal equals give gives gave earns earned spends spent pay pays paid sell sells sold buy buys bought
left leaves contain contains hold holds will can should must do does did eat eats ate run runs ran
read reads walk walks walked travel travels travelled drive drives drove use uses used remain
remains weigh weighs owe owes save saves saved find finds found score scores scored""".split()


@pytest.mark.parametrize("verb", VERBS)
def test_a_short_sentence_is_reduced_to_what_follows_its_verb(verb: str) -> None:
    assert answers.bare_answer(f"Tom {verb} 42 cups.") == "42 cups"
    assert answers.bare_answer(f"Tom {verb}x 42 cups.") == f"Tom {verb}x 42 cups."


@pytest.mark.parametrize(
    ("cell", "bare"),
    [
        ("About 42", "42"), ("roughly 42", "42"), ("nearly 42", "42"), ("almost 42", "42"),
        ("exactly 42", "42"),
        ("only 42", "42"), ("just 42", "42"), ("a total of 42", "42"), ("approx. 42", "42"),
        ("It's 42", "42"),
        ("around 42", "42"), ("≈ 42", "42"), ("the grand total of 42", "42"), ("Sum of all: 42", "42"),
        ("Total = 42", "42"),
        ("About town", "About town"), ("Total: many", "Total: many"),
        ("Tom and 42 cups", "Tom and 42 cups"),
        ("42 is it", "42 is it"), ("Tom has 2 or 3", "Tom has 2 or 3"), ("Answer: Paris", "Paris"),
        ("The answer is Paris. It is old.", "Paris"), ("The **answer** is: 42", "42"),
        ("answer would be 42", "42"),
        ("the answer comes to 42.5", "42.5"), ("Answer:\n42\nbecause", "42"), ("", ""), ("007", "007"),
    ],
)  # fmt: skip
def test_what_a_model_would_write_for_a_cell(cell: str, bare: str) -> None:
    assert answers.bare_answer(cell) == bare


LONG = "that she had bought at the market in the morning of that day, as she said, and of all"


@pytest.mark.parametrize(
    ("text", "final"),
    [
        ("The answer is 4 or 5", "4"), ("It is 4 or 5", "5"),
        (f"The answer is 4 apples {LONG}", f"4 apples {LONG}"),
        (f"I count 4 apples {LONG}", "4"), ("I don't know", "I don't know"), (r"\boxed{} x", None),
        (r"\boxed{4} then \boxed{5}", "5"), ("<answer>4 of them</answer>", "4 of them"),
        ("<answer>1 and 2</answer> and 3", "2"), ("<answer></answer>", None), ("#### 4\n#### 5", "5"),
        ("a #### 4\nb", "4"), ("#### Step 2\n2+2=4\nso 4 it is", "4"), ("####\n\n7\n8", "7"),
        ("####", None),
        ("<think>1</think>2<think>3</think>", "2"),
    ],
)  # fmt: skip
def test_the_final_answer_of_a_reply(text: str, final: str | None) -> None:
    assert answers.extract_final_answer(text) == final


@pytest.mark.parametrize(
    ("cell", "gold"),
    [
        (r"So \boxed{4}.", "4"), (r"\boxed{}", ""), ("<answer>4</answer>", "4"), ("x #### 4", "4"),
        ("#### Step\nmore, 5", "#### Step\nmore, 5"), ("  18 ", "18"),
    ],
)  # fmt: skip
def test_the_gold_of_a_cell(cell: str, gold: str) -> None:
    assert answers.extract_gold_answer(cell) == gold
