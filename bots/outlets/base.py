"""What an outlet is: it measures a text, names its price, sends it once, and can say what became of it.

How a sending can fail stands in `bots.outlets.errors`.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

from bots.credentials import load_credentials
from bots.outlets.errors import Halt
from rig.errors import RigError
from rig.validation import FrozenModel


@dataclass(frozen=True)
class Post:
    """One thing to send, as the outbox holds it."""

    bot: str
    slot: datetime
    text: str
    key: str
    """Never the same for two posts, always the same for one: the idempotency key."""
    image: Path | None = None
    alt: str = ""
    claimed: datetime | None = None
    """When sending began; `find_post` looks no further back."""
    attempt: int = 1
    """The how manieth time it is sent."""
    media: str = ""
    """What `prepare_post` returned: the platform's name of an uploaded picture."""


LOST, UNKNOWN = "lost", "unknown"


class Outlet:
    """One place where posts go; subclasses override what is theirs.

    `settings` is the class that checks the table `[outlets.NAME]`, `secrets` the fields that
    `rig auth NAME` asks for.
    """

    kind: ClassVar[str]
    away: ClassVar[bool] = True
    """Whether posts leave this box: only then does a bot have to be enabled."""
    pictures: ClassVar[bool] = False
    secrets: Mapping[str, str] = MappingProxyType({})
    """Field and what it is, for the question."""
    settings: ClassVar[type[FrozenModel]] = FrozenModel
    settle: float = 60.0
    """Seconds after the hard limit of a call before `find_post` may conclude that a post is lost."""
    finds_by_text: ClassVar[bool] = False
    """Whether what it finds may be an earlier post that says the same."""

    def __init__(self, name: str, settings: Any, secrets: Mapping[str, str] | None = None) -> None:
        self.name = name
        self.options = settings
        self._given = secrets
        self._read: Mapping[str, str] = {}

    @property
    def credentials(self) -> Mapping[str, str]:
        """The secrets, read each time, for `rig auth` may replace them at any; Halt when they can't be."""
        if self._given is not None:
            return self._given
        try:
            self._read = load_credentials(self.name, self.secrets)
        except RigError as error:
            raise Halt(error.message.removesuffix(".")) from error
        return self._read

    def has_new_credentials(self) -> bool:
        """Whether the secrets that were read last have been replaced since."""
        before = self._read
        try:
            return self.credentials != before
        except Halt:
            return False

    limit: int = 100_000
    """How long a text may be, in what `measure_text` counts."""

    def measure_text(self, text: str) -> int:
        """How long `text` is here."""
        return len(unicodedata.normalize("NFC", text))

    def text_faults(self, text: str) -> list[str]:
        """Why this outlet cannot carry `text`."""
        length = self.measure_text(text)
        if length > self.limit:
            return [f"The post is too long: {length} of {self.limit} for {self.name}."]
        return []

    def post_price(self, text: str, image: bool = False) -> int:
        """What sending `text` costs, in millionths of a dollar."""
        return 0

    def prepare_post(self, post: Post, media: str) -> str:
        """Do what nobody sees and may be done twice, such as uploading a picture; before the claim.

        `media` is what an earlier attempt returned. Raises as `send_post` does, but never `Unclear`.
        """
        return media

    def send_post(self, post: Post) -> str:
        """Send it and return the platform's name for it; raises one of the four errors."""
        raise NotImplementedError

    def find_post(self, post: Post) -> str:
        """What became of an unclear post: its id, `LOST`, or `UNKNOWN` when only a person can tell.

        Raises `NotSent` when it can't look now.
        """
        return UNKNOWN

    def account_name(self) -> str:
        """The account that the credentials belong to, asked of the platform; for `rig auth`."""
        return "nobody: this outlet has no account"
