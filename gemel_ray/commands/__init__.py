"""The verbs of the command line, one file each. `add` declares a verb's arguments (its docstring is the help)
and what runs. The modules that do the work are imported only when a verb runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gemel_ray.config import Config


def configured(options: argparse.Namespace, carried: Mapping[str, Any], more: Sequence[str] = ()) -> Config:
    """The configuration: defaults, overridden by the options' file, by what the workspace carries, by --set,
    and by `more`, which has the form of --set."""
    from gemel_ray.config import PAPER, load

    usual = Path("ray_config.yaml")
    file = options.config or (usual if usual.exists() else None)
    overrides = [*(PAPER if options.paper else ()), *options.set, *more]
    return load(file, carried, overrides, hint=say)


def configured_for(workspace: Path, options: argparse.Namespace) -> Config:
    """The same for what uses a workspace as it is. Raises ConfigError for options that only a build reads."""
    from gemel_ray.config import refuse_built
    from gemel_ray.knowledge.versions import read_facts

    refuse_built(options.set)
    return configured(options, read_facts(workspace)["settings"])


def say(text: str) -> None:
    """Print a message for people to standard error; results go to standard output."""
    print(text, file=sys.stderr, flush=True)
