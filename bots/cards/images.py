"""The cards' pictures: each is pulled once, kept by its card's number, and never fetched at sight again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import httpx

from bots.bot import Draft
from bots.cards.card import Card
from bots.cards.database import database_path
from bots.cards.refresh import AGENT
from rig.atomic import write_bytes

LARGEST = 5_000_000
"""Bytes: X takes no larger picture."""


def attach_picture(draft: Draft, card: Card, alt: str) -> Draft:
    """The draft with the card's picture; without it when the picture cannot be had, and the draft says so."""
    try:
        return replace(draft, image=fetch_picture(card), alt=alt)
    except (httpx.HTTPError, ValueError) as error:
        return replace(draft, reasons=(*draft.reasons, f"No picture: {error}"))


def fetch_picture(card: Card) -> Path:
    """The file with the card's picture, fetched if it was never fetched before."""
    path = database_path().parent / "pictures" / f"{card.id}.jpg"
    if not path.is_file():
        with httpx.Client(timeout=30.0, headers={"User-Agent": AGENT}) as client:
            response = client.get(card.image)
        response.raise_for_status()
        if not response.content.startswith(b"\xff\xd8\xff"):
            raise ValueError(f"{card.image} is no JPEG picture")
        if len(response.content) > LARGEST:
            raise ValueError(f"{card.image} is larger than {LARGEST} bytes")
        write_bytes(path, response.content)
    return path
