"""Grafana's dashboards for deploy/monitoring: Ray's, as the pinned Ray generates them, and gemel-ray's.

    python cluster/dashboards.py        # after a change here, or of Ray's version; a test compares

Ray's are Apache-2.0, and only minified. Ours is for the operators of the service and the job.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent.parent / "deploy" / "monitoring" / "dashboards"
RAYS = ("default", "serve", "serve_deployment", "data")
_CLUSTER = 'ray_io_cluster=~"$cluster"'
# Title, unit as Grafana calls it, and queries with their legends.
PANELS: dict[str, list[tuple[str, str, dict[str, str]]]] = {
    "Service": [
        (
            "Requests",
            "reqps",
            {"{{route}} {{status}}": "sum by (route, status) (rate(gemel_ray_requests_total{%s}[5m]))"},
        ),
        (
            "Time to answer",
            "s",
            {
                f"p{quantile}": f"histogram_quantile(0.{quantile}, sum by (le) "
                '(rate(gemel_ray_request_seconds_bucket{%s, route="/v1/link"}[5m])))'
                for quantile in (50, 95, 99)
            },
        ),
        (
            "Of a document, mean",
            "s",
            {
                "{{stage}}": "sum by (stage) (rate(gemel_ray_stage_seconds_sum{%s}[5m])) "
                "/ sum by (stage) (rate(gemel_ray_stage_seconds_count{%s}[5m]))"
            },
        ),
        ("Links", "ops", {"{{status}}": "sum by (status) (rate(gemel_ray_links_total{%s}[5m]))"}),
        (
            "NIL",
            "percentunit",
            {
                "share": 'sum(rate(gemel_ray_links_total{%s, status="nil"}[15m])) '
                "/ sum(rate(gemel_ray_links_total{%s}[15m]))"
            },
        ),
        ("Errors", "reqps", {"{{kind}}": "sum by (kind) (rate(gemel_ray_errors_total{%s}[5m]))"}),
        (
            "Documents inside",
            "short",
            {"inside": "sum(gemel_ray_documents_inside{%s})", "let in at most": "sum(gemel_ray_queue{%s})"},
        ),
        (
            "Replicas",
            "short",
            {"{{deployment}}": "sum by (deployment) (ray_serve_deployment_replica_healthy{%s})"},
        ),
        (
            "Waiting",
            "short",
            {"{{deployment}}": "sum by (deployment) (ray_serve_deployment_queued_queries{%s})"},
        ),
    ],
    "Engine": [
        (
            "Prompt tokens",
            "short",
            {"{{source}}": "sum by (source) (rate(gemel_ray_prompt_tokens_total{%s}[5m]))"},
        ),
        ("Tokens written", "short", {"tokens/s": "sum(rate(gemel_ray_decoded_tokens_total{%s}[5m]))"}),
        (
            "Asked again",
            "short",
            {"documents whose worker died": "sum(increase(gemel_ray_asked_again_total{%s}[15m]))"},
        ),
    ],
    "Job": [
        ("Rows", "short", {"{{status}}": "sum by (status) (ray_gemel_ray_job_rows{%s})"}),
        ("Rows that failed", "short", {"{{kind}}": "sum by (kind) (ray_gemel_ray_job_errors{%s})"}),
        ("Time left", "s", {"{{SessionName}}": "max by (SessionName) (ray_gemel_ray_job_seconds_left{%s})"}),
        (
            "Where documents spend their time",
            "percentunit",
            {"{{stage}}": "avg by (stage) (ray_gemel_ray_job_stage_share{%s})"},
        ),
        ("Rows done", "rowsps", {"{{operator}}": "sum by (operator) (rate(ray_data_output_rows{%s}[5m]))"}),
        ("Tasks failed", "short", {"{{operator}}": "sum by (operator) (ray_data_num_tasks_failed{%s})"}),
        ("Spilled to disk", "bytes", {"{{dataset}}": "sum by (dataset) (ray_data_spilled_bytes{%s})"}),
    ],
    "Machines": [
        (
            "GPUs at work",
            "percent",
            {"{{instance}} {{GpuIndex}}": "avg by (instance, GpuIndex) (ray_node_gpus_utilization{%s})"},
        ),
        (
            "GPU memory",
            "decmbytes",
            {"{{instance}} {{GpuIndex}}": "sum by (instance, GpuIndex) (ray_node_gram_used{%s})"},
        ),
        ("Memory", "bytes", {"{{instance}}": "sum by (instance) (ray_node_mem_used{%s})"}),
        (
            "CPUs and GPUs asked for",
            "short",
            {"{{Name}}": 'sum by (Name) (ray_resources{%s, Name=~"CPU|GPU", State="USED"})'},
        ),
    ],
}


def rays(name: str) -> str:
    """One of Ray's dashboards."""
    from ray.dashboard.modules.metrics import grafana_dashboard_factory as factory

    text, _ = getattr(factory, f"generate_{name}_grafana_dashboard")()
    return json.dumps(json.loads(text), separators=(",", ":"))


def ours() -> str:
    """Our dashboard: rows of panels, three side by side."""
    panels: list[dict[str, Any]] = []
    bottom = 0
    for row, drawn in PANELS.items():
        panels.append({"type": "row", "title": row, "gridPos": {"x": 0, "y": bottom, "w": 24, "h": 1}})
        for number, (title, unit, queries) in enumerate(drawn):
            place = {"x": number % 3 * 8, "y": bottom + 1 + number // 3 * 8, "w": 8, "h": 8}
            panels.append(_panel(title, unit, queries) | {"gridPos": place})
        bottom += 1 + (len(drawn) + 2) // 3 * 8
    dashboard = {
        "uid": "gemel-ray",
        "title": "gemel-ray",
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {"list": [_DATA_SOURCE, _CLUSTERS]},
        "panels": [panel | {"id": number} for number, panel in enumerate(panels, 1)],
    }
    return json.dumps(dashboard, indent=1)


_DATA_SOURCE = {"name": "datasource", "type": "datasource", "query": "prometheus", "hide": 2}
_CLUSTERS = {
    "name": "cluster",
    "type": "query",
    "datasource": "${datasource}",
    "query": "label_values(ray_node_cpu_count, ray_io_cluster)",
    "refresh": 2,
    "includeAll": True,
    "allValue": ".*",
    "multi": True,
}


def _panel(title: str, unit: str, queries: dict[str, str]) -> dict[str, Any]:
    return {
        "type": "timeseries",
        "title": title,
        "datasource": "${datasource}",
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + number), "expr": query.replace("%s", _CLUSTER), "legendFormat": legend}
            for number, (legend, query) in enumerate(queries.items())
        ],
    }


def made() -> dict[str, str]:
    """Texts by file name."""
    return {f"ray-{name.replace('_', '-')}.json": rays(name) for name in RAYS} | {"gemel-ray.json": ours()}


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for file, text in made().items():
        (FOLDER / file).write_text(text + "\n")
