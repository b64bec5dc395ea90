"""What a person's commands do: each opens the ledger that the settings name, does one thing, and says so.

No daemon has to run for this, and one that runs on any box takes it up at its next look.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bots import credentials, moderation, settings
from bots.bot import bots
from bots.daemon import hand_over, process
from bots.ledger import outbox, review, slots, switches
from bots.outlets.base import Outlet
from bots.outlets.build import KINDS, build_outlet
from bots.outlets.errors import Halt
from rig.errors import RigError, WrongUse, suggest_name


def enable_bot(name: str) -> list[str]:
    """Enable a bot; what would keep it from speaking is an error now and not in two hours."""
    everything = settings.read_settings()
    mine = settings.find_bot_settings(everything, name)
    bots.find_function(mine.run or name)
    places = [build_outlet(outlet, everything.outlets) for outlet in mine.outlets]
    away = [outlet for outlet in places if outlet.away]
    if not away:
        raise WrongUse(
            f"{name} speaks only on {', '.join(o.name for o in places)}: name an outlet in "
            f'[bots.{name}], such as outlets = ["mastodon"].'
        )
    for outlet in away:
        try:
            _ = outlet.credentials
        except Halt as halt:
            raise RigError(f"{halt}.") from None
    switches.set_enabled(process.open_ledger(), name, True, mine.schedule, _now())
    price = sum(outlet.post_price("") for outlet in away) / 1_000_000
    said = [
        f"{name} now speaks on {', '.join(o.name for o in away)}; `rig bot pause {name}` stops it."
    ]
    if price:
        said.append(
            f"A post costs ${price:.3f}; at most ${mine.dollars_per_day:.2f} a day and "
            f"${mine.dollars_per_month:.2f} a month go out."
        )
    return said


def disable_bot(name: str) -> str:
    """Disable a bot."""
    mine = settings.find_bot_settings(settings.read_settings(), name)
    switches.set_enabled(process.open_ledger(), name, False, mine.schedule, _now())
    return f"{name} speaks on the screen only."


def list_queue(name: str | None) -> list[dict[str, Any]]:
    """What is not final."""
    return [
        review.post_object(row) for row in review.open_posts(process.open_ledger(), _checked(name))
    ]


def list_history(name: str | None, last: int) -> list[dict[str, Any]]:
    """What became of the latest drafts."""
    return [
        review.post_object(row)
        for row in review.latest_posts(process.open_ledger(), _checked(name), last)
    ]


def approve_post(number: int) -> str:
    """Let a draft go out."""
    review.approve_draft(process.open_ledger(), number, _now())
    running = "" if process.running_daemon() else " No daemon runs on this box: `rig daemon run`."
    return f"Post {number} goes out at the daemon's next look.{running}"


def reject_post(number: int, reason: str) -> str:
    """Leave a draft out."""
    review.reject_draft(process.open_ledger(), number, reason, _now())
    return f"Post {number} is left out."


def post_text(number: int) -> str:
    """The text of a draft, for an editor."""
    return str(review.find_post(process.open_ledger(), number).text)


def edit_post(number: int, new: str) -> str:
    """Change a draft; the new text passes the same checks, and every outlet's own."""
    ledger, everything = process.open_ledger(), settings.read_settings()
    row = review.find_post(ledger, number)
    mine = settings.find_bot_settings(everything, row.bot)
    wrong = moderation.find_faults(
        new, links=row.links, blocked=mine.blocked, own_words=row.own_words
    )
    names = {row.outlet, *mine.outlets} & {*everything.outlets, *KINDS}
    wrong += [
        fault
        for name in sorted(names)
        for fault in build_outlet(name, everything.outlets).text_faults(new)
    ]
    others = [said for said in outbox.earlier_texts(ledger, row.bot, 500) if said != row.text]
    wrong = wrong or moderation.repetition_faults(new, others)
    if wrong:
        raise WrongUse(" ".join(wrong))
    review.edit_draft(ledger, number, new, _now())
    return f"Post {number} has its new text; `rig bot approve {number}` lets it go out."


def resolve_post(number: int, arrived: bool) -> str:
    """Say what became of an unclear post."""
    review.settle_unclear(process.open_ledger(), number, arrived, _now())
    return f"Post {number} counts as {'sent' if arrived else 'left out'}."


def pause_posts(name: str | None, outlet: str | None, everything: bool, reason: str) -> str:
    """Stop a bot, an outlet, or everything."""
    scope = _scope(name, outlet, everything)
    switches.stop_scope(process.open_ledger(), scope, reason, _now())
    return f"{scope} is stopped: nothing more goes out."


