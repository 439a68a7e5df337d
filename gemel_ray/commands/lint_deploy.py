"""gemel-ray lint-deploy."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from gemel_ray.arguments import Parser
from gemel_ray.errors import Mistake


def add(verb: Parser) -> None:
    """Check the Kubernetes manifests before a cluster is asked: schemas, KubeRay's rules, references...

    FOLDER and what is under it is rendered with `kubectl kustomize`, which needs no cluster; your own
    overlays in it, too. It comes with the checkout, not with the wheel. Exit status: 0 when nothing was
    found, 1 when something was.

      gemel-ray lint-deploy deploy
    """
    verb.add_argument("folder", nargs="?", type=Path, default=Path("deploy"), metavar="FOLDER")
    verb.add_argument(
        "--existing",
        action="append",
        default=[],
        metavar="KIND/NAME",
        help="an object that the cluster has already, as PriorityClass/batch-low; may be repeated",
    )
    verb.add_argument(
        "--digests", action="store_true", help="for production: refuse images that are named by a tag alone"
    )
    verb.add_argument("--json", action="store_true", help="print what was found as JSON")
    verb.set_defaults(run=_run, settings=False)


def _run(options: argparse.Namespace) -> int:
    try:
        from gemel_ray.deploying.lint import RULES, lint
    except ImportError as missing:
        raise Mistake(
            f"works in a checkout of the project, after `make`: it is not in the wheel ({missing})"
        ) from missing
    faults = lint(options.folder, options.existing, options.digests)
    if options.json:
        print(json.dumps([vars(fault) for fault in faults], indent=2))
    else:
        print("\n".join(map(str, faults)) or f"nothing found by {len(RULES) + options.digests} rules")
    return 1 if faults else 0
