"""What a bot is given, made of the settings, the outlets and (where there is one) the ledger."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bots import moderation
from bots.bot import Deck
from bots.settings import BotSettings
from bots.timeout import CallTimeout, call_with_timeout
from rig import paths
from rig.errors import RigError

if TYPE_CHECKING:
    from bots.outlets.base import Outlet
    from rig.model.chat_template import Message
    from rig.server.client import ChatCompletion, ModelClient


@dataclass
class PreviewDeck:
    """A deck that forgets: for previews."""

    rng: random.Random = field(default_factory=random.Random)

    def draw(self, pool: list[str]) -> str:
        """Any card of the pool."""
        return self.rng.choice(pool)


def print_message(message: str) -> None:
    """To stderr."""
    sys.stderr.write(message + "\n")


@dataclass
class SlotContext:
    """One slot of one bot; see `bots.bot.Context` for what each part means."""

    name: str
    settings: BotSettings
    slot: datetime
    now: datetime
    outlets: Sequence[Outlet]
    connect: Callable[[float], ModelClient]
    """Gives a client of the model; its argument is the seconds that a call may take."""
    time_limit: timedelta
    """Hard limit of the whole draft."""
    preview: bool = False
    live: bool = False
    deck: Deck = field(default_factory=PreviewDeck)
    history: Callable[[int], list[str]] = lambda limit: []
    tell_operator: Callable[[str], None] = print_message
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Options that win over those of rig.toml."""
    answered_by: str = ""
    """The name of the model that answered last."""
    _client: ModelClient | None = None
    _began: float = field(default_factory=time.monotonic)

    @property
    def options(self) -> Mapping[str, Any]:
        """The bot's own options."""
        return {**self.settings.options, **self.extra}

    @property
    def folder(self) -> Path:
        """A folder of the bot's own."""
        path = paths.data_dir() / "bots" / self.name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def model_client(self) -> ModelClient:
        """A client of the model, started if need be."""
        if self._client is None:
            self._client = call_with_timeout(
                self._rest(), lambda: self.connect(self._rest().total_seconds())
            )
        return self._client

    def ask_model(self, messages: list[Message], **options: Any) -> ChatCompletion:
        """One whole answer within what is left of the draft's time."""
        try:
            client = self.model_client()
            answer = call_with_timeout(
                self._rest(), lambda: client.chat(messages, **options), on_overdue=self.close
            )
        except CallTimeout as error:
            raise RigError(f"The model gave {error}.") from None
        self.answered_by = answer.model
        return answer

    def find_faults(self, text: str, *, links: bool = False, own_words: str = "") -> list[str]:
        """Why this bot's outlets may not carry `text`."""
        found = moderation.find_faults(
            text, links=links, blocked=self.settings.blocked, own_words=own_words
        )
        found += [fault for outlet in self.outlets for fault in outlet.text_faults(text)]
        return found or moderation.repetition_faults(text, self.earlier_texts())

    def room_left(self, text: str) -> int:
        """How much more fits beside `text` in the tightest outlet."""
        return min((o.limit - o.measure_text(text) for o in self.outlets), default=100_000)

    def earlier_texts(self, limit: int = 500) -> list[str]:
        """What this bot posted or holds ready to post."""
        return self.history(limit)

    def shuffled_deck(self) -> Deck:
        """The deck."""
        return self.deck

    def close(self) -> None:
        """Close the connection to the model."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def _rest(self) -> timedelta:
        left = self.time_limit.total_seconds() - (time.monotonic() - self._began)
        if left <= 0:
            raise RigError(f"The draft took longer than {self.time_limit}.")
        return timedelta(seconds=left)
