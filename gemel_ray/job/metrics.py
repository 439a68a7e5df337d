"""The record as Prometheus metrics, on every Ray node's metrics port (deploy/monitoring reads them there)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class Gauge(Protocol):
    """ray.util.metrics.Gauge, as offline.py gives it."""

    def set(self, value: float, tags: dict[str, str]) -> None: ...


class Metrics:
    """`gauge` makes one of a name, what it means, and its tags' names."""

    def __init__(self, gauge: Any) -> None:
        self._make = gauge
        self._made: dict[str, Gauge] = {}

    def show(self, record: Mapping[str, Any]) -> None:
        """What the record says now."""
        documents = record["documents"]
        self._set("documents", "documents of this run, by state", "state", {
            "done": documents["done"], "total": documents["total"], "done_before": documents["done_before"],
        })  # fmt: skip
        self._set("rows", "rows written by this run, by status", "status", record["statuses"])
        errors = {entry["kind"][:120]: entry["rows"] for entry in record["errors"][:20]}
        self._set("errors", "rows that failed, by kind", "kind", errors)
        self._set(
            "prompt_tokens", "of the engines, asked for and found cached", "kind", record["prompt_tokens"]
        )
        self._set("stage_share", "of the time documents spend in stages", "stage", record["stage_shares"])
        self._set("seconds_left", "until the run is done, at its pace so far", "of",
                  {"run": record["seconds_left"]})  # fmt: skip

    def _set(self, name: str, about: str, tag: str, values: Mapping[str, Any]) -> None:
        if name not in self._made:
            self._made[name] = self._make(f"gemel_ray_job_{name}", about, (tag,))
        for label, value in values.items():
            if value is not None:
                plain = label.encode("ascii", "replace").decode()  # Ray takes nothing else
                self._made[name].set(float(value), {tag: plain})
