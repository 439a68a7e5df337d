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
from functools import partial
from itertools import cycle
from traceback import walk_tb
from typing import Any

from gemel_ray.environment import before_ray
from gemel_ray.errors import Mistake
from gemel_ray.job.shared import SharedPath, faults, refusal
from gemel_ray.segments import Offline, SegmentOptions, spread

_STARTS = 3  # of Ray on this machine, before it is given up
_CONNECTING = 20.0  # seconds for a cluster's first sign of life
_PATIENCE = 120.0  # seconds for a node's answer, including the start of a worker


def connect(address: str, cpus: float) -> Any:
    """Join the cluster at `address`, or, for `local`, start Ray here with at least `cpus` CPUs; Ray's
    context. Ray logs errors only. Raises Mistake where Ray does not start, the cluster refuses, or nothing
    listens at the address: Ray would wait for it for many minutes."""
    before_ray(address)
    import ray

    join = partial(ray.init, address=address, log_to_driver=False, logging_level=logging.ERROR)
    if address == "local":
        cores = max(os.cpu_count() or 1, math.ceil(cpus))
        return _started(partial(join, num_cpus=cores, include_dashboard=False))
    _answers(address)
    try:
        return join()
    except (RuntimeError, OSError) as fault:  # another version, no token, or joined already
        raise Mistake(f"the Ray cluster at {address} cannot be joined: {fault}") from fault


def _started(start: Callable[[], Any]) -> Any:
    """Ray, once `start` has started it. On a busy machine that takes longer than the 30 seconds that Ray
    gives itself; then it is tried again."""
    import ray

    for left in reversed(range(_STARTS)):
        try:
            return start()
        except Exception as fault:
            if ray.is_initialized():  # by the caller's program: that one goes on
                raise
            _end_processes(fault)
            ray.shutdown()
            if not left:
                raise Mistake(
                    f"Ray does not start on this machine, tried {_STARTS} times ({fault}): is the machine "
                    "very busy, or short of memory?"
                ) from fault
    raise AssertionError("the last try returns or raises")


def _end_processes(fault: Exception) -> None:
    """End what runs of a Ray that did not start. Ray leaves it running beside the next one."""
    from ray._private.node import Node

    for frame, _ in walk_tb(fault.__traceback__):
        if isinstance(node := frame.f_locals.get("self"), Node):
            node.kill_all_processes(check_alive=False)
            return


def _answers(address: str) -> None:
    where, named = (address, "") if address != "auto" else _found()
    host, _, port = where.rpartition("://")[2].rpartition(":")
    if not host:  # RAY_ADDRESS=local
        return
    try:
        with socket.create_connection((host.strip("[]"), int(port)), _CONNECTING) as server:
            if os.environ.get("RAY_USE_TLS", "0") in ("0", ""):
                _speaks_grpc(server)
    except OSError as fault:
        raise Mistake(
            f"no Ray cluster answers at {where}{named} ({fault}): is it started, and is its port open? "
            "docs/cluster.md shows how"
        ) from fault


def _speaks_grpc(server: socket.socket) -> None:
    """Raise OSError where the server is none of gRPC's, such as a Redis on a port that was Ray's."""
    settings = 4  # a kind of frame in HTTP/2, with which both sides begin
    server.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, settings, 0, 0, 0, 0, 0)))
    if server.recv(9)[3:4] != bytes((settings,)):
        raise OSError("what listens there is not Ray")


def _found() -> tuple[str, str]:
    """The address that Ray takes for `auto`, and what names it, in words."""
    from ray._private.services import get_ray_address_from_environment

    try:
        address: str = get_ray_address_from_environment("auto", None)
    except ConnectionError as fault:
        raise Mistake(
            "there is no Ray cluster on this machine for `auto` to join: name one by its address or in "
            "RAY_ADDRESS, start one by `ray start --head`, or use `local`"
        ) from fault
    if os.environ.get("RAY_ADDRESS"):
        return address, ", which RAY_ADDRESS names"
    return address, ", the last one that was started on this machine (`ray stop` makes Ray forget it)"


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


def lacking(segments: Sequence[SegmentOptions], reading: float) -> str:
    """One sentence on what the joined cluster lacks today for the workers of these segments, and CPUs for
    `reading`; empty where all find room. A cluster may still grow."""
    import ray

    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    nodes = [(resources.get("CPU", 0.0), resources.get("GPU", 0.0)) for resources in alive]
    for segment in segments:
        if not any(cpus >= segment.cpus and gpus >= segment.gpus for cpus, gpus in nodes):
            return (
                f"no node of the cluster has the {_amount(segment.cpus, segment.gpus)} of one worker: "
                "it waits until such a node joins; if none will, give its segment less"
            )
    cpus, gpus = (sum(there) for there in zip(*nodes, strict=True))
    needed_cpus = reading + sum(s.workers * s.cpus for s in segments)
    needed_gpus = sum(s.workers * s.gpus for s in segments)
    if needed_cpus <= cpus and needed_gpus <= gpus:
        return ""
    return (
        f"the cluster has {_amount(cpus, gpus)}, and the segments need {_amount(needed_cpus, needed_gpus)}, "
        f"of which reading takes {reading:g}: some wait until it grows; if it will not, give "
        "offline.segments less"
    )


def in_turn(options: Offline) -> Callable[[], Callable[[], dict[str, Any]] | None]:
    """Reserves each GPU with its CPUs where workers are spread over this machine's, till Ray ends. Makes for
    each segment what places its workers, one after the other; None where Ray does. Ray starts a worker that
    died where it was."""
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    cpus = spread(options, int(ray.cluster_resources().get("GPU", 0)))
    if not cpus:
        return lambda: None
    group = ray.util.placement_group([{"GPU": 1, "CPU": c} for c in cpus])
    group.wait(_PATIENCE)

    def placed() -> Callable[[], dict[str, Any]]:
        turns = cycle(range(len(cpus)))
        return lambda: {"scheduling_strategy": PlacementGroupSchedulingStrategy(group, next(turns))}

    return placed


def _amount(cpus: float, gpus: float) -> str:
    return f"{cpus:g} CPU and {gpus:g} GPU"


def name(node: dict[str, Any]) -> str:
    """The name of one of ray.nodes(), for people."""
    return f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']}, {node['NodeID'][:8]})"


def spilled_mib() -> int:
    """MiB that Ray's object store has spilled to disk, on all nodes."""
    from ray._private.internal_api import memory_summary

    return sum(map(int, re.findall(r"Spilled (\d+) MiB", memory_summary(stats_only=True))))
