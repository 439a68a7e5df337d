"""The graph as a Ray Serve application: an API in front, and a line of deployments, one a segment.

    proxy -> api (requests, limits, metrics) -> first segment -> ... -> last segment, and back

The API is a process of its own, so that it answers while models load or an engine is down. A segment calls
its successor itself. Everything about HTTP is in serving/; only Ray is here. `app` is what a Serve
config file or a RayService names as import_path: gemel_ray.online:app.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from gemel_ray.config import Config, load
from gemel_ray.engine.run import EngineDied
from gemel_ray.environment import lean, variables
from gemel_ray.knowledge.bringing import Shared, brought
from gemel_ray.knowledge.homes import hurried
from gemel_ray.knowledge.workspace import Workspace, read_facts
from gemel_ray.linking import linking_graph
from gemel_ray.offline import connect
from gemel_ray.segments import OnlineSegment
from gemel_ray.serving import address, proxy
from gemel_ray.serving.door import keys
from gemel_ray.serving.following import Following
from gemel_ray.serving.linker import Gone, Reply
from gemel_ray.sizing import fitted

NAME = "gemel-ray"
_GRACE = 10.0  # seconds beyond the deadline for a replica that stops


def app(arguments: Mapping[str, Any]) -> Any:
    """The Serve application of {workspace: FOLDER or address, config: FILE or nothing, set: [a.b=value]}."""
    workspace = brought(arguments["workspace"], logging.getLogger(__name__).info)
    file = arguments.get("config")
    carried = read_facts(workspace)["settings"]
    config = load(Path(file) if file else None, carried, arguments.get("set", ()))
    return deployed(config, workspace)


def deployed(config: Config, workspace: Path) -> Any:
    """The application, bound; nothing is started."""
    from ray import serve

    shared, following = Shared.of(workspace), None
    for options in reversed(config.online.segments):
        following = (
            serve.deployment(_Stages, name="-".join(options.stages))
            .options(**_placed(config, options))
            .bind(config, shared, options, following)
        )
    api = serve.deployment(serve.ingress()(_Api), name="api").options(
        max_ongoing_requests=100_000,  # it says no by itself, with a reason
        ray_actor_options={"num_cpus": 0},
        max_surge_percent=100,
        health_check_period_s=2,
        graceful_shutdown_timeout_s=config.online.deadline + _GRACE,
    )
    return api.bind(config, shared, following)


def _placed(config: Config, options: OnlineSegment) -> dict[str, Any]:
    """A segment's replicas, as Serve calls it."""
    environment = variables(options, options.max_replicas, config.online.address)
    scaled: dict[str, Any] = {"num_replicas": options.min_replicas}
    if options.max_replicas > options.min_replicas:
        scaled = {
            "autoscaling_config": {
                "min_replicas": options.min_replicas,
                "max_replicas": options.max_replicas,
                "target_ongoing_requests": max(1.0, options.ongoing / 2),
            }
        }
    return scaled | {
        "max_ongoing_requests": options.ongoing,
        "health_check_period_s": 1,  # three in a row that fail, and the replica is replaced
        "health_check_timeout_s": 10,  # a busy engine is no dead one
        "graceful_shutdown_timeout_s": config.online.deadline + _GRACE,
        # Serve waits for ever for room that new replicas beside the old ones do not find. Without surge
        # they are renewed in place, one after the other.
        "max_surge_percent": round(100 * options.surge),
        "ray_actor_options": {
            "num_cpus": options.cpus,
            "num_gpus": options.gpus,
            "runtime_env": {"env_vars": environment},
        },
    }


class _Stages:
    """A segment of the graph in a Serve replica."""

    def __init__(self, config: Config, workspace: Shared, options: OnlineSegment, following: Any) -> None:
        lean()
        opened = Workspace.open(workspace.here(), hurried(config))
        segment = linking_graph(config, opened).segment(options.stages, opened)
        self.here = Following(segment, options.batch, opened)
        self.following = following
        self.name = f"{'-'.join(options.stages)}-{os.getpid()}-{time.time_ns()}"

    async def link(self, table: pa.Table, knowledge: str | None = None) -> Reply:
        """One document's rows, here and in the segments behind, which are told by which knowledge."""
        reply = await self.here.link(table, knowledge, self.name)
        if self.following is None:
            return reply
        later = await _asked(self.following, reply.rows, reply.knowledge)
        seconds, measures = reply.seconds | later.seconds, reply.measures | later.measures
        return replace(later, seconds=seconds, measures=measures)

    def check_health(self) -> None:
        """Serve replaces the replica when this raises."""
        self.here.check()

    def __del__(self) -> None:
        if hasattr(self, "here"):
            self.here.close()


