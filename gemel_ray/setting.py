"""A setting: a dataclass's field with its default, its meaning and its valid values.

    beams: int = setting(5, "number of beams, and of candidates", at_least=1)
    device: str = setting("auto", "device of CLIP", form=DEVICE, machine=True)

A setting is described nowhere else: checked.py checks values against it, and documenting/ writes
ray_config.yaml and docs/configuration.md from it.
"""

from __future__ import annotations

import math
import re
from dataclasses import MISSING, dataclass, field
from typing import Any

_ALLOWED, _ABOUT, _FORMER = "allowed", "about", "former"


@dataclass(frozen=True, kw_only=True)
class Range:
    """A range of numbers. `or_zero`: also 0, which switches something off."""

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    or_zero: bool = False
    unit: str = ""

    def __contains__(self, value: float) -> bool:
        if self.or_zero and value == 0:
            return True
        return (
            (isinstance(value, int) or math.isfinite(value))
            and (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
        )

    def __str__(self) -> str:
        if self.at_least is not None and self.at_most is not None:
            bounds = [f"from {self.at_least:,g} to {self.at_most:,g}"]
        else:
            named = {"of at least": self.at_least, "above": self.above, "at most": self.at_most}
            bounds = [f"{word} {bound:,g}" for word, bound in named.items() if bound is not None]
        text = " and ".join(bounds) + (", or 0" if self.or_zero else "")
        return f"{text} ({self.unit})" if self.unit else text


@dataclass(frozen=True)
class Form:
    """A form of text: a regular expression, and its description."""

    pattern: str
    words: str

    def __contains__(self, value: str) -> bool:
        return re.fullmatch(self.pattern, value) is not None

    def __str__(self) -> str:
        return self.words


@dataclass(frozen=True)
class Gpus:
    """A number of GPUs as Ray assigns them to a process."""

    def __contains__(self, value: float) -> bool:
        return 0 <= value < math.inf and (value <= 1 or value == int(value))

    def __str__(self) -> str:
        return "that is a share of a GPU (0 to 1), or whole ones"


Allowed = Range | Form | Gpus

GPUS = Gpus()
NAME = Form(r"\S(.*\S)?", "that is not empty")
DEVICE = Form(r"auto|cpu|cuda(:\d+)?|mps|xpu(:\d+)?", "(auto, cpu, cuda or cuda:1)")
CLUSTER = Form(r"local|auto|(ray://)?[^\s/]+:\d+", "(local, auto, host:port or ray://host:port)")
HOST = Form(r"[^\s/]+", "(a host's name or address)")


def setting(
    default: Any = MISSING,
    about: str = "",
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    or_zero: bool = False,
    unit: str = "",
    form: Form | Gpus | None = None,
    machine: bool = False,
    was: str = "",
) -> Any:
    """The field. `machine`: how a machine is used; it changes no answer, so it is not in fingerprints. `was`:
    its name in the previous version, which is accepted with a hint."""
    bounds = Range(at_least=at_least, above=above, at_most=at_most, or_zero=or_zero, unit=unit)
    takes: Allowed | None = form or (bounds if bounds != Range() else None)
    metadata = {_ABOUT: about} | ({_ALLOWED: takes} if takes else {}) | ({_FORMER: was} if was else {})
    return field(default=default, metadata=metadata | ({"machine": True} if machine else {}))


def section(kind: type, about: str) -> Any:
    """The field of a whole section of settings, with its defaults. `about`: one line or several."""
    return field(default_factory=kind, metadata={_ABOUT: about})


def described(made: Any) -> str:
    """The description of a dataclass's field."""
    return str(made.metadata.get(_ABOUT, ""))


def former(made: Any) -> str | None:
    """The name of a dataclass's field in the previous version, if it was another."""
    found: str | None = made.metadata.get(_FORMER)
    return found


def allowed(made: Any) -> Allowed | None:
    """The valid values of a dataclass's field, beyond its type."""
    found: Allowed | None = made.metadata.get(_ALLOWED)
    return found
