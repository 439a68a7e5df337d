"""gemel-ray doctor."""

from __future__ import annotations

import argparse

from gemel_ray.arguments import Parser, place
from gemel_ray.commands import configured


def add(verb: Parser) -> None:
    """Say what fits this machine and what does not.

    It examines Python, packages, models, memory and, if given, a workspace. It says how much of the machine a
    job and an endpoint use, and why. Nothing is changed.

      gemel-ray doctor --workspace my-workspace
    """
    verb.add_argument("--workspace", type=place, help="examine this workspace, too")
    verb.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from gemel_ray.doctor import Finding, examine, exit_status, print_findings
    from gemel_ray.sizing import explained

    config = configured(options, {})
    findings = examine(config.plain()["models"], options.workspace, config.vectors)
    findings += [Finding(fits, what, found) for fits, what, found in explained(config)]
    print_findings(findings)
    return exit_status(findings)
