"""gemel-ray serve."""

from __future__ import annotations

import argparse

from gemel_ray.arguments import Parser, place
from gemel_ray.commands import configured_for, say


def add(verb: Parser) -> None:
    """Serve links over HTTP: the same graph on Ray Serve, with a page to try it.

    POST /v1/link takes JSON or a form; /docs describes it. /healthz, /readyz and /metrics are for operators.
    The section online of the configuration sets the address and the limits. If the environment variable
    GEMEL_RAY_API_KEY is set, requests need that key (Authorization: Bearer KEY). When interrupted or
    terminated, the endpoint finishes the requests that it has accepted.

      gemel-ray serve --workspace my-workspace
      gemel-ray serve --workspace my-workspace --set online.port=9000 --set online.host=0.0.0.0
      curl localhost:8000/v1/link -H 'Content-Type: application/json' -d '{"text": "Adobe met Google."}'
    """
    verb.add_argument("--workspace", required=True, type=place, help="workspace that gemel-ray build made")
    verb.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from gemel_ray.knowledge.workspace import Workspace
    from gemel_ray.online import serve

    config = configured_for(options.workspace, options)
    Workspace.open(options.workspace, config).ask(say)  # refuses a mismatch before anything is started
    say("loading the models ...")
    serve(config, options.workspace, _ready)
    return 0


def _ready(address: str, logs: str) -> None:
    say(f"ready: {address} (page), {address}/docs, POST {address}/v1/link; logs in {logs}")
