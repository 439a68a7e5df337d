"""Every setting: type, range and default from the dataclass, meaning from the comment in ray_config.yaml."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, Literal

from gemel_ray.config import Config
from gemel_ray.setting import allowed

_HEAD = """# Every setting

Made from the code and the comments of [ray_config.yaml](../ray_config.yaml) by `make docs`; a test holds it
against them.

A setting's value comes from, later ones winning: its default; the file (`--config`, else `ray_config.yaml`
in the folder the command runs in); what the workspace carries (the models it was built with, and a
reproduction's settings); `--paper`; `--set a.b=value`, which takes YAML and may be given often (a list is
given as a whole: `--set 'offline.segments=[{stages: [...]}]'`). An unknown name, a wrong type or a value
out of its range ends the command with status 2, before anything is started, and with what is right.

Results carry a *fingerprint*: two runs of equal fingerprints may be compared. The settings of the five
stages, `models`, `input` and `vectors.exact_below` are part of it. Those marked *machine* say how much of a
machine is used; they change no answer and no fingerprint, nor do `offline` and `online`.
"""
# A setting's line in the YAML: indentation, perhaps a list's dash, name, value, comment.
_LINE = re.compile(r"^( *)(?:- )?(\w+):(?: +[^#\n]*?)?(?: +# (.*))?$")
_PLAIN = {str: "text", int: "whole number", float: "number", bool: "true, false"}


def configuration(settings: str) -> str:
    """The page, from the text of ray_config.yaml. Raises ValueError for a setting without a comment there."""
    said = dict(comments(settings))
    parts = [_HEAD]
    hints = typing.get_type_hints(Config)
    for section in fields(Config):
        kind = hints[section.name]
        when = said.get((section.name,))
        about = " ".join(filter(None, (when and f"{when[0].upper()}{when[1:]}.", _docstring(kind))))
        parts.append(f"## {section.name}\n\n{about}\n\n{_table(kind, (section.name,), said)}")
    return "\n".join(parts)


def comments(settings: str) -> Iterator[tuple[tuple[str, ...], str | None]]:
    """The path and the comment of every setting that stands in the file, lists' elements without a number."""
    path: list[tuple[int, str]] = []
    for line in settings.splitlines():
        if found := _LINE.match(line):
            depth = len(found[1]) + (2 if line.lstrip().startswith("- ") else 0)
            path = [(d, name) for d, name in path if d < depth]
            path.append((depth, found[2]))
            yield tuple(name for _, name in path), found[3]


def _table(kind: Any, path: tuple[str, ...], said: dict[tuple[str, ...], str | None]) -> str:
    rows = "".join(_rows(kind, path, said))
    return f"| setting | | default | |\n|---|---|---|---|\n{rows}"


def _rows(kind: Any, path: tuple[str, ...], said: dict[tuple[str, ...], str | None]) -> Iterator[str]:
    hints = typing.get_type_hints(kind)
    for setting in fields(kind):
        at = (*path, setting.name)
        inner = typing.get_args(hints[setting.name])
        name = ".".join(at)
        if inner and is_dataclass(inner[0]):  # a list of sections
            yield f"| `{name}` | list | | {_docstring(inner[0])} |\n"
            yield from (row.replace(f"{name}.", f"{name}[].", 1) for row in _rows(inner[0], at, said))
            continue
        if is_dataclass(hints[setting.name]):
            yield f"| `{name}` | section | | {_docstring(hints[setting.name])} |\n"
            yield from _rows(hints[setting.name], at, said)
            continue
        if not said.get(at):
            raise ValueError(f"ray_config.yaml says nothing of {'.'.join(at)}: give it a comment")
        machine = ", *machine*" if "machine" in setting.metadata else ""
        takes = f" {found}" if (found := allowed(setting)) else ""
        kind = f"{_type(hints[setting.name])}{takes}{machine}"
        cells = (f"`{name}`", kind, _default(setting), _cell(said[at]))
        yield f"| {' | '.join(cells)} |\n"


def _type(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return ", ".join(f"`{choice}`" for choice in typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        return f"list of {_type(typing.get_args(kind)[0])}"
    return _PLAIN[kind]


def _default(setting: Field[Any]) -> str:
    if setting.default is MISSING:
        return "none"
    value = setting.default
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "empty" if not value else ", ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) else str(value) or "empty"


def _docstring(kind: Any) -> str:
    return " ".join(inspect.cleandoc(kind.__doc__ or "").split())


def _cell(text: str | None) -> str:
    return (text or "").replace("|", "\\|")
