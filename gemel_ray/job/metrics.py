"""The record as Prometheus metrics, on every Ray node's metrics port (deploy/monitoring reads them there)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

# Name: what it means, and its tag. Ray puts ray_ in front.
METRICS = {
    "gemel_ray_job_documents": ("documents of this run, by state", "state"),
    "gemel_ray_job_rows": ("rows written by this run, by status", "status"),
    "gemel_ray_job_errors": ("rows that failed, by kind", "kind"),
    "gemel_ray_job_prompt_tokens": ("of the engines, asked for and found cached", "kind"),
    "gemel_ray_job_stage_share": ("of the time documents spend in stages", "stage"),
    "gemel_ray_job_seconds_left": ("until the run is done, at its pace so far", "of"),
}


class Gauge(Protocol):
    """ray.util.metrics.Gauge, as offline.py gives it."""

    def set(self, value: float, tags: dict[str, str]) -> None: ...


class Metrics:
    """`gauge` makes one of a name, what it means, and its tags' names."""

    def __init__(self, gauge: Any) -> None:
        self._made: dict[str, tuple[Gauge, str]] = {
            name: (gauge(name, about, (tag,)), tag) for name, (about, tag) in METRICS.items()
        }

    def show(self, record: Mapping[str, Any]) -> None:
        """What the record says now."""
        values: list[Mapping[str, Any]] = [
            record["documents"],
            record["statuses"],
            {entry["kind"][:120]: entry["rows"] for entry in record["errors"][:20]},
            record["prompt_tokens"],
            record["stage_shares"],
            {"run": record["seconds_left"]},
        ]
        for (gauge, tag), told in zip(self._made.values(), values, strict=True):
            for label, value in told.items():
                if value is not None:
                    plain = label.encode("ascii", "replace").decode()  # Ray takes nothing else
                    gauge.set(float(value), {tag: plain})
