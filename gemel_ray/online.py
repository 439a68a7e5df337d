"""The graph as a Ray Serve application: an API in front, and a line of deployments, one a segment.

    proxy -> api (requests, limits, metrics) -> first segment -> ... -> last segment, and back

The API has processes of its own, so that it answers while models load or an engine is down. A segment calls
its successor itself. What runs in the replicas is in serving/replicas.py, everything about HTTP elsewhere in
serving/. `app` is what a Serve config file or a RayService names as import_path: gemel_ray.online:app.
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
from gemel_ray.config import Config, load
from gemel_ray.environment import variables
from gemel_ray.errors import Mistake
from gemel_ray.job.shared import of_workspace
from gemel_ray.knowledge import versions
from gemel_ray.knowledge.bringing import Shared, brought
from gemel_ray.knowledge.versions import read_facts
from gemel_ray.segments import ApiOptions, OnlineSegment
from gemel_ray.serving import proxy, replicas
from gemel_ray.serving.door import keys
from gemel_ray.sizing import fitted

NAME = "gemel-ray"
_POLICY = "gemel_ray.serving.meters:by_mentions"
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
    for options, _ in reversed(config.line.cut(config.online.segments)):
        following = (
            serve.deployment(replicas.Stages, name="-".join(options.stages))
            .options(**_placed(config, options))
            .bind(config, shared, options, following)
        )
    api = serve.deployment(serve.ingress()(replicas.Api), name=replicas.API).options(
        **_scaled(config.online.api, config.online.api.ongoing),
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
    scaled = _scaled(options, max(1.0, options.ongoing / 2), policy={"policy_function": _POLICY})
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


def _scaled(options: OnlineSegment | ApiOptions, target: float, **policy: Any) -> dict[str, Any]:
    """How many replicas: with `target` in each, where more of them may be started."""
    least, most = options.min_replicas, options.max_replicas
    if most == least:
        return {"num_replicas": least}
    bounds = {"min_replicas": least, "max_replicas": most, "target_ongoing_requests": target}
    return {"autoscaling_config": bounds | policy}


@contextmanager
def running(config: Config, workspace: Path) -> Iterator[tuple[str, str]]:
    """The application on a Ray of its own, or the cluster's; its address and its logs' folder, once a link
    went through. At the end nobody is let in any more, and what was accepted is finished. Raises
    ValueError when it cannot be started."""
    config = fitted(config, "online")
    online = config.online
    keys(os.environ)  # said before anything is started
    if online.address == "local":
        proxy.is_free(online.host, online.port)
    here = "127.0.0.1" if online.host in ("0.0.0.0", "::") else online.host
    place = "HeadOnly" if online.address == "local" else "EveryNode"
    try:
        logs = _connect(config)
        seen = of_workspace(Shared.of(workspace), versions.current(workspace))
        if sentence := nodes.apart(seen):
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
            if online.address != "local":  # else it ends with its Ray: till then it says 503, not 404
                ray_serve.delete(NAME)
                ray_serve.shutdown()
    finally:
        import ray

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
    context = nodes.connect(where, sum(s.max_replicas * s.cpus for s in segments) + 1)
    import ray
    import ray.serve  # it sets its own logger's level

    for name in ("ray.serve", "ray"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if where == "local" and (gpus := sum(s.min_replicas * s.gpus for s in segments)):
        found = ray.cluster_resources().get("GPU", 0)
        if gpus > found:  # it would wait for them for ever
            raise Mistake(f"online.segments take {gpus:g} GPUs; this machine has {found:g}")
    return f"{context.address_info['session_dir']}/logs"
