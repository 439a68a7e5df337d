"""The checkpoint of a training, one file, replaced atomically.

Knows nothing of models: the loop decides what is in a state. A state of other settings is not used.
"""

from __future__ import annotations

import pickle
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from gemel_ray import storage

Point = dict[str, float]
Weights = dict[str, Any]  # state dictionaries of torch


@dataclass
class State:
    """The state after `step` optimiser steps."""

    fingerprint: str  # a digest of all settings that change the curve
    step: int = 0
    finished: bool = False
    idle: int = 0  # evaluations since the last improvement
    lowest: float = float("inf")  # dev loss
    best: Point = field(default_factory=dict)  # the evaluation of the best mapper
    points: list[Point] = field(default_factory=list)  # the whole curve
    weights: Weights = field(default_factory=dict)  # of mapper, optimiser, schedule, random numbers


def save(state: State, file: Path) -> None:
    with storage.replacing(file) as aside:
        torch.save(asdict(state), aside)


def load(file: Path) -> State | None:
    """The state in `file`; None if there is none that this version can read."""
    try:
        return State(**torch.load(file, map_location="cpu", weights_only=True))
    except FileNotFoundError:
        return None
    except (RuntimeError, EOFError, TypeError, OSError, pickle.UnpicklingError):
        return None
