"""What Prometheus may know: counts and times, never a word of a prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class ServerMetrics:
    """The counters of one server; `look` gives the present state as name -> (help, value)."""

    def __init__(self, look: Callable[[], dict[str, tuple[str, float]]]) -> None:
        self._registry = CollectorRegistry()
        self._look = look
        self._registry.register(self)
        self.requests = self._counter(
            "requests", "Requests by how they ended.", "finish", "priority"
        )
        self.refused = self._counter(
            "refused", "Requests that were refused, by HTTP status.", "status"
        )
        self.prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts that were computed.")
        self.cached_tokens = self._counter(
            "cached_tokens", "Tokens of prompts that were there already."
        )
        self.tokens = self._counter("generated_tokens", "Tokens written.")
        self.drafted = self._counter("drafted_tokens", "Tokens guessed ahead.")
        self.draft_taken = self._counter("drafted_tokens_taken", "Guessed tokens that were right.")
        self.first_token_seconds = self._histogram(
            "first_token_seconds", "From request to first text."
        )
        self.request_seconds = self._histogram(
            "request_seconds", "From request to the end of the reply."
        )

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"rig_serve_{name}", text, labels, registry=self._registry)

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(f"rig_serve_{name}", text, registry=self._registry, buckets=SECONDS)

    def collect(self) -> Iterator[Metric]:
        """The present state; prometheus_client calls this."""
        for name, (text, value) in self._look().items():
            yield GaugeMetricFamily(f"rig_serve_{name}", text, value=value)

    def add_timings(self, timings: dict[str, Any]) -> None:
        """Add the figures of one finished reply."""
        self.prompt_tokens.inc(timings.get("prompt_n", 0))
        self.cached_tokens.inc(timings.get("cache_n", 0))
        self.tokens.inc(timings.get("predicted_n", 0))
        self.drafted.inc(timings.get("draft_n", 0))
        self.draft_taken.inc(timings.get("draft_n_accepted", 0))

    def prometheus_text(self) -> bytes:
        """All of it in Prometheus' text form."""
        return generate_latest(self._registry)
