"""/health and /metrics on loopback: for a person, a monitor and Prometheus. Both only read."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, select

from bots import credentials
from bots.ledger import slots as ledger_slots
from bots.ledger import switches
from bots.ledger.tables import outbox
from bots.ledger.tables import runs as slots
from bots.redact import redact_secrets
from bots.timeout import count_left_behind
from rig import paths
from rig.errors import RigError
from rig.server.served_names import ServedNames

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from bots.daemon.scheduler import Daemon


class HealthServer:
    """Answers on `listen` ("127.0.0.1:8378") in threads of its own until `close`."""

    def __init__(self, daemon: Daemon, listen: str) -> None:
        self.daemon = daemon
        health = self

        class Handler(BaseHTTPRequestHandler):
            timeout = 10

            def log_message(self, *_: object) -> None:
                """Be quiet."""

            def do_GET(self) -> None:
                if not health.names.has_host(self.headers.get("Host", "")):
                    self.send_error(421, "This service does not answer to that name.")
                    return
                if (origin := self.headers.get("Origin")) and not health.names.has_origin(
                    origin, ""
                ):
                    self.send_error(403, "Pages of other places may not ask.")
                    return
                path = self.path.partition("?")[0]
                answers = {"/health": health.health_response, "/metrics": health.metrics_response}
                if path not in answers:
                    self.send_error(404, "There are /health and /metrics.")
                    return
                status, kind, body = answers[path]()
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        host, _, port = listen.rpartition(":")
        self.names = ServedNames([host.strip("[]")])
        try:
            self._server = ThreadingHTTPServer((host.strip("[]"), int(port)), Handler)
        except (OSError, ValueError) as error:
            raise RigError(
                f"/health can't listen on {listen} ({error}): set [daemon] listen to another address, "
                'or to "" for none.'
            ) from None
        self._server.daemon_threads = True
        self.address = f"{host}:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, name="health", daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()

    def health_response(self) -> tuple[int, str, bytes]:
        """200 when the daemon is well, 503 when it is not, with everything a person asks first."""
        found = self.health_report()
        body = redact_secrets(json.dumps(found, indent=2, ensure_ascii=False)) + "\n"
        return (503 if found["wrong"] else 200), "application/json", body.encode()

    def health_report(self) -> dict[str, Any]:
        """The state of the daemon, its bots and its outlets."""
        daemon, now = self.daemon, self.daemon.clock()
        wrong = daemon.health_problems()
        found: dict[str, Any] = {
            "status": "ill" if wrong else "well",
            "wrong": wrong,
            "id": daemon.daemon_id,
            "started": daemon.started.isoformat(timespec="seconds"),
            "heartbeat_age_s": round(time.monotonic() - daemon.last_heartbeat, 1),
            "calls_left_behind": count_left_behind(),
            "model_up": _model_up(),
            "disk_free_bytes": shutil.disk_usage(paths.data_dir().parent).free,
        }
        try:
            found["stopped"] = switches.stopped_scopes(daemon.ledger)
            found["bots"] = {name: self._bot(name, now) for name in daemon.drafter.bots}
            found["outlets"] = {name: self._outlet(name) for name in daemon.deliverer.outlets}
        except Exception as error:  # the ledger is away: that is what this page is there to say
            found["status"] = "ill"
            found["wrong"] = [*wrong, f"the ledger can't be read: {type(error).__name__}"]
        return found

    def metrics_response(self) -> tuple[int, str, bytes]:
        """Prometheus' text form."""
        from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest

        registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        registry.register(self)
        return 200, "text/plain; version=0.0.4; charset=utf-8", generate_latest(registry)

    def collect(self) -> Iterator[Metric]:
        """What Prometheus reads, counted in the ledger at that moment."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        daemon, now = self.daemon, self.daemon.clock()
        yield GaugeMetricFamily(
            "rig_healthy", "1 when the daemon is well", value=not daemon.health_problems()
        )
        yield GaugeMetricFamily(
            "rig_calls_left_behind",
            "Calls past their hard limit that still hang",
            value=count_left_behind(),
        )
        age = time.monotonic() - daemon.last_heartbeat
        yield GaugeMetricFamily("rig_heartbeat_age_seconds", "Since the last heartbeat", value=age)
        due = GaugeMetricFamily(
            "rig_next_slot_timestamp_seconds", "When the next post is due", labels=["bot"]
        )
        for name, schedule in daemon.drafter.schedules.items():
            due.add_metric([name], schedule.due_time(schedule.next_slot(now)).timestamp())
        yield due
        with daemon.ledger.read_transaction() as connection:
            count = CounterMetricFamily("rig_slots", "Slots by outcome", labels=["bot", "state"])
            query = select(slots.c.bot, slots.c.state, func.count()).group_by(
                slots.c.bot, slots.c.state
            )
            for bot, state, number in connection.execute(query):
                count.add_metric([bot, state], number)
            yield count
            count = CounterMetricFamily(
                "rig_posts", "Posts by state", labels=["bot", "outlet", "state"]
            )
            spent = CounterMetricFamily(
                "rig_spent_dollars", "Money spent", labels=["bot", "outlet"]
            )
            key = (outbox.c.bot, outbox.c.outlet, outbox.c.state)
            query = (
                select(*key, func.count(), func.sum(outbox.c.cost)).group_by(*key).order_by(*key)
            )
            money: dict[tuple[str, str], int] = {}
            for bot, outlet, state, number, cost in connection.execute(query):
                count.add_metric([bot, outlet, state], number)
                if state in ("sent", "unknown", "claimed"):
                    money[bot, outlet] = money.get((bot, outlet), 0) + int(cost)
            for (bot, outlet), cost in money.items():
                spent.add_metric([bot, outlet], cost / 1_000_000)
            yield count
            yield spent

    def _bot(self, name: str, now: Any) -> dict[str, Any]:
        schedule = self.daemon.drafter.schedules[name]
        found = ledger_slots.bot_overview(self.daemon.ledger, name)
        following, last = schedule.due_time(schedule.next_slot(now)), found["last"]
        return {
            "enabled": found["enabled"],
            "next": following.isoformat(timespec="seconds"),
            "last": last and last.slot.isoformat(timespec="seconds"),
            "last_state": last and last.state,
            "last_reason": last and last.reason,
            "lag_s": round((last.started - schedule.due_time(last.slot)).total_seconds(), 1)
            if last
            else None,
        }

    def _outlet(self, name: str) -> dict[str, Any]:
        saved = credentials.saved_at(name)
        age = (self.daemon.clock() - saved).days if saved else None
        return {"kind": self.daemon.deliverer.outlets[name].kind, "credentials_age_days": age}


def _model_up() -> bool:
    """Whether a model would answer now; none is started for this."""
    from rig.server.client import ModelClient
    from rig.server.connect import ModelConfig, find_running_server
    from rig.validation import load_section

    settings = load_section("model", ModelConfig)
    if settings.url:
        with ModelClient(settings.url, timeout=2.0) as client:
            return client.is_ready()
    return find_running_server(settings.name) is not None
