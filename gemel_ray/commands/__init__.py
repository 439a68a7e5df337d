"""The verbs of the command line, one file each: `add` says what a verb takes (its docstring is the help)
and what runs. The work is elsewhere, and imported only when it is asked for."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gemel_ray.config import Config


def configured(options: argparse.Namespace, carried: Mapping[str, Any], more: Sequence[str] = ()) -> Config:
    """The configuration that the options name, under a workspace's own settings and over the defaults;
    `more` as --set takes it, and winning."""
    from gemel_ray.config import PAPER, load

    usual = Path("ray_config.yaml")
    file = options.config or (usual if usual.exists() else None)
    overrides = [*(PAPER if options.paper else ()), *options.set, *more]
    return load(file, carried, overrides, hint=say)


def say(text: str) -> None:
    """What people read while they wait; results go to standard output."""
    print(text, file=sys.stderr, flush=True)