def resume_posts(name: str | None, outlet: str | None, everything: bool) -> str:
    """Let it go on."""
    scope = _scope(name, outlet, everything)
    if not switches.resume_scope(process.open_ledger(), scope):
        stopped = switches.stopped_scopes(process.open_ledger())
        raise WrongUse(
            f"{scope} was not stopped; "
            + (f"stopped: {', '.join(stopped)}." if stopped else "nothing is.")
        )
    return f"{scope} goes on."


def refresh_cards(path: str | None, force: bool) -> str:
    """Fetch the cards, or take them from a saved answer of the API."""
    from bots.cards import database, refresh

    if path is None:
        return refresh.refresh_cards(force=force)
    try:
        entries = json.loads(Path(path).read_text("utf-8"))["data"]
        about = {"source": path, "version": "", "fetched": _now().isoformat()}
        return f"{database.replace_copy(entries, about)} cards from {path}."
    except FileNotFoundError:
        raise WrongUse(f"There is no file {path}.") from None
    except (ValueError, KeyError, TypeError) as error:
        raise RigError(
            f'{path} is no answer of the card API ({{"data": [...]}} is expected): {error!r}.'
        ) from error


def list_jobs() -> list[dict[str, Any]]:
    """Every bot: when it speaks next, where, and what came of its last slot."""
    everything, ledger, now = settings.read_settings(), process.open_ledger(), _now()
    stopped = switches.stopped_scopes(ledger)
    found = []
    for name, mine in everything.bots.items():
        schedule, about = mine.make_schedule(name), slots.bot_overview(ledger, name)
        last, sendings = about["last"], []
        if last is not None:
            sendings = [
                row for row in review.latest_posts(ledger, name, 20) if row.slot == last.slot
            ]
        found.append(
            {
                "bot": name,
                "schedule": mine.schedule,
                "next": schedule.due_time(schedule.next_slot(now)).isoformat(timespec="seconds"),
                "outlets": list(mine.outlets),
                "enabled": about["enabled"],
                "approval": mine.approval,
                "stopped": stopped.get("all") or stopped.get(f"bot:{name}"),
                "last": None
                if last is None
                else {
                    "slot": last.slot.isoformat(timespec="seconds"),
                    "state": last.state,
                    "reason": last.reason,
                    "posts": {row.outlet: row.state for row in sendings},
                },
                "slots": about["counts"],
            }
        )
    return found


def configured_outlet(name: str) -> Outlet:
    """The outlet of this name, as rig.toml has it."""
    return build_outlet(name, settings.read_settings().outlets)


def store_credentials(name: str, values: dict[str, str]) -> str:
    """Test secrets at the platform, then keep them; the account's name is all that is shown."""
    from bots.redact import redact_secrets, remember_secrets

    remember_secrets(values.values())
    built = build_outlet(name, settings.read_settings().outlets, values)
    account = _tested(built)
    path = credentials.save_credentials(name, values)
    said = f"{name} works as {account}. Kept in {path}, which only you can read."
    handed = hand_over.hand_to_daemon(name, path)
    switches.resume_scope(process.open_ledger(), f"outlet:{name}")
    return redact_secrets(f"{said} {handed}".strip())


def store_database_url(url: str) -> str:
    """Keep the address of the ledger, password and all, after it was opened once."""
    from bots.ledger.store import Ledger
    from bots.redact import remember_secrets

    remember_secrets([url])
    Ledger.open(url).close()
    path = credentials.save_credentials("database", {"url": url})
    said = f"The ledger can be opened. Its address is kept in {path}, which only you can read."
    handed = hand_over.hand_to_daemon("database", path)
    if process.running_daemon():
        handed += " A daemon that runs takes up a new password; for another ledger, start it again."
    return f"{said} {handed}".replace("  ", " ").strip()


def check_credentials(name: str) -> str:
    """Test the secrets that are there."""
    built = configured_outlet(name)
    _, where = credentials.find_credentials(name, built.secrets)
    return f"{name} works as {_tested(built)} (from {where or 'nowhere: it needs no secrets'})."


def _tested(built: Outlet) -> str:
    from bots.redact import redact_secrets

    try:
        return built.account_name()
    except Exception as error:
        raise RigError(
            redact_secrets(f"{built.name} does not take these credentials: {error}")
        ) from None


def _scope(name: str | None, outlet: str | None, everything: bool) -> str:
    if [bool(name), bool(outlet), everything].count(True) != 1:
        raise WrongUse("Say one of BOT, --outlet OUTLET, --all.")
    if everything:
        return "all"
    found = settings.read_settings()
    if outlet:
        known = {*found.outlets, *KINDS}
        if outlet not in known:
            raise WrongUse(f"There is no outlet {outlet!r}; {suggest_name(outlet, known)}")
        return f"outlet:{outlet}"
    return f"bot:{_checked(name)}"


def _checked(name: str | None) -> str | None:
    if name is not None:
        settings.find_bot_settings(settings.read_settings(), name)
    return name


def _now() -> datetime:
    return datetime.now(UTC)
