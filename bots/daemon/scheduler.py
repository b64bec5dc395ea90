"""The daemon: APScheduler tells the time, the ledger remembers, the main thread listens to signals.

One job for each bot, at its slots; one that says "I live" in the ledger; one that sweeps up what no timer
knows of: missed slots, unclear posts, approvals. All are idempotent, so it does no harm that a sweep and a
slot meet. The scheduler's store is memory: what it forgets, the ledger knows.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.interval import IntervalTrigger

from bots.bot import bots
from bots.daemon.delivery import Deliverer
from bots.daemon.drafting import Drafter
from bots.daemon.notices import Notices
from bots.ledger import slots
from bots.ledger.clock import EARLIEST, TOLERANCE, LedgerClock, take_back_future
from bots.ledger.store import Ledger
from bots.outlets.build import build_outlet
from bots.schedule import Schedule
from bots.settings import Settings
from rig import paths
from rig.server import sd_notify
from rig.server.connect import connect_model

if TYPE_CHECKING:
    from rig.server.client import ModelClient

log = logging.getLogger("rig.bots")

JUMP = 2.0
"""Seconds by which the clock may differ from the time that passed before it counts as set."""
SWEEP = 1800.0
"""Seconds that a sweep may take before the same: it may have to wait for several outlets."""
STALE = 90.0
"""Seconds without a heartbeat after which the daemon calls itself ill."""


def utc_now() -> datetime:
    """The wall clock."""
    return datetime.now(UTC)


def connect_as_bot(limit: float) -> ModelClient:
    """A client of the model, waiting behind people."""
    return connect_model(priority="bot", timeout=limit)


class SlotTrigger(BaseTrigger):  # type: ignore[misc]
    """Fires when the next slot is due, its delay included."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule

    def get_next_fire_time(self, previous: datetime | None, now: datetime) -> datetime:
        """The first due time after `previous`, or from `now` on."""
        after = max(previous, now) if previous else now
        slot = self.schedule.next_slot(
            after.astimezone(UTC) - self.schedule.jitter - timedelta(seconds=1)
        )
        while self.schedule.due_time(slot) <= after:
            slot = self.schedule.next_slot(slot)
        return self.schedule.due_time(slot)


