"""Joins or starts Ray; runs checks on its other nodes."""

from __future__ import annotations

import logging
import math
import os
import re
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from gemel_ray.environment import before_ray
from gemel_ray.errors import Mistake
from gemel_ray.job.shared import SharedPath, faults, refusal

_CONNECTING = 10.0  # seconds for a cluster's first sign of life
_PATIENCE = 120.0  # seconds for a node's answer, including the start of a worker


def connect(address: str, cpus: float) -> Any:
    """Join the cluster at `address`, or, for `local`, start Ray here with at least `cpus` CPUs; Ray's
    context. Ray logs errors only. Raises Mistake where nothing listens at the address: Ray would wait for it
    for many minutes."""
    _answers(address)
    before_ray(address)
    import ray

    cores = max(os.cpu_count() or 1, math.ceil(cpus))
    local: dict[str, Any] = {"num_cpus": cores, "include_dashboard": False} if address == "local" else {}
    return ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **local)


def _answers(address: str) -> None:
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not host:  # local, auto
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECTING).close()
    except OSError as fault:
        raise Mistake(
            f"no Ray cluster answers at {address} ({fault}): is it started, and is its port open? "
            "docs/cluster.md shows how"
        ) from fault


def run_on_others(function: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
    """Run the function on every other node that takes work; results by node name. A node that does not
    answer, such as one that is being removed, is left out."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here, task, answers = ray.get_runtime_context().get_node_id(), ray.remote(num_cpus=0)(function), {}
    for node in ray.nodes():
        takes = node["Resources"].get("CPU") or node["Resources"].get("GPU")
        if node["Alive"] and takes and node["NodeID"] != here:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            answers[name(node)] = task.options(scheduling_strategy=there).remote(*arguments)
    results, until = {}, time.monotonic() + _PATIENCE
    for node_name, answer in answers.items():
        with suppress(ray.exceptions.RayError):
            results[node_name] = ray.get(answer, timeout=max(0.1, until - time.monotonic()))
    return results


def mismatch(seen: Sequence[SharedPath]) -> str:
    """One sentence on the node that sees other files than this one; empty where all nodes see the same."""
    return refusal(run_on_others(faults, seen))


def name(node: dict[str, Any]) -> str:
    """The name of one of ray.nodes(), for people."""
    return f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']}, {node['NodeID'][:8]})"


def spilled_mib() -> int:
    """MiB that Ray's object store has spilled to disk, on all nodes."""
    from ray._private.internal_api import memory_summary

    return sum(map(int, re.findall(r"Spilled (\d+) MiB", memory_summary(stats_only=True))))
