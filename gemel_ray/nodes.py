"""Ray, joined or started, and its other nodes asked."""

from __future__ import annotations

import logging
import math
import os
import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from gemel_ray.environment import before_ray
from gemel_ray.job.shared import Seen, faults, refusal

_PATIENCE = 120.0  # seconds for a node's answer, a worker's start included


def connect(address: str, cpus: float) -> Any:
    """Join the cluster at `address`, or, for `local`, start Ray here, quietly, with as many CPUs as asked for
    at least; Ray's context."""
    before_ray(address)
    import ray

    cores = max(os.cpu_count() or 1, math.ceil(cpus))
    ours: dict[str, Any] = {"num_cpus": cores, "include_dashboard": False} if address == "local" else {}
    return ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **ours)


def asked(look: Callable[..., Any], *given: Any) -> dict[str, Any]:
    """By the name of each node that takes work, but this one: what `look` returns there. A node that does not
    answer, as one that is being taken away, is left out."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    own, task, answers = ray.get_runtime_context().get_node_id(), ray.remote(num_cpus=0)(look), {}
    for node in ray.nodes():
        takes = node["Resources"].get("CPU") or node["Resources"].get("GPU")
        if node["Alive"] and takes and node["NodeID"] != own:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            answers[name(node)] = task.options(scheduling_strategy=there).remote(*given)
    found, until = {}, time.monotonic() + _PATIENCE
    for of, answer in answers.items():
        with suppress(ray.exceptions.RayError):
            found[of] = ray.get(answer, timeout=max(0.1, until - time.monotonic()))
    return found


def apart(seen: Sequence[Seen]) -> str:
    """In one sentence, which other node does not see a file of this one as it is here; empty where all do."""
    return refusal(asked(faults, seen))


def name(node: dict[str, Any]) -> str:
    """Of one of ray.nodes(), for people."""
    return f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']}, {node['NodeID'][:8]})"


def spilled_mib() -> int:
    """What Ray's object store has put on disk for want of memory, on all nodes."""
    from ray._private.internal_api import memory_summary

    return sum(map(int, re.findall(r"Spilled (\d+) MiB", memory_summary(stats_only=True))))
