"""Whether a Ray cluster has room for all workers, wherever Ray places them; and its GPUs.

Ray takes any pod with room. So every order and every place is tried: with a CLIP worker on the wrong GPU, no
whole GPU may be left for an engine, and then the job waits for ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from gemel_ray.deploying.manifests import Json, groups

READING = 1.5  # CPUs: a task that reads, and one that cuts it into blocks
API = 0.1  # CPUs: the service's API, on a worker, since the head has no CPUs
Room = tuple[tuple[float, float], ...]  # CPUs and GPUs


def room(cluster: Json, bound: str) -> Room:
    """CPUs and GPUs of every worker pod, where each group has its `bound` (minReplicas, maxReplicas)."""
    found = []
    for group in groups(cluster):
        resources = group["template"]["spec"]["containers"][0]["resources"]
        requests, limits = resources["requests"], resources["limits"]
        cpus, gpus = float(limits.get("cpu", requests["cpu"])), float(limits.get("nvidia.com/gpu", 0))
        found += [(cpus, gpus)] * group.get(bound, 0)
    return tuple(sorted(found))


def gpus(room: Room) -> float:
    return sum(gpus for _, gpus in room)


def fits(room: Room, segments: Sequence[tuple[Any, int]], spare: float) -> bool:
    """Whether there is room for all workers (segments with cpus and gpus, and their numbers) in every order
    and place, with `spare` CPUs left."""
    return _never_stuck(
        room, tuple((s.cpus, s.gpus) for s, _ in segments), tuple(n for _, n in segments), spare
    )


@cache
def _never_stuck(free: Room, needs: Room, waiting: tuple[int, ...], spare: float) -> bool:
    if not any(waiting):
        return sum(cpus for cpus, _ in free) >= spare
    for kind, (cpus, gpus) in enumerate(needs):
        if not waiting[kind]:
            continue
        left = tuple(n - (i == kind) for i, n in enumerate(waiting))
        places = {pod for pod in free if pod[0] >= cpus and pod[1] >= gpus - 1e-6}
        if not places:
            return False
        for pod in places:
            others = list(free)
            others.remove(pod)
            rest = (pod[0] - cpus, round(pod[1] - gpus, 6))
            if not _never_stuck(tuple(sorted([*others, rest])), needs, left, spare):
                return False
    return True
