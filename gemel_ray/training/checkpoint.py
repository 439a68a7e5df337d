"""Where a training stands, in one file that is written whole or not at all.

Knows nothing of models; what is in a state is the loop's business. A state of other settings is no state.
"""

from __future__ import annotations

import pickle
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from gemel_ray import storage

Point = dict[str, float]


@dataclass
class State:
    """After `step` optimiser steps."""

    fingerprint: str  # of all settings that change the curve
    step: int = 0
    finished: bool = False
    idle: int = 0  # looks since anything was better
    lowest: float = float("inf")  # dev loss
    best: Point = field(default_factory=dict)  # the look that the kept mapper is of
    points: list[Point] = field(default_factory=list)  # the whole curve
    weights: dict[str, Any] = field(default_factory=dict)  # mapper, optimiser, schedule, random numbers


def save(state: State, file: Path) -> None:
    with storage.replacing(file) as aside:
        torch.save(asdict(state), aside)


def load(file: Path) -> State | None:
    """The state in `file`; None where there is none that this version reads."""
    try:
        return State(**torch.load(file, map_location="cpu", weights_only=True))
    except FileNotFoundError:
        return None
    except (RuntimeError, EOFError, TypeError, OSError, pickle.UnpicklingError):
        return None
