"""The curve of a training as files: curve.json (all points), curve.svg, and logs for TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from gemel_ray import storage
from gemel_ray.plots import Axis, Series, curve
from gemel_ray.training.checkpoint import Point

_TITLES = {"loss": "train/loss", "dev_loss": "dev/loss", "accuracy": "dev/accuracy"}


class Logs:
    """The logs for TensorBoard; steps after `step`, left by a killed run, are removed."""

    def __init__(self, folder: Path, step: int) -> None:
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=step + 1)

    def add(self, point: Point) -> None:
        for name, value in point.items():
            if name in _TITLES:
                self._writer.add_scalar(_TITLES[name], value, int(point["step"]))

    def close(self) -> None:
        self._writer.close()


def write(points: Sequence[Point], folder: Path) -> None:
    """Write curve.json and curve.svg in `folder`."""
    storage.write(folder / "curve.json", json.dumps(points, indent=1))

    def series(name: str, label: str) -> Series:
        known = [p for p in points if name in p]
        return Series(label, [p[name] for p in known], x=[p["step"] for p in known])

    named = (("loss", "loss, nats per token"), ("dev_loss", "dev loss"), ("accuracy", "dev accuracy"))
    shown = [s for s in (series(*n) for n in named) if len(s.y)]
    storage.write(folder / "curve.svg", curve(shown, title="Feature mapper", y=Axis("")))
