"""The card bot: draw a card, ask for a post about it, check it, ask again with the reason, else a template.

The model is given the card's real text and figures and answers in a JSON schema. What it says is checked
before anyone sees it; after a few refusals a sentence made of the facts takes its place, or the slot is
left out. Nothing here sends anything.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Literal

from bots.bot import Context, Draft, Skip, bots
from bots.cards import images
from bots.cards.card import Card
from bots.cards.database import CardDatabase, CardPool, database_path
from bots.cards.fact_check import card_faults
from bots.cards.prompts import CARD_SCHEMA, card_messages, card_retry
from bots.cards.template import alt_text, template_post
from rig.errors import RigError
from rig.server.client import ContextOverflow, RequestRefused
from rig.validation import FrozenModel, validate_as


class CardOptions(FrozenModel):
    """The table `[bots.NAME.options]` of the card bot."""

    source: Literal["ygoprodeck", "samples"] = "ygoprodeck"
    """The local copy of the YGOPRODeck database, or the invented cards that come with rig."""
    pool: CardPool = CardPool()
    card: str = ""
    """Always this card, by its name; for previews."""
    attempts: int = 4
    """How often the model is asked before the fallback."""
    temperature: float = 0.7
    max_tokens: int = 320
    fallback: Literal["template", "skip"] = "template"
    """What takes the place of a post that never passed, or of a model that does not answer."""
    images: bool = True
    """Add the card's picture where the outlet shows pictures."""


@bots.register
def cards(context: Context) -> Draft | None:
    """Draft a post about the next card of the deck."""
    options = validate_as(
        CardOptions, context.options, f"[bots.{context.name}.options] in rig.toml"
    )
    with _database(options, context) as database:
        if options.card:
            card = database.card_by_name(options.card)
        else:
            card = database.card_by_id(
                context.shuffled_deck().draw(database.pool_ids(options.pool))
            )

        def faults(post: str) -> list[str]:
            return card_faults(post, card, database.known_names) + context.find_faults(
                post, own_words=card.own_words()
            )

        draft = generate_post(context, card, options, faults)
    if options.images and card.image and context.live:
        return images.attach_picture(draft, card, alt_text(card))
    return draft


def generate_post(
    context: Context, card: Card, options: CardOptions, faults: Callable[[str], list[str]]
) -> Draft:
    """Ask until a post has no `faults`; every refusal and its reason stand in the draft."""
    reasons: list[str] = []
    facts = card.to_facts()
    asked = 0
    messages = base = card_messages(facts)
    while asked < options.attempts:
        asked += 1
        try:
            answer = context.ask_model(
                messages,
                schema=CARD_SCHEMA,
                temperature=options.temperature,
                max_tokens=options.max_tokens,
            )
        except ContextOverflow:
            facts["Text"] = facts.get("Text", "")[: len(facts.get("Text", "")) // 2]
            messages = base = card_messages(facts)
            reasons.append("The card's text does not fit the model's context.")
            continue
        except RequestRefused:
            raise  # a wrong key or address: no card and no slot will mend it
        except RigError as error:
            reasons.append(error.message)
            break
        post, wrong = parse_post(answer.text, answer.finish)
        wrong = wrong or faults(post)
        if not wrong:
            return _made(card, post, "model", asked, reasons)
        reasons.append(wrong[0])
        messages = [*base, *card_retry(post or answer.text[:400], " ".join(wrong[:2]))]
    if options.fallback == "template":
        post = template_post(card, lambda text: context.room_left(text) >= 0)
        wrong = faults(post)
        if not wrong:
            return _made(card, post, "template", asked, reasons)
        reasons.append(f"Template: {wrong[0]}")
    raise Skip(f"No post about {card.name!r} passed: {' | '.join(reasons)}")


def parse_post(text: str, finish: str | None) -> tuple[str, list[str]]:
    """The post out of the model's JSON, or why there is none.

    >>> parse_post('{"post": "Moss Golem wakes."}', "stop")
    ('Moss Golem wakes.', [])
    >>> parse_post('Moss Golem wakes.', "stop")
    ('', ['The answer is not valid JSON.'])
    """
    if finish == "length":
        return "", ["The post is too long."]
    try:
        found = json.loads(text)
    except ValueError:
        return "", ["The answer is not valid JSON."]
    post = found.get("post") if isinstance(found, dict) else None
    if not isinstance(post, str) or not post.strip():
        return "", ["The answer has no post in it."]
    return " ".join(post.split()), []


def _made(card: Card, post: str, source: str, asked: int, reasons: list[str]) -> Draft:
    return Draft(
        post,
        str(card.id),
        source=source,
        attempts=asked,
        reasons=tuple(reasons),
        own_words=card.own_words(),
        data={"card": card.name},
    )


def _database(options: CardOptions, context: Context) -> AbstractContextManager[CardDatabase]:
    """The copy, kept fresh by a live bot; a preview without one shows invented cards."""
    if options.source == "samples":
        return CardDatabase.open_samples()
    if context.live:
        _refresh(context)
    elif not database_path().is_file():
        context.tell_operator(
            "There is no copy of the cards yet, so these are invented ones: "
            "`rig bot refresh` fetches the real."
        )
        return CardDatabase.open_samples()
    return CardDatabase.open_copy()


def _refresh(context: Context) -> None:
    """Once a day, ask whether there are newer cards; without an answer the old copy serves on."""
    from bots.cards.refresh import refresh_cards, refresh_due

    if database_path().is_file() and not refresh_due(context.now):
        return
    try:
        context.tell_operator(refresh_cards(now=context.now))
    except RigError as error:
        if not database_path().is_file():
            raise
        context.tell_operator(error.message)
