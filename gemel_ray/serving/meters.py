"""Prometheus metrics and the log. An engine's counts come with its replies, to the API process that called.

NIL rate: rate(gemel_ray_links_total{status="nil"}) over rate(gemel_ray_links_total).
"""

from __future__ import annotations

import json
import logging
import sys
from collections import Counter as Count
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from gemel_ray.serving.linker import Reply

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Meters:
    """One app's metrics, in a separate registry."""

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
        """All metrics in Prometheus's text format."""
        return generate_latest(self.registry)


# The log, one JSON object a line: the request, how it ended, and the root cause of a failure. No text and no
# picture of a request is ever written.


NAME = "gemel_ray.serving"
log = logging.getLogger(NAME)


class AsJson(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {"time": at, "level": record.levelname.lower(), "message": record.getMessage()}
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def start() -> None:
    """Log JSON lines to standard error; once per process."""
    if log.handlers:
        return
    stream = logging.StreamHandler(sys.stderr)
    stream.setFormatter(AsJson())
    log.addHandler(stream)
    log.setLevel(logging.INFO)
    log.propagate = False


def log_event(level: int, message: str, cause: BaseException | None = None, **fields: object) -> None:
    """Log one line."""
    log.log(level, message, exc_info=cause, extra={"fields": fields})


# The amount of work, in mentions: the unit in which callers take turns and replicas are added.


MENTIONS = "mentions"  # name of a replica's count, for Serve's autoscaler
_CHARACTERS = 40  # of a text, per mention that detection may find


def mentions(document: pa.Table) -> int:
    """The mentions of a document, after any stage: its rows, once each mention has one; else those found or
    given; else an estimate from the length of its text."""
    if "mention" in document.column_names:
        return max(1, len(document))
    for column in ("mentions", "given"):
        if column in document.column_names and document[column][0].is_valid:
            return max(1, pc.sum(pc.list_value_length(document[column])).as_py() or 0)
    return 1 + len(document["text"][0].as_py() or "") // _CHARACTERS


def by_mentions(context: Any) -> tuple[float, dict[str, Any]]:
    """An autoscaling policy for Serve: replicas by the mentions inside them, where Serve's policy counts
    documents. A document that waits for a replica counts as one."""
    counted = (context.aggregated_metrics or {}).get(MENTIONS)
    if not counted:  # no replica has counted yet
        return context.target_num_replicas, {}
    inside = sum(counted.values()) + context.total_queued_requests
    return inside / context.config.target_ongoing_requests, {}
