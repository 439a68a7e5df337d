"""Writes ray_config.yaml with all defaults, and the page on every setting, from the code's descriptions."""

from __future__ import annotations

import inspect
import textwrap
import typing
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, Literal

import yaml

from gemel_ray.config import Config
from gemel_ray.setting import Range, allowed, described

_HEAD = """# Every setting

Made from the code by `make docs`, like [ray_config.yaml](../ray_config.yaml).

A setting's value comes from, later ones winning: its default; the file (`--config`, else `ray_config.yaml`
in the folder the command runs in); what the workspace carries (the models it was built with, and a
reproduction's settings); `--paper`; `--set a.b=value`, which takes YAML and may be given often (a list is
given as a whole: `--set 'offline.segments=[{stages: [...]}]'`). An unknown name, a wrong type or a value
out of its range ends the command with status 2, before anything is started, and with what is right.

Results carry a *fingerprint*: two runs of equal fingerprints may be compared. The settings of the five
stages, `models`, `input` and `vectors.exact_below` are part of it. Those marked *machine* say how much of a
machine is used; they change no answer and no fingerprint, nor do `offline` and `online`.
"""
_PLAIN = {str: "text", int: "whole number", float: "number", bool: "true, false"}


_YAML = """# gemel-ray's configuration: every setting with its default, written by `make docs`. A run
# changes one with --set a.b=value; a file of your own needs only the lines that it changes.
"""
_COLUMN = 29  # where comments begin


def configuration() -> str:
    """The page docs/configuration.md."""
    parts = [_HEAD]
    hints = typing.get_type_hints(Config)
    for section in fields(Config):
        kind = hints[section.name]
        about = "\n\n".join(filter(None, (_prose(described(section)), _details(kind))))
        table = f"| setting | | default | |\n|---|---|---|---|\n{''.join(_rows(kind, (section.name,)))}"
        parts.append(f"## {section.name}\n\n{about}\n\n{table}")
    return "\n".join(parts)


def settings_file() -> str:
    """ray_config.yaml: every setting with its default and its meaning."""
    hints, parts = typing.get_type_hints(Config), [_YAML]
    for section in fields(Config):
        about = textwrap.indent(described(section), "# ")
        parts.append(f"\n{about}\n{section.name}:\n")
        parts += _lines(hints[section.name](), "  ")
    return "".join(parts)


def _lines(section: Any, indent: str) -> Iterator[str]:
    """The lines of a section with its defaults."""
    for setting in fields(section):
        value, about = getattr(section, setting.name), described(setting)
        if is_dataclass(value):
            yield _line(f"{indent}{setting.name}:", about)
            yield from _lines(value, indent + "  ")
        elif isinstance(value, tuple) and value and is_dataclass(value[0]):
            yield f"{indent}{setting.name}:\n"
            first, *rest = _lines(value[0], indent + "    ")
            yield f"{indent}  - {first.lstrip()}"
            yield from rest
        else:
            yield _line(f"{indent}{setting.name}: {_plain(value)}", about + _unit(setting))


def _line(setting: str, about: str) -> str:
    return f"{setting:<{_COLUMN - 1}} # {about}\n"


def _unit(setting: Field[Any]) -> str:
    """The unit in brackets, where neither name nor description contains it."""
    found = allowed(setting)
    unit = found.unit if isinstance(found, Range) else ""
    text = f"{setting.name} {described(setting)}"
    return f" ({unit})" if unit and unit.split()[0].lower() not in text.lower() else ""


def _plain(value: Any) -> str:
    """The value as YAML on one line."""
    if isinstance(value, tuple):
        value = list(value)
    text = yaml.safe_dump(
        value, default_flow_style=True, width=1_000, default_style='"' if value == "" else None
    )
    return text.removesuffix("\n").removesuffix("\n...")


def _prose(about: str) -> str:
    """The description without the example, which is indented."""
    return " ".join(line for line in about.splitlines() if not line.startswith(" "))


def _rows(kind: Any, path: tuple[str, ...]) -> Iterator[str]:
    hints = typing.get_type_hints(kind)
    for setting in fields(kind):
        at = (*path, setting.name)
        inner = typing.get_args(hints[setting.name])
        name = ".".join(at)
        if inner and is_dataclass(inner[0]):  # a list of sections
            yield f"| `{name}` | list | | {_docstring(inner[0])} |\n"
            yield from (row.replace(f"{name}.", f"{name}[].", 1) for row in _rows(inner[0], at))
            continue
        if is_dataclass(hints[setting.name]):
            yield f"| `{name}` | section | | {_docstring(hints[setting.name])} |\n"
            yield from _rows(hints[setting.name], at)
            continue
        machine = ", *machine*" if "machine" in setting.metadata else ""
        takes = f" {found}" if (found := allowed(setting)) else ""
        kind = f"{_type(hints[setting.name])}{takes}{machine}"
        yield f"| `{name}` | {kind} | {_default(setting)} | {_cell(described(setting))} |\n"


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


def _details(kind: Any) -> str:
    """The paragraphs of the section's docstring after the first, which repeats its description."""
    _, *paragraphs = inspect.cleandoc(kind.__doc__ or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def _docstring(kind: Any) -> str:
    return " ".join(inspect.cleandoc(kind.__doc__ or "").split())


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
