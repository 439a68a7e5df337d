"""gemel-ray lint-deploy."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from gemel_ray.arguments import Parser
from gemel_ray.errors import Mistake


def add(verb: Parser) -> None:
    """Check the Kubernetes manifests without a cluster: schemas, KubeRay's rules, references...

    `kubectl kustomize` renders FOLDER and everything below it, with your own overlays. It needs no cluster.
    The manifests come with the checkout, not with the wheel. Exit status: 0 if nothing was found, 1 if
    something was.

      gemel-ray lint-deploy deploy
    """
    verb.add_argument(
        "folder",
        nargs="?",
        type=Path,
        default=Path("deploy"),
        metavar="FOLDER",
        help="folder of manifests (default: deploy)",
    )
    verb.add_argument(
        "--existing",
        action="append",
        default=[],
        metavar="KIND/NAME",
        help="object that the cluster already has, such as PriorityClass/batch-low (repeatable)",
    )
    verb.add_argument(
        "--digests", action="store_true", help="refuse images that are named only by a tag (for production)"
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