class Daemon:
    """Everything that runs; `run_until_stopped` blocks until a signal comes."""

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger,
        *,
        clock: Callable[[], datetime] = utc_now,
        connect: Callable[[float], ModelClient] = connect_as_bot,
        scheduler: Any = None,
        read: Callable[[], Settings] | None = None,
    ) -> None:
        self.ledger = ledger
        self.wall_clock = clock
        """This box's own clock: the scheduler goes by it."""
        self.clock = LedgerClock(ledger, clock) if ledger.is_shared and clock is utc_now else clock
        """The clock that moments in the ledger are taken from."""
        self.connect = connect
        self.read = read
        self.started = self.clock()
        self._latest: datetime | None = None
        self._complained = self._off = False
        self.daemon_id = slots.register_daemon(
            ledger, f"{socket.gethostname()}:{paths.state_dir()}", self.started
        )
        self.scheduler = scheduler or BackgroundScheduler(
            timezone=UTC, executors={"default": ThreadPoolExecutor(16)}
        )
        self.last_heartbeat = time.monotonic()
        self.last_sweep = time.monotonic()
        self._stopping = self._rereading = False
        self._wake = threading.Event()
        self._work = 0
        self._busy: set[int] = set()  # survives a reload: these rows are being sent
        self._lock = threading.Lock()
        self.notices = Notices(ledger, self.clock)
        self._clock_lock = threading.Lock()
        self._equip(settings)

    def _equip(self, settings: Settings) -> None:
        """Make the drafter and the deliverer of these settings; a wrong one raises and changes nothing."""
        names = {"screen", *(outlet for bot in settings.bots.values() for outlet in bot.outlets)}
        functions = {
            name: bots.find_function(bot.run or name) for name, bot in settings.bots.items()
        }
        common: dict[str, Any] = {
            "ledger": self.ledger,
            "daemon_id": self.daemon_id,
            "daemon": settings.daemon,
            "bots": settings.bots,
            "outlets": {name: build_outlet(name, settings.outlets) for name in sorted(names)},
            "functions": functions,
            "clock": self.clock,
        }
        self.drafter = Drafter(**common, connect=self.connect, started=self.started)
        self.deliverer = Deliverer(**common, busy=self._busy)
        self.settings = settings

    def schedule_jobs(self) -> None:
        """Give the scheduler its jobs, in place of those that it had."""
        self.scheduler.remove_all_jobs()
        common = {"misfire_grace_time": None, "coalesce": True, "max_instances": 1}
        every = self.settings.daemon.heartbeat.total_seconds()
        now = self.wall_clock()
        for job, name in ((self.write_heartbeat, "beat"), (self.run_sweep, "sweep")):
            trigger = IntervalTrigger(seconds=every, start_date=now, timezone=UTC)
            self.scheduler.add_job(job, trigger, id=name, next_run_time=now, **common)
        for name, schedule in self.drafter.schedules.items():
            trigger = SlotTrigger(schedule)
            self.scheduler.add_job(self.run_slot, trigger, args=[name], id=f"bot:{name}", **common)

    def run_slot(self, name: str) -> None:
        """A slot of this bot may be due."""
        with self._counted() as begun:
            if begun and self._clock_is_right() and self.drafter.draft_due(name):
                self.deliverer.deliver_due(name)

    def run_now(self, name: str) -> None:
        """Draft for this very minute, slot or not."""
        with self._counted() as begun:
            if begun and self._clock_is_right():
                self.drafter.draft_now(name)
                self.deliverer.deliver_due(name)

    def write_heartbeat(self) -> None:
        """Say in the ledger that this daemon lives."""
        if isinstance(self.clock, LedgerClock):
            ahead = self.clock.compare()
            if abs(ahead) > TOLERANCE and not self._off:
                log.warning(
                    "this box's clock is off by %s: slots go by that of the database", abs(ahead)
                )
            self._off = abs(ahead) > TOLERANCE
        slots.record_heartbeat(self.ledger, self.daemon_id, self.clock())
        self.last_heartbeat = time.monotonic()

    def run_sweep(self) -> None:
        """Look after everything that no timer knows of."""
        with self._counted() as begun:
            if not begun:
                return
            for name in self.drafter.bots:  # each in a thread of its own: a draft may take its time
                self.scheduler.modify_job(f"bot:{name}", next_run_time=self.wall_clock())
            if self._clock_is_right():
                self.deliverer.clear_up()
                self.deliverer.deliver_due()
                self.notices.tell_news(self.drafter.bots)
        self.last_sweep = time.monotonic()
        self._ping()

    def _clock_is_right(self) -> bool:
        """Whether work may be done by this clock; what it did to the ledger while it was ahead is undone."""
        with self._clock_lock:
            now, before = self.clock(), self._latest
            if now < EARLIEST:
                if not self._complained:
                    log.warning("the clock says %s: nothing is done until it is set", now)
                self._complained = True
                return False
            if self._complained or before is None or before - now > TOLERANCE:
                if before is not None and before - now > TOLERANCE:
                    log.warning("the clock was set back by %s", before - now)
                done = take_back_future(self.ledger, list(self.drafter.bots), now)
                if done:
                    said = ", ".join(f"{number} {what}" for what, number in done.items())
                    log.warning("the clock was ahead until now: %s", said)
            self._complained, self._latest = False, now
        return True

    def health_problems(self) -> list[str]:
        """What is wrong with the daemon itself; empty when nothing is."""
        wrong = []
        if not self._scheduling():
            wrong.append("the scheduler has stopped")
        if time.monotonic() - self.last_heartbeat > max(
            STALE, 3 * self.settings.daemon.heartbeat.total_seconds()
        ):
            wrong.append("no heartbeat: the ledger can't be written, or the scheduler hangs")
        if time.monotonic() - self.last_sweep > SWEEP:
            wrong.append("a sweep has been hanging for too long")
        return wrong

    def run_until_stopped(self, *, now: bool = False) -> bool:
        """Work until a signal asks to stop (see `handle_signals`); returns as `stop_gracefully` does."""
        self.scheduler.start()
        self.schedule_jobs()
        sd_notify.notify_ready(f"{len(self.settings.bots)} bots")
        for name in self.drafter.bots if now else ():
            self.scheduler.add_job(self.run_now, args=[name], misfire_grace_time=None)
        interval = min(sd_notify.watchdog_seconds() or 5.0, 5.0)
        offset = time.time() - time.monotonic()
        while True:
            self._wake.wait(interval)
            self._wake.clear()
            if self._stopping:
                return self.stop_gracefully()
            if self._rereading:
                self._rereading = False
                self.reload_settings()
            if not self.health_problems():
                sd_notify.ping_watchdog()
            step = time.time() - time.monotonic() - offset
            if abs(step) > JUMP:
                offset += step
                way = "was set back by" if step < 0 else "was set, or the box slept: it is ahead by"
                said = timedelta(seconds=round(abs(step)))
                log.warning("the clock %s %s; every job looks at it again", way, said)
                self.schedule_jobs()

    def reload_settings(self) -> None:
        """Read the configuration again; a wrong one is reported and the old one stays."""
        sd_notify.notify_reloading()
        try:
            self._equip(self.read() if self.read else self.settings)
            self.schedule_jobs()
            log.info("configuration read again: %d bots", len(self.settings.bots))
        except Exception as error:
            said = getattr(error, "message", None) or f"{type(error).__name__}: {error}"
            log.error("the configuration is wrong, the old one stays in force: %s", said)
        sd_notify.notify_ready()

    def stop_gracefully(self) -> bool:
        """Take no more work, let what runs finish within its time; False if something still hangs."""
        self._stopping = True
        sd_notify.notify_stopping()
        log.info("stopping: %d pieces of work are finished first", self._work)
        self.scheduler.pause()
        end = time.monotonic() + self.settings.daemon.stop_within.total_seconds()
        while self._work and time.monotonic() < end:
            time.sleep(0.05)
        if self._work:  # what hangs stays claimed in the ledger; the next start looks after it
            log.warning("stopped before everything was finished")
            return False
        self.scheduler.shutdown(wait=True)
        slots.release_daemon(self.ledger, self.daemon_id, self.clock())
        self.ledger.close()
        return True

    def handle_signals(self) -> None:
        """From now on signals are wishes: SIGTERM and SIGINT to stop, SIGHUP to read rig.toml again.

        A SIGINT that was ignored when the process began stays ignored: a shell does that to what runs in
        the background of a script, so that Ctrl-C ends the script and not the daemon.
        """

        def heard(number: int, _: Any) -> None:
            if number == getattr(signal, "SIGHUP", None):
                self._rereading = True
            elif self._stopping:
                os._exit(130)  # asked twice: at once
            else:
                self._stopping = True
            self._wake.set()

        for name in ("SIGTERM", "SIGINT", "SIGHUP"):
            number = getattr(signal, name, None)
            if number and not (name == "SIGINT" and signal.getsignal(number) is signal.SIG_IGN):
                signal.signal(number, heard)

    def _scheduling(self) -> bool:
        thread = getattr(self.scheduler, "_thread", None)
        return bool(self.scheduler.running and (thread is None or thread.is_alive()))

    def _ping(self) -> None:
        if self.settings.daemon.ping and not self.health_problems():
            import httpx

            try:
                httpx.get(self.settings.daemon.ping, timeout=5.0)
            except httpx.HTTPError as error:
                log.warning("the monitor could not be reached: %s", error)

    @contextmanager
    def _counted(self) -> Iterator[bool]:
        """A piece of work that a stop waits for; False when the daemon is stopping: don't begin.

        APScheduler holds its locks while it shuts down, so work that asked it for anything by then would
        wait for the shutdown, and the shutdown for the work.
        """
        with self._lock:
            begun = not self._stopping
            self._work += begun
        try:
            yield begun
        finally:
            with self._lock:
                self._work -= begun
