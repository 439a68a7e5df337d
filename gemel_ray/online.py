"""The graph as a Ray Serve application: an API in front, and a line of deployments, one for each segment.

    proxy -> api (requests, limits, metrics) -> first segment -> ... -> last segment, and back

The API runs in separate processes, so that it answers while models load or an engine is down. A segment calls
its successor. serving/replicas.py runs in the replicas; the rest of serving/ is about HTTP. A Serve config
file or a RayService names `app` as import_path: gemel_ray.online:app.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from gemel_ray import nodes
from gemel_ray.config import Config, load, refuse_built
from gemel_ray.environment import variables
from gemel_ray.errors import Mistake
from gemel_ray.job.shared import of_workspace
from gemel_ray.knowledge import versions
from gemel_ray.knowledge.remote import Shared, local_copy
from gemel_ray.knowledge.versions import read_facts
from gemel_ray.segments import ApiOptions, OnlineSegment
from gemel_ray.serving import proxy, replicas
from gemel_ray.serving.door import keys
from gemel_ray.sizing import fitted

NAME = "gemel-ray"
_POLICY = "gemel_ray.serving.meters:by_mentions"
_GRACE = 10.0  # seconds after the deadline for a replica that stops


def app(arguments: Mapping[str, Any]) -> Any:
    """The Serve application for {workspace: FOLDER or address, config: FILE or nothing, set: [a.b=value]}."""
    workspace = local_copy(arguments["workspace"], logging.getLogger(__name__).info)
    file = arguments.get("config")
    refuse_built(arguments.get("set", ()))
    carried = read_facts(workspace)["settings"]
    config = load(Path(file) if file else None, carried, arguments.get("set", ()))
    return deployed(config, workspace)


def deployed(config: Config, workspace: Path) -> Any:
    """The application, bound; nothing is started."""
    from ray import serve

    shared, next_segment = Shared.of(workspace), None
    for options, _ in reversed(config.line.cut(config.online.segments)):
        next_segment = (
            serve.deployment(replicas.Stages, name="-".join(options.stages))
            .options(**_placed(config, options))
            .bind(config, shared, options, next_segment)
        )
    api = serve.deployment(serve.ingress()(replicas.Api), name=replicas.API).options(
        **_scaled(config.online.api, config.online.api.ongoing),
        max_ongoing_requests=100_000,  # the API refuses requests, with a reason
        ray_actor_options={"num_cpus": 0},
        max_surge_percent=100,
        health_check_period_s=2,
        graceful_shutdown_timeout_s=config.online.deadline + _GRACE,
    )
    return api.bind(config, shared, next_segment)


def _placed(config: Config, options: OnlineSegment) -> dict[str, Any]:
    """Serve's options for a segment's replicas."""
    environment = variables(options, options.max_replicas, config.online.address)
    scaled = _scaled(options, max(1.0, options.ongoing / 2), policy={"policy_function": _POLICY})
    return scaled | {
        "max_ongoing_requests": options.ongoing,
        "health_check_period_s": 1,  # after three failures in a row the replica is replaced
        "health_check_timeout_s": 10,  # a busy engine is not a dead one
        "graceful_shutdown_timeout_s": config.online.deadline + _GRACE,
        # Where there is no room for new replicas besides the old ones, Serve waits for ever. Without surge
        # they are replaced one after the other.
        "max_surge_percent": round(100 * options.surge),
        "ray_actor_options": {
            "num_cpus": options.cpus,
            "num_gpus": options.gpus,
            "runtime_env": {"env_vars": environment},
        },
    }


def _scaled(options: OnlineSegment | ApiOptions, target: float, **policy: Any) -> dict[str, Any]:
    """The number of replicas, or its bounds with `target` requests in each."""
    least, most = options.min_replicas, options.max_replicas
    if most == least:
        return {"num_replicas": least}
    bounds = {"min_replicas": least, "max_replicas": most, "target_ongoing_requests": target}
    return {"autoscaling_config": bounds | policy}


@contextmanager
def running(config: Config, workspace: Path) -> Iterator[tuple[str, str]]:
    """Run the application on a Ray that is started here, or the cluster's. Yields its address and the folder
    of its logs, once a link has come through. At the end no more requests are admitted, and accepted ones
    are finished. Raises ValueError when it cannot be started."""
    config = fitted(config, "online")
    online = config.online
    keys(os.environ)  # raises for a bad key before anything is started
    if online.address == "local":
        proxy.is_free(online.host, online.port)
    here = "127.0.0.1" if online.host in ("0.0.0.0", "::") else online.host
    place = "HeadOnly" if online.address == "local" else "EveryNode"
    try:
        logs = _connect(config)
        seen = of_workspace(Shared.of(workspace), versions.current(workspace))
        if sentence := nodes.mismatch(seen):
            raise Mistake(sentence)
        from ray import serve as ray_serve

        bound = deployed(config, workspace)
        ray_serve.start(proxy_location=place, http_options={"host": online.host, "port": online.port})
        try:
            handle = ray_serve.run(bound, name=NAME, route_prefix="/")
        except RuntimeError as failure:
            raise Mistake(f"the endpoint did not start, and {logs}/serve says why") from failure
        try:
            proxy.until_ready(here, online.port)
            yield f"http://{here}:{online.port}", logs
        finally:
            handle.broadcast("drain").results(timeout_s=online.deadline + _GRACE, return_exceptions=True)
            if online.address != "local":  # else it ends with its Ray: till then it answers 503, not 404
                ray_serve.delete(NAME)
                ray_serve.shutdown()
    finally:
        import ray

        ray.shutdown()


def serve(config: Config, workspace: Path, ready: Callable[[str, str], None]) -> None:
    """Serve until interrupted or terminated. `ready` is called with the address and the logs' folder."""
    with running(config, workspace) as (at, logs):
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        ready(at, logs)
        with suppress(KeyboardInterrupt):
            signal.pause()


def _connect(config: Config) -> str:
    """Join the configured cluster, or start Ray here; the folder of this node's logs."""
    where, segments = config.online.address, config.online.segments
    os.environ |= proxy.settings(config.online.megabytes)  # for a Ray that is started here
    context = nodes.connect(where, sum(s.max_replicas * s.cpus for s in segments) + 1)
    import ray
    import ray.serve  # the import sets its logger's level

    for name in ("ray.serve", "ray"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if where == "local" and (gpus := sum(s.min_replicas * s.gpus for s in segments)):
        found = ray.cluster_resources().get("GPU", 0)
        if gpus > found:  # Ray would wait for them for ever
            raise Mistake(f"online.segments take {gpus:g} GPUs; this machine has {found:g}")
    return f"{context.address_info['session_dir']}/logs"
