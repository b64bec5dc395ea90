"""Figures that a summary has and its text has not: pytest tests/test_bots_language_figures.py

No wolf is cried on 240 extracts of the shared articles and on what their own pages say of them.
"""

from __future__ import annotations

import gzip
import html
import json
import random
import re
import time
from pathlib import Path

import pytest

from bots.articles.fact_check import find_unfounded
from bots.documents import worker
from bots.language.detect import detect_language, is_other_language
from bots.language.figures import decimal_mark
from bots.language.sentences import split_sentences

HARBOUR = (
    "A ticket costs 14 crowns. The town paid 12,000 crowns on 3 May 2026; 7 boats came and 2.5 percent "
    "stayed. It holds 1.250 litres."
)


@pytest.mark.parametrize(
    "wrong",
    [
        "A ticket costs 14,000 crowns.", "The town paid 12 crowns.", "7,000 boats came.",
        "25 percent stayed.", "It paid 12 million crowns.", "20,26 boats.", "14.000 crowns",
        "3,000 boats", "It happened in 2025.",
    ],
)  # fmt: skip
def test_thousandfold_and_tenfold_errors_are_caught(wrong: str) -> None:
    assert find_unfounded(wrong, HARBOUR)["figures"]


def test_another_way_to_write_the_same_figure_is_no_error() -> None:
    assert find_unfounded("It holds 1,250 litres.", HARBOUR)["figures"] == []


@pytest.mark.parametrize(
    ("text", "summary"),
    [
        ("It sold 1.2 million cars in 2024.", "It sold 1.2 billion cars."),
        ("It sold 1.2 million cars in 2024.", "It sold 1,200 cars."),
        ("It sold 1.2 million cars in 2024.", "It sold 12 million cars."),
        ("The fund holds €3.5bn.", "The fund holds €3.5m."),
        ("Die Firma zahlte 12.000 Euro und 2,5 Prozent Zins.", "Sie zahlte 12 Euro."),
        ("Die Firma zahlte 12.000 Euro und 2,5 Prozent Zins.", "Der Zins betrug 25 Prozent."),
        ("The company earned $1,250 and lost 2.5 percent.", "It earned $1.25."),
        ("The lake is 5 km long and the path is steep.", "The lake is 5 miles long."),
        ("The ticket costs $40 at the door.", "The ticket costs €40."),
        ("Prices rose 8 percent over the year.", "Prices rose 8 dollars."),
        ("It weighs 30 kg when it is dry.", "It weighs 30 tonnes."),
        ("The pool is kept at 28 °C all year.", "The pool is kept at 28 °F."),
        ("The trip lasted 9 weeks in all.", "The trip lasted 9 days."),
        ("At noon it was -12 °C in Oslo.", "At noon it was 12 °C in Oslo."),
        ("At noon it was 12 °C in Oslo.", "At noon it was -12 °C in Oslo."),
        ("Growth reached 3.1 percent in spring.", "Growth reached −3.1 percent in spring."),
        ("Twelve thousand people came to the harbour.", "12 people came."),
        ("Twenty-five boats stayed in the harbour.", "250 boats stayed."),
        ("Zwölftausend Menschen kamen zum Hafen und blieben.", "Nur 1.200 Menschen kamen."),
        ("शहर ने 12 लाख रुपये दिए।", "The city paid 12 crore rupees."),
        ("城市支付了3亿元。", "The city paid 3 million yuan."),
        ("The budget is 1,20,000 rupees a year.", "The budget is 12,000 rupees."),
    ],
)
def test_scale_units_and_signs_are_looked_at(text: str, summary: str) -> None:
    assert find_unfounded(summary, text)["figures"], summary


@pytest.mark.parametrize(
    ("text", "summary"),
    [
        ("It sold 1.2 million cars.", "It sold 1,200,000 cars."),
        ("It sold 1,234,567 cars.", "It sold about 1.2 million cars."),
        ("It sold 1,234,567 cars.", "It sold 1.23 million cars."),
        ("The fund holds €3.5bn.", "The fund holds 3.5 billion euros."),
        ("Twelve thousand people came.", "12,000 people came."),
        ("Twenty-five boats came.", "25 boats came."),
        ("Half a million people came.", "500,000 people came."),
        ("Zwölftausend Menschen kamen zum Hafen und blieben dort.", "12.000 Menschen kamen."),
        ("Douze mille personnes sont venues dans le port de la ville.", "12 000 personnes sont venues."),
        ("Die Firma zahlte 12.000 Euro und 2,5 Prozent Zins.", "It paid 12,000 euros and 2.5 percent."),
        ("The city has 8’400 inhabitants.", "The city has 8,400 inhabitants."),
        ("The city has 8 400 inhabitants.", "The city has 8400 inhabitants."),
        ("Between 5 and 10 miles remain.", "At least 5 miles remain."),
        ("It fell by 3.1 percent.", "Growth was -3.1 percent."),
        ("Growth was -3.1 percent.", "It shrank by 3.1 percent."),
        ("The mercury fell to -12 °C.", "It was 12 degrees below zero."),
        ("The war of 1914-1918 ended.", "It lasted from 1914 to 1918."),
        ("A 5-year-old and a 30kg dog.", "The dog of 30 kg and the child of 5."),
        ("In the 1990s, GPT-4 and COVID-19 were unknown.", "Nobody knew COVID-19 in the 1990s."),
        ("Version 2.3.1 came on 3.5.2026.", "It came on 3.5.2026."),
        ("Some 300 of 1,000 guests paid £20.", "300 guests paid 20 pounds."),
        ("The budget is 1,20,000 rupees.", "The budget is 120,000 rupees."),
        ("城市支付了3亿元。", "The city paid 300 million yuan."),
        ("Der Preis stieg um 0,25 Prozent auf 1,75 Euro.", "The price rose 0.25 percent to €1.75."),
        ("She ran 42.195 km in 2:01:09.", "She ran 42.195 km."),
        ("It took 40 minutes.", "1. It took 40 minutes.\n2. No more."),
    ],
)  # fmt: skip
def test_honest_figures_pass(text: str, summary: str) -> None:
    assert find_unfounded(summary, text)["figures"] == []


