"""The endpoint on a Ray of its own, shared by the tests of several files: it takes half a minute to start."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
from live import free_port

from gemel_ray.config import Config
from gemel_ray.online import running
from gemel_ray.segments import ApiOptions, OnlineSegment

PROCESSES = 2  # of the API
DOCUMENTS = 12  # of one request, and the share of each process
QUEUE = PROCESSES * DOCUMENTS
LAST = "retrieve-assemble-generate"


class Served:
    """The running endpoint, and a way to end it early."""

    def __init__(self, stack: ExitStack, address: str, config: Config) -> None:
        self.address, self.stop, self.config = address, stack.close, config

    def ask(self, path: str = "/v1/link", **request: Any) -> httpx.Response:
        """POST where there is something to send."""
        method = "POST" if request.keys() & {"json", "content", "files"} else "GET"
        return httpx.request(method, self.address + path, timeout=400, **request)

    def counted(self, sample: str) -> float:
        """Of all API processes together: a sample of /metrics, by the beginning of its line."""
        told = self.ask("/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in told if line.startswith(sample))

    def inside_replica(self, function: Callable[[Any], Any]) -> Any:
        """What `function` gives of the engine, in the process that has it."""
        import ray

        names = ray.util.list_named_actors(all_namespaces=True)
        name = next(n for n in names if LAST in n["name"])
        replica = ray.get_actor(name["name"], namespace=name["namespace"])

        def called(actor: Any) -> Any:
            callable_ = actor._replica_impl._user_callable_wrapper._callable
            return function(callable_.here.segment.steps[-1].work.engine)

        return ray.get(replica.__ray_call__.remote(called))


@contextmanager
def endpoint(config: Config, workspace: Path) -> Iterator[Served]:
    """Ready, in two segments beside the API, which has two processes."""
    segments = (
        OnlineSegment(
            stages=("detect", "encode"), threads=1, cpus=0.5
        ),  # twice both fit in Ray's three cores
        OnlineSegment(stages=("retrieve", "assemble", "generate")),
    )
    limits: dict[str, Any] = {"queue": QUEUE, "documents": DOCUMENTS, "megabytes": 4.0}
    limits["api"] = ApiOptions(min_replicas=PROCESSES, max_replicas=PROCESSES)
    limits["wait"] = (
        600.0  # else what is let in depends on how busy the machine is; test_pace.py has the rest
    )
    limits["deadline"] = 400.0  # an engine that died is there again by then, however slow the machine
    online = replace(config.online, port=free_port(), segments=segments, **limits)
    serving = replace(config, online=online)
    with ExitStack() as stack:
        address, _ = stack.enter_context(running(serving, workspace))
        yield Served(stack, address, serving)
