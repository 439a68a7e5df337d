"""gemel-ray doctor."""

from __future__ import annotations

import argparse

from gemel_ray.arguments import Parser, place
from gemel_ray.commands import configured


def add(verb: Parser) -> None:
    """Tell in plain words what fits on this machine and what does not.

    Looks at Python, packages, models, memory and, given one, a workspace; says what a job and an endpoint
    take of the machine, and why; changes nothing.

      gemel-ray doctor --workspace my-workspace
    """
    verb.add_argument("--workspace", type=place, help="look at this workspace, too")
    verb.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from gemel_ray.doctor import Finding, examine, exit_status, print_findings
    from gemel_ray.sizing import told

    config = configured(options, {})
    findings = examine(config.plain()["models"], options.workspace, config.vectors)
    findings += [Finding(fits, what, found) for fits, what, found in told(config)]
    print_findings(findings)
    return exit_status(findings)