class _Api:
    """The FastAPI app in a Serve replica."""

    def __init__(self, config: Config, workspace: Shared, first: Any) -> None:
        self.config, self.workspace, self.first = config, workspace, first

    def __serve_build_asgi_app__(self) -> Any:
        from gemel_ray.serving import logs
        from gemel_ray.serving.app import create
        from gemel_ray.serving.building import endpoint

        logs.start()
        opened = Workspace.open(self.workspace.here(), self.config)
        made = endpoint(self.config, opened, partial(_asked, self.first))
        self.desk = made.desk
        return create(made)

    async def drain(self) -> None:
        """Let nobody in any more, and wait for those inside."""
        self.desk.close()
        while self.desk.inside:
            await asyncio.sleep(0.05)


async def _asked(deployment: Any, table: pa.Table, knowledge: str | None = None) -> Reply:
    """What a deployment replies. Cancelled, so is its work; Gone, when its replica is no more."""
    from ray.exceptions import RayActorError, TaskCancelledError, WorkerCrashedError
    from ray.serve.exceptions import DeploymentUnavailableError, ReplicaUnavailableError

    response = deployment.link.remote(table, knowledge)
    try:
        reply: Reply = await response
    except asyncio.CancelledError:
        response.cancel()
        raise
    except EngineDied as death:
        raise Gone("the engine has stopped; it is being replaced") from death
    except (RayActorError, WorkerCrashedError, TaskCancelledError, ReplicaUnavailableError) as death:
        raise Gone("a worker has died; it is being replaced") from death
    except DeploymentUnavailableError as death:
        raise Gone("the workers cannot be started; their logs say why") from death
    return reply


@contextmanager
def running(config: Config, workspace: Path) -> Iterator[tuple[str, str]]:
    """The application on a Ray of its own, or the cluster's; its address and its logs' folder, once a link
    went through. At the end nobody is let in any more, and what was accepted is finished. Raises
    ValueError when it cannot be started."""
    import ray
    from ray import serve as ray_serve

    config = fitted(config, "online")
    online, bound = config.online, deployed(config, workspace)
    keys(os.environ)  # said before anything is started
    if online.address == "local":
        address.is_free(online.host, online.port)
    here = "127.0.0.1" if online.host in ("0.0.0.0", "::") else online.host
    place = "HeadOnly" if online.address == "local" else "EveryNode"
    try:
        logs = _connect(config)
        ray_serve.start(proxy_location=place, http_options={"host": online.host, "port": online.port})
        try:
            handle = ray_serve.run(bound, name=NAME, route_prefix="/")
        except RuntimeError as failure:
            raise ValueError(f"the endpoint did not start, and {logs}/serve says why") from failure
        try:
            address.until_ready(here, online.port)
            yield f"http://{here}:{online.port}", logs
        finally:
            handle.drain.remote().result(timeout_s=online.deadline + _GRACE)
            if online.address != "local":  # else it ends with its Ray: till then it says 503, not 404
                ray_serve.delete(NAME)
                ray_serve.shutdown()
    finally:
        ray.shutdown()


def serve(config: Config, workspace: Path, ready: Callable[[str, str], None]) -> None:
    """Serve until interrupted or terminated. `ready` is told the address, and the logs' folder."""
    with running(config, workspace) as (at, logs):
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        ready(at, logs)
        with suppress(KeyboardInterrupt):
            signal.pause()


def _connect(config: Config) -> str:
    """Join the configured cluster, or start Ray here, quietly. The folder of this node's logs."""
    where, segments = config.online.address, config.online.segments
    os.environ |= proxy.settings(config.online.megabytes)  # of a Ray that is started here
    context = connect(where, sum(s.max_replicas * s.cpus for s in segments) + 1)
    import ray

    for name in ("ray.serve", "ray"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if where == "local" and (gpus := sum(s.min_replicas * s.gpus for s in segments)):
        found = ray.cluster_resources().get("GPU", 0)
        if gpus > found:  # it would wait for them for ever
            raise ValueError(f"online.segments take {gpus:g} GPUs; this machine has {found:g}")
    return f"{context.address_info['session_dir']}/logs"
