"""What runs in Serve's replicas: a segment of the graph, or the API; and how they call each other."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial
from typing import Any

import pyarrow as pa

from gemel_ray.config import Config
from gemel_ray.engine.run import EngineDied
from gemel_ray.environment import fast_start
from gemel_ray.knowledge.remote import Shared
from gemel_ray.knowledge.workspace import Workspace, with_short_wait
from gemel_ray.linking import linking_graph
from gemel_ray.segments import OnlineSegment
from gemel_ray.serving.linker import Reply, WorkerLost
from gemel_ray.serving.meters import MENTIONS, mentions
from gemel_ray.serving.peers import Counts, Peers
from gemel_ray.serving.running import VersionedSegment

API = "api"  # the deployment's name
_PATIENCE = 3.0  # seconds for the answers of the API's replicas to each other


class Stages:
    """A segment of the graph in a Serve replica."""

    def __init__(self, config: Config, workspace: Shared, options: OnlineSegment, next_segment: Any) -> None:
        with fast_start():
            opened = Workspace.open(workspace.here(), with_short_wait(config))
            segment = linking_graph(config, opened).segment(options.stages, opened)
        self.here = VersionedSegment(segment, options.batch, opened, config)
        self.next_segment = next_segment
        self.inside = 0  # mentions

    async def link(self, table: pa.Table, knowledge: str | None = None) -> Reply:
        """Link one document here and in the later segments, which use the same version of the knowledge."""
        count = mentions(table)
        self.inside += count
        try:
            reply = await self.here.link(table, knowledge)
            if self.next_segment is None:
                return reply
            later = await call(self.next_segment, reply.rows, reply.knowledge)
        finally:
            self.inside -= count
        return replace(later, seconds=reply.seconds | later.seconds, counts=reply.counts | later.counts)

    def record_autoscaling_stats(self) -> dict[str, float]:
        """The count that Serve's autoscaler reads."""
        return {MENTIONS: self.inside}

    def check_health(self) -> None:
        """Raise when the replica is broken; Serve then replaces it."""
        self.here.check()

    def __del__(self) -> None:
        if hasattr(self, "here"):
            self.here.close()


class Api:
    """The FastAPI app in a Serve replica, one of `online.api.max_replicas`."""

    def __init__(self, config: Config, workspace: Shared, first: Any) -> None:
        self.config, self.workspace, self.first = config, workspace, first

    def __serve_build_asgi_app__(self) -> Any:
        from ray import serve

        from gemel_ray.serving import meters
        from gemel_ray.serving.app import create, endpoint

        meters.start()
        opened = Workspace.open(self.workspace.here(), self.config)
        made = endpoint(self.config, opened, partial(call, self.first))
        self.desk = made.desk
        if self.config.online.api.max_replicas > 1:
            self.peers = Peers(serve.get_replica_context().replica_id.unique_id, made.desk, _broadcast)
            made = replace(made, peers=self.peers)
        return create(made)

    async def alive(self) -> bool:
        """Whether this process still admits requests."""
        return not self.desk.closed

    async def counts(self) -> Counts:
        """This process's metrics."""
        return self.peers.counts()

    async def drain(self) -> None:
        """Admit no more requests, and wait for those inside."""
        self.desk.close()
        while self.desk.inside:
            await asyncio.sleep(0.05)


async def _broadcast(method: str) -> list[object]:
    """The answers of the API's replicas, as far as they answer."""
    from ray import serve

    handle = serve.get_deployment_handle(API, serve.get_replica_context().app_name)
    answers = await handle.broadcast(method).results_async(timeout_s=_PATIENCE, return_exceptions=True)
    return [answer for answer in answers if not isinstance(answer, BaseException)]


async def call(deployment: Any, table: pa.Table, knowledge: str | None = None) -> Reply:
    """Call a deployment. When cancelled, its work is, too. Raises WorkerLost when its replica is lost."""
    from ray.exceptions import RayActorError, TaskCancelledError, WorkerCrashedError
    from ray.serve.exceptions import DeploymentUnavailableError, ReplicaUnavailableError

    response = deployment.link.remote(table, knowledge)
    try:
        reply: Reply = await response
    except asyncio.CancelledError:
        response.cancel()
        raise
    except EngineDied as death:
        raise WorkerLost("the engine has stopped; it is being replaced") from death
    except (RayActorError, WorkerCrashedError, TaskCancelledError, ReplicaUnavailableError) as death:
        raise WorkerLost("a worker has died; it is being replaced") from death
    except DeploymentUnavailableError as death:
        raise WorkerLost("the workers cannot be started; their logs say why") from death
    return reply
