"""Real cards, the toy model, nothing wrong gets through: `pytest tests/test_bots_cards_real.py`.

The model is exported, served over HTTP and asked as the daemon asks it. The slow version takes a thousand
cards: `pytest -m slow -s tests/test_bots_cards_real.py` prints how many were accepted, retried, skipped.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from conftest import SHARED

from bots.bot import Draft, Skip
from bots.cards.bot import cards
from bots.cards.database import CardDatabase, CardPool, database_path, replace_copy
from bots.cards.fact_check import card_faults
from bots.context import SlotContext
from bots.outlets.build import build_outlet
from bots.outlets.x_length import has_link, weighted_length
from bots.settings import BotSettings
from rig.server.client import ModelClient

CARDS = SHARED / "data" / "ygo" / "cardinfo.json"
needs_cards = pytest.mark.skipif(not CARDS.exists(), reason="needs the real cards in ../shared")


@pytest.fixture(scope="module")
def toy(toy_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The toy model, served: its address."""
    pytest.importorskip("llama_cpp", reason="needs the room serve")
    folder = tmp_path_factory.mktemp("served")
    words = ["serve", str(toy_gguf), "--port", "0", "--threads", "2", "--ctx", "2048"]
    command = [sys.executable, "-P", "-m", "rig", *words]
    with (folder / "log").open("wb") as sink:
        process = subprocess.Popen(command, cwd=folder, stdout=sink, stderr=sink)
    try:
        yield _address(process, folder / "log")
    finally:
        process.terminate()
        process.wait(30)


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    end = time.monotonic() + 90
    while time.monotonic() < end:
        found = re.search(r"http://[\d.]+:\d+", log.read_text())
        if found:
            try:
                if httpx.get(f"{found[0]}/health", timeout=2).status_code == 200:
                    return found[0]
            except httpx.HTTPError:
                pass
        assert process.poll() is None, log.read_text()
        time.sleep(0.1)
    raise AssertionError(log.read_text())


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the real cards."""
    path = tmp_path_factory.mktemp("cards") / "cards.sqlite"
    replace_copy(
        json.loads(CARDS.read_text("utf-8"))["data"], {"source": "test", "version": "1"}, path
    )
    return path


@pytest.fixture
def copy(own_home: Path, filled: Path) -> None:
    """The local copy, filled with the real cards."""
    database_path().parent.mkdir(parents=True)
    shutil.copy(filled, database_path())


class Deck:
    """Cards in an order that the seed says; like the real one it repeats none before all were shown."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.shown: set[str] = set()

    def draw(self, pool: list[str]) -> str:
        """Any of those not shown yet."""
        card = self.rng.choice([name for name in pool if name not in self.shown])
        self.shown.add(card)
        return card


@needs_cards
@pytest.mark.parametrize(
    "count", [10, pytest.param(1000, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])]
)
def test_no_post_that_fails_a_check_gets_through(toy: str, copy: None, count: int) -> None:
    deck, posted, outcome = Deck(5), list[str](), Counter[str]()
    x = build_outlet("x", {})
    began = time.monotonic()
    for number in range(count):
        now = datetime(2026, 1, 1, tzinfo=UTC) + number * timedelta(hours=2)
        context = SlotContext(
            name="cards",
            settings=BotSettings(),
            slot=now,
            now=now,
            outlets=[x],
            connect=lambda limit: ModelClient(toy, priority="bot", timeout=limit),
            time_limit=timedelta(minutes=5),
            deck=deck,
            history=lambda limit: posted[-limit:][::-1],
        )
        try:
            draft = cards(context)
        except Skip:
            outcome["skipped"] += 1
            continue
        finally:
            context.close()
        assert draft is not None
        outcome[how(draft)] += 1
        outcome["asked"] += draft.attempts
        true_of_its_card(draft)
        posted.append(draft.text)
    assert len(posted) == len(set(posted))
    print(f"{count} cards in {time.monotonic() - began:.0f} s: {dict(outcome)}")
    assert outcome["accepted at once"] > count * 0.5


def how(draft: Draft) -> str:
    if draft.source == "template":
        return "template"
    return "accepted at once" if draft.attempts == 1 else "accepted after a retry"


def true_of_its_card(draft: Draft) -> None:
    """By rules of the test's own: name, figures, length, nothing that a platform makes a link of."""
    with CardDatabase.open_copy() as database:
        card = database.card_by_id(draft.subject)
    facts = card.to_facts()
    assert card.name in draft.text
    said = draft.text.replace(card.name, "")
    given = set(re.findall(r"\d+", " ".join(facts.values())))
    assert set(re.findall(r"\d+", said)) <= given, draft.text
    for value, label in re.findall(r"(\d+) (ATK|DEF)\b", said):
        assert value == facts.get(label) or draft.source == "template", draft.text
    for label, value in re.findall(r"\b(Level|Rank|Link) (\d+)", said):
        assert value == facts.get(label) or draft.source == "template", draft.text
    assert weighted_length(draft.text) <= 280
    if not has_link(card.own_words()):
        assert not has_link(draft.text), draft.text
    assert not re.search(
        r"[@{}<>]|error|sorry|as an ai", said.replace("@Ignister", ""), re.IGNORECASE
    ) or any(word in card.own_words().lower() for word in ("error", "sorry", "@", "<", ">")), (
        draft.text
    )


