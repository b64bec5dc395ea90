"""What a bot is: one function from a `Context` to a `Draft`, or to None when it has nothing to say.

    from bots.bot import Context, Draft, bots

    @bots.register
    def weather(context: Context) -> Draft | None:
        report = context.ask_model([{"role": "user", "content": "One line about rain."}])
        return Draft(report.text, subject="rain")

`[bots.weather]` in rig.toml gives it a schedule and its outlets. A function of one's own is named there by
`run = "path.py:function"`. A bot only drafts: when it is asked, where its draft goes, whether a person sees
it first and what it may cost is the daemon's business, and nothing goes out that `Context.find_faults`
refuses.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rig.registry import Registry

if TYPE_CHECKING:
    from rig.model.chat_template import Message
    from rig.server.client import ChatCompletion, ModelClient


class Skip(Exception):
    """Raised by a bot that leaves this slot out; the reason stands in the ledger."""


@dataclass(frozen=True)
class Draft:
    """What a bot wants to say in one slot. It is kept before anything is sent."""

    text: str
    subject: str = ""
    """What it is about (a card's number, an article's address): shown in the history."""
    image: Path | None = None
    """A picture on this machine, for the outlets that show pictures."""
    alt: str = ""
    """The picture in words; an image without it is refused."""
    source: str = "model"
    """Who wrote it: `model`, `template` or `person`."""
    attempts: int = 1
    """How often the model was asked."""
    reasons: tuple[str, ...] = ()
    """Why earlier attempts were refused."""
    links: bool = False
    """Whether links are meant to be in the text; without it a text with a link is refused."""
    own_words: str = ""
    """What the text is about; see `Context.find_faults`."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """Anything that goes into JSON; handed to the bot's delivery hook, maybe days and restarts later."""


@dataclass(frozen=True)
class Delivery:
    """One draft that an outlet has confirmed."""

    bot: str
    slot: datetime
    outlet: str
    """The outlet's name in rig.toml."""
    text: str
    """As it went out, a person's edits included."""
    external_id: str
    subject: str
    data: Mapping[str, Any]


class Context(Protocol):
    """What a bot is given for one slot; the daemon and `rig bot preview` each make one."""

    name: str
    """The bot's name in rig.toml."""
    slot: datetime
    """The moment this post belongs to, in UTC: the same however late or often the bot is asked."""
    now: datetime
    preview: bool
    """True when nobody will post this: remember nothing."""
    live: bool
    """True when the draft is meant for the world: enabled, and with an outlet that leaves this box."""

    @property
    def options(self) -> Mapping[str, Any]:
        """The table `[bots.NAME.options]`, for the bot to validate (`rig.validation.validate_as`)."""

    @property
    def folder(self) -> Path:
        """A folder of the bot's own that stays."""

    def model_client(self) -> ModelClient:
        """A client of the model (`rig.server.connect.connect_model`, priority `bot`), started if need be."""

    def ask_model(self, messages: list[Message], **options: Any) -> ChatCompletion:
        """One whole answer within the hard time limit; options as in `ModelClient.stream_chat`."""

    def find_faults(self, text: str, *, links: bool = False, own_words: str = "") -> list[str]:
        """Why this bot's outlets may not carry `text`, a sentence each; empty when it may go out.

        `own_words` is what the post is about: words that stand there are not held against it.
        """

    def room_left(self, text: str) -> int:
        """How much more fits beside `text` in the tightest outlet, by that outlet's own measure."""

    def earlier_texts(self, limit: int = 500) -> list[str]:
        """What this bot posted or holds ready to post, the newest first."""

    def shuffled_deck(self) -> Deck:
        """What this bot has drawn so far: a shuffled deck that is remembered."""

    def tell_operator(self, message: str) -> None:
        """Tell the operator (the log; never the world)."""


class Deck(Protocol):
    """A shuffled deck: nothing comes back before everything was shown."""

    def draw(self, pool: list[str]) -> str:
        """The next of `pool` for this slot; asked again for the same slot, the same one."""


Bot = Callable[[Context], Draft | None]
Hook = Callable[[Delivery], None]


BUILT_IN = {"cards": "bots.cards.bot", "digest": "bots.articles.bot"}
"""The bots that come with rig, by the module that adds them."""


class Bots(Registry):
    """The registry of bots; those that come with rig are imported when they are first asked for."""

    def find_function(self, name: str) -> Bot:
        """Return the bot called `name`, or the function at `path.py:function`."""
        if name in BUILT_IN and name not in self:
            importlib.import_module(BUILT_IN[name])
        return super().find_function(name)

    def on_delivery(self, bot: Bot) -> Callable[[Hook], Hook]:
        """Keep a function to be told of each confirmed delivery of `bot`'s drafts.

        It is called at least once for each outlet, also after a crash or a late approval: it must
        not mind hearing of the same delivery twice. An error in it is logged and it is told again.
        """

        def keep(hook: Hook) -> Hook:
            bot.delivered = hook  # type: ignore[attr-defined]
            return hook

        return keep


bots = Bots("bot")