def test_no_wolf_is_cried_on_real_articles(shared: Path) -> None:
    folder = shared / "data/articles"
    truth = json.loads((folder / "ground_truth.json").read_text())
    rng, extracts, told = random.Random(7), 0, 0
    for name, known in truth.items():
        text = known["articleBody"]
        sentences = split_sentences(text)
        for _ in range(4):
            some = " ".join(rng.sample(sentences, min(4, len(sentences))))
            extracts += 1
            assert find_unfounded(some, text)["figures"] == [], (name, some)
        page = gzip.decompress((folder / "html" / f"{name}.html.gz").read_bytes())
        said = re.search(rb'og:description"\s+content="([^"]{60,})"', page)
        if said and detect_language(text) == "en":
            told += 1
            article = worker.answer_request(page, kind="html")
            description = html.unescape(said[1].decode("utf-8", "replace"))
            source = f"{article['title']}\n{article['date']}\n{article['text']}"
            assert find_unfounded(html.unescape(description), source)["figures"] == [], (
                name,
                description,
            )
    assert extracts == 240
    assert told > 25


def test_a_novel_is_looked_through_in_seconds(shared: Path) -> None:
    book = (shared / "data/articles/long/the_time_machine.txt").read_text("utf-8-sig")
    start = time.monotonic()
    assert find_unfounded("It was 802,701 years and 8027 more.", book)["figures"] == ["8027"]
    assert time.monotonic() - start < 20


@pytest.mark.parametrize(
    ("text", "mark"),
    [
        ("It is 2.5 or 3.75.", "."),
        ("Um 2,5 Prozent.", ","),
        ("Es sind 1.234.567.", ","),
        ("12", ""),
    ],
)
def test_the_decimal_mark_is_seen(text: str, mark: str) -> None:
    assert decimal_mark(text) == mark


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("en", "The harbour opened again on Tuesday after nine weeks of repairs to the quay."),
        (
            "de",
            "Der Hafen öffnete am Dienstag nach neun Wochen wieder, und die Boote kamen zurück.",
        ),
        (
            "fr",
            "Le port a rouvert mardi après neuf semaines de travaux, et les bateaux sont revenus.",
        ),
        (
            "it",
            "Il porto ha riaperto martedì dopo nove settimane di lavori e le barche sono tornate.",
        ),
        ("pl", "Przystań została ponownie otwarta we wtorek i ma się dobrze, ale nie na długo."),
        ("nl", "De haven ging dinsdag weer open na negen weken en de boten zijn terug."),
        (
            "ru",
            "Порт снова открылся во вторник после девяти недель ремонта, и лодки вернулись на берег.",
        ),
        ("ar", "افتتح الميناء يوم الثلاثاء من جديد بعد تسعة أسابيع من الإصلاح."),
        ("ur", "بندرگاہ منگل کو دوبارہ کھل گئی۔ مرمت میں نو ہفتے لگے۔"),
        ("ja", "港は火曜日に再開した。"),
        ("zh", "港口星期二重新开放。"),
        ("ko", "항구는 화요일에 다시 열렸다."),
        ("th", "ท่าเรือเปิดอีกครั้งในวันอังคาร"),
    ],
)
def test_a_language_is_told_and_no_other_is_accused(code: str, text: str) -> None:
    assert detect_language(text) in (code, "")
    assert not is_other_language(text, code)
    others = {"en", "de", "ru", "ja", "ar"} - {code}
    assert sum(is_other_language(text, other) for other in others) >= 3


@pytest.mark.parametrize("text", ["", "12", "Lisk, Holm", "Node.js 5.1", "OK"])
def test_a_few_words_are_in_no_language(text: str) -> None:
    assert detect_language(text) == ""
    assert not is_other_language(text, "de")