@needs_cards
def test_every_card_can_be_said_in_a_template_that_passes(copy: None) -> None:
    """What stands in for the model passes the same checks, on (nearly) every card there is."""
    from bots.cards.template import template_post
    from bots.moderation import find_faults

    x = build_outlet("x", {})
    refused: list[str] = []
    with CardDatabase.open_copy() as database:
        numbers = database.pool_ids(CardPool())
        for number in random.Random(1).sample(numbers, 150):
            card = database.card_by_id(number)
            text = template_post(card, lambda t: x.measure_text(t) <= x.limit)
            wrong = card_faults(text, card, database.known_names) + find_faults(
                text, own_words=card.own_words()
            )
            wrong += x.text_faults(text)
            if wrong:
                refused.append(f"{text}: {wrong}")
    print(len(refused), *refused[:10], sep="\n")
    assert len(refused) < 5


@needs_cards
def test_a_spoilt_post_is_refused(copy: None) -> None:
    """Each way of spoiling a good post, on real cards; a spoilt one that happens to stay true is left out."""
    from bots.cards.template import template_post
    from bots.moderation import find_faults

    rng, got_through = random.Random(2), list[str]()
    with CardDatabase.open_copy() as database:
        for number in rng.sample(database.pool_ids(CardPool()), 60):
            card = database.card_by_id(number)
            good = template_post(card, lambda text: False)
            for kind, bad in spoilt(good, card.name, card.to_facts(), rng):
                own = card.own_words()
                if not card_faults(bad, card, database.known_names) + find_faults(
                    bad, own_words=own
                ):
                    got_through.append(f"{kind}: {bad}")
    assert not got_through


def spoilt(
    good: str, name: str, facts: dict[str, str], rng: random.Random
) -> Iterator[tuple[str, str]]:
    """A good post made wrong in one way each."""
    yield "no name", good.replace(name, "This card")
    yield "link", f"{good} More at example.com/cards"
    yield "mention", f"{good} Thanks @konami"
    yield "refusal", f"I'm sorry, I don't recognise {name}."
    yield "not real", f'"{name}" is not a real card.'
    yield "error", f"Error: Unable to fetch trivia. {name}"
    yield "json", f'{{"post": "{name}"}}'
    yield "other figure", f"{good} It has {rng.randint(5001, 9999)} ATK."
    yield "year", f"{good} First printed in 1987."
    yield "banned", f"{good} It is banned in every format."
    yield (
        "other card",
        f"{good} Pair it with Dark Magician Girl."
        if "Dark Magician" not in str(facts)
        else name[:-1],
    )
    yield "prompt", f"user: {good}"
    if facts.get("ATK", "?") not in ("?", "0") and facts["ATK"] != facts.get("DEF"):
        swapped = str(int(facts["ATK"]) + 100)
        if swapped not in " ".join(facts.values()):
            yield "wrong attack", good.replace(f"ATK {facts['ATK']}", f"ATK {swapped}")
    if "Attribute" in facts:
        other = next(a for a in ("DARK", "LIGHT", "WATER") if a not in str(facts))
        yield "attribute", good.replace(facts["Attribute"], other)


@needs_cards
def test_a_pool_holds_what_it_says(copy: None) -> None:
    with CardDatabase.open_copy() as database:
        dragons = database.pool_ids(CardPool(types=("Dragon",)))
        cards_of_set = database.pool_ids(CardPool(sets=("Justice Hunters",)))
        assert all(
            "Dragon" in database.card_by_id(n).race + database.card_by_id(n).kind
            for n in dragons[:50]
        )
        assert all("Justice Hunters" in database.card_by_id(n).sets for n in cards_of_set)
        assert 0 < len(cards_of_set) < len(dragons) < len(database.pool_ids(CardPool()))


def test_all_shapes_of_the_api_can_be_read(shared: Path, own_home: Path) -> None:
    """Also the shape of 2020, without frameType."""
    folder = shared / "data" / "ygo" / "api_examples"
    for name in (
        "real_old_shape_2020",
        "real_cardinfo_by_cardset",
        "real_cardinfo_num5_offset0_with_meta",
    ):
        found = json.loads((folder / f"{name}.json").read_text("utf-8"))
        entries = found if isinstance(found, list) else found["data"]
        assert replace_copy(entries, {"source": name}) == len({e["name"] for e in entries})
        with CardDatabase.open_copy() as database:
            for number in database.pool_ids(CardPool()):
                facts = database.card_by_id(number).to_facts()
                assert list(facts)[:2] == ["Name", "Card"]
                assert ("ATK" in facts) == ("Monster" in facts["Card"]), facts
