"""What Prometheus is told. An engine's counts come with its replies, to whichever API process asked.

NIL rate: rate(gemel_ray_links_total{status="nil"}) over rate(gemel_ray_links_total).
"""

from __future__ import annotations

from collections import Counter as Count

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from gemel_ray.serving.linker import Reply

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Meters:
    """One app's counters, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter("requests", "answered requests", "route", "status")
        self.errors = self._counter("errors", "requests that failed, by kind", "kind")
        self.links = self._counter("links", "rows answered, by status (linked, nil, error)", "status")
        self.asked_again = self._counter("asked_again", "documents whose worker died, asked for again")
        self.tokens = self._counter(
            "prompt_tokens", "of the engine: computed, or found in its cache", "source"
        )
        self.decoded = self._counter("decoded_tokens", "tokens written by the engine")
        self.rollouts = self._counter("engine_requests", "requests of the engine")
        self.seconds = self._histogram(
            "request_seconds", "a request, from its first byte to its last", "route"
        )
        self.stages = self._histogram("stage_seconds", "a document in a stage, waiting included", "stage")
        self.inside = self._gauge("documents_inside", "documents waiting or under way")
        self.queue = self._gauge("queue", "documents that are let in at most")
        self.pace = self._gauge("mentions_per_second", "that can be done, as estimated; 0: not known yet")

    def _counter(self, name: str, about: str, *labels: str) -> Counter:
        return Counter(f"gemel_ray_{name}", about, labels, registry=self.registry)

    def _gauge(self, name: str, about: str) -> Gauge:
        return Gauge(f"gemel_ray_{name}", about, registry=self.registry)

    def _histogram(self, name: str, about: str, *labels: str) -> Histogram:
        return Histogram(f"gemel_ray_{name}", about, labels, registry=self.registry, buckets=_SECONDS)

    def replied(self, reply: Reply) -> None:
        for status, number in Count(reply.rows["status"].to_pylist()).items():
            self.links.labels(status).inc(number)
        for stage, seconds in reply.seconds.items():
            self.stages.labels(stage).observe(seconds)
        new = Count(reply.counts)
        self.tokens.labels("cached").inc(new["cached"])
        self.tokens.labels("computed").inc(max(0, new["asked"] - new["cached"]))
        self.decoded.inc(new["decoded"])
        self.rollouts.inc(new["requests"])

    def text(self) -> bytes:
        """As Prometheus reads it."""
        return generate_latest(self.registry)
