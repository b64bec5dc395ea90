"""What rig.toml says of the room, `[daemon]`, `[bots.NAME]`, `[outlets.NAME]`: checked here alone.

Times of day are UTC unless a bot names its `timezone` for its quiet hours. Durations are written "90s",
"15m", "2h", "7d". Money is US dollars.
"""

from __future__ import annotations

import re
from datetime import time, timedelta
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BeforeValidator, Field, model_validator

from bots.schedule import UNITS, Schedule
from rig.config import load_config
from rig.errors import WrongUse, suggest_name
from rig.validation import FrozenModel, validate_as


def parse_duration(value: object) -> timedelta:
    """Read "90s", "15m", "2h" or "7d".

    >>> parse_duration("90m")
    datetime.timedelta(seconds=5400)
    """
    if isinstance(value, timedelta):
        return value
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd])", str(value).strip())
    if not found:
        raise ValueError('write a duration such as "90s", "15m", "2h" or "7d"')
    return timedelta(seconds=float(found[1]) * UNITS[found[2]])


def parse_quiet_hours(value: object) -> tuple[time, time] | None:
    """Read "23:00-07:00"; an empty text means none.

    >>> parse_quiet_hours("23:00-07:00")
    (datetime.time(23, 0), datetime.time(7, 0))
    """
    if value in ("", None):
        return None
    try:
        first, last = str(value).split("-")
        found = time.fromisoformat(first.strip()), time.fromisoformat(last.strip())
    except ValueError:
        raise ValueError('write quiet hours such as "23:00-07:00"') from None
    if found[0] == found[1]:
        raise ValueError("quiet hours that begin when they end would last for ever")
    return found


Duration = Annotated[timedelta, BeforeValidator(parse_duration)]
Hours = Annotated[tuple[time, time] | None, BeforeValidator(parse_quiet_hours)]


class DaemonSettings(FrozenModel):
    """The table `[daemon]`."""

    database: str = ""
    """SQLAlchemy URL of the ledger; empty: ledger.sqlite in rig's data folder. A URL with a password
    belongs into the credential `database` instead (`rig auth database`)."""
    listen: str = "127.0.0.1:8378"
    """Address of /health and /metrics; empty: none."""
    heartbeat: Duration = timedelta(seconds=30)
    """How often approved drafts, unclear posts and missed slots are looked after."""
    lease: Duration = timedelta(seconds=120)
    """After this long without a sign of life another daemon takes over what this one had begun."""
    stop_within: Duration = timedelta(seconds=45)
    """How long running work may take to finish after SIGTERM."""
    draft_limit: Duration = timedelta(minutes=15)
    """Hard limit of one draft, the start of the model included."""
    call_limit: Duration = timedelta(seconds=60)
    """Hard limit of one call to an outlet."""
    ping: str = ""
    """A URL that is asked for at each healthy heartbeat, for a monitor outside the box."""


class BotSettings(FrozenModel):
    """One table `[bots.NAME]`."""

    run: str = ""
    """A bot that comes with rig, or `path.py:function`; empty: the table's name."""
    schedule: str = "0 */2 * * *"
    """Five cron fields in UTC, or `every 2h`."""
    jitter: Duration = timedelta(0)
    """Each post goes out up to this long after its slot, the same delay for everyone who asks."""
    outlets: tuple[str, ...] = ("screen",)
    approval: Literal["auto", "person"] = "auto"
    approve_within: Duration = timedelta(hours=24)
    """A draft that waits for a person longer than this is dropped."""
    catch_up: Literal["skip", "latest"] = "skip"
    """After sleep or a power cut: leave missed slots out, or post for the latest one."""
    catch_up_within: Duration = timedelta(hours=1)
    """How old the latest missed slot may be; also how long a failed post is tried again."""
    grace: Duration = timedelta(minutes=5)
    """A slot that begins at most this late is on time."""
    quiet: Hours = None
    """No post in these hours, such as "23:00-07:00"."""
    timezone: str = "UTC"
    """Where the quiet hours are meant, such as "Europe/London". The schedule stays in UTC."""
    posts_per_day: Annotated[int, Field(ge=0)] = 24
    posts_per_month: Annotated[int, Field(ge=0)] = 744
    dollars_per_day: Annotated[float, Field(ge=0)] = 0.5
    dollars_per_month: Annotated[float, Field(ge=0)] = 10.0
    """Caps of this bot: posts for each outlet, money over all of them. Days and months are UTC's."""
    blocked: tuple[str, ...] = ()
    """Words or phrases that no post of this bot may hold."""
    options: dict[str, Any] = Field(default_factory=dict)
    """The bot's own options: it checks them itself."""

    @model_validator(mode="after")
    def _possible(self) -> BotSettings:
        try:
            ZoneInfo(self.timezone)
        except (ZoneInfoNotFoundError, ValueError):
            raise ValueError(f"there is no time zone {self.timezone!r}") from None
        self.make_schedule()
        return self

    def make_schedule(self, name: str = "") -> Schedule:
        """The schedule of the bot called `name`, as an object that knows its slots."""
        return Schedule.from_text(self.schedule, self.jitter, name)


class Settings(FrozenModel):
    """Everything the room is told."""

    daemon: DaemonSettings = DaemonSettings()
    bots: dict[str, BotSettings] = Field(default_factory=dict)
    outlets: dict[str, dict[str, Any]] = Field(default_factory=dict)


NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,30}")


def read_settings() -> Settings:
    """The room's tables of rig.toml; without a bot there, the card bot on the screen.

    Outlet tables are validated by the outlet they name (`bots.outlets.build`).
    """
    tables = load_config()
    found = tables.get("bots") or {"cards": {}}
    bots = {name: validate_bot_settings(name, values) for name, values in found.items()}
    outlets = tables.get("outlets", {})
    for name in [*bots, *outlets]:
        if not NAME.fullmatch(name):
            raise WrongUse(f"rig.toml: name it in lower case, 31 letters at most, not {name!r}.")
    return Settings(
        daemon=validate_as(DaemonSettings, tables.get("daemon", {}), "[daemon] in rig.toml"),
        bots=bots,
        outlets=outlets,
    )


def validate_bot_settings(name: str, values: Any) -> BotSettings:
    """One checked `[bots.NAME]`."""
    return validate_as(BotSettings, values, f"[bots.{name}] in rig.toml")


def find_bot_settings(settings: Settings, name: str) -> BotSettings:
    """The settings of one bot, or a sentence that names the nearest."""
    from bots.bot import BUILT_IN

    if name in settings.bots:
        return settings.bots[name]
    if name in BUILT_IN:
        return BotSettings()
    raise WrongUse(
        f"rig.toml has no [bots.{name}]; {suggest_name(name, {*settings.bots, *BUILT_IN})}"
    )
