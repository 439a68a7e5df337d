"""Plain values, as YAML and --set give them, to frozen dataclasses.

An unknown name, a wrong type and a value out of its range (setting.py) are errors that say what is valid.
Knows nothing of what the settings mean.
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, Literal

import yaml

from gemel_ray.errors import Mistake
from gemel_ray.setting import allowed, former

Values = dict[str, Any]  # by name, in nested sections


class ConfigError(Mistake):
    """Says what is wrong, where, and the nearest valid name."""


def parsed(override: str) -> Values:
    """--set a.b=value as {a: {b: value}}."""
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise ConfigError(f"--set takes a.b=value, not {override!r}")
    try:
        value: Any = yaml.safe_load(text) if text else ""
    except (yaml.YAMLError, ValueError, RecursionError) as fault:
        raise ConfigError(f"--set {override}: {fault}") from fault
    for part in reversed(path.split(".")):
        value = {part: value}
    nested: Values = value
    return nested


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> Values:
    if not isinstance(below, Mapping):
        raise ConfigError(f"expected sections of settings, found {below!r:.60}")
    result = dict(below)
    for name, value in above.items():
        inner = result.get(name)
        result[name] = merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return result


def renamed(kind: Any, values: Mapping[str, Any], hint: Callable[[str], None]) -> Values:
    """The sections of settings `values`, with each name of the previous version replaced by the new one;
    `hint` receives a sentence for each. Raises ConfigError if both names are given."""
    hints, found = typing.get_type_hints(kind), dict(values)
    for f in fields(kind):
        old, section = former(f), found.get(f.name)
        if old in found and old is not None:
            if f.name in found:
                raise ConfigError(f"{f.name} and {old} are one setting: leave out {old}, its former name")
            found[f.name] = found.pop(old)
            hint(f"{old} is now called {f.name}; the next version no longer knows the old name")
        elif is_dataclass(hints[f.name]) and isinstance(section, Mapping):
            found[f.name] = renamed(hints[f.name], section, _within(f.name, hint))
    return found


def _within(section: str, hint: Callable[[str], None]) -> Callable[[str], None]:
    return lambda sentence: hint(f"{section}.{sentence}")


def made(kind: Any, value: Any, where: str) -> Any:
    """`value`, checked against the type `kind`."""
    origin = typing.get_origin(kind)
    if is_dataclass(kind):
        return _section(kind, value, where)
    if origin is Literal:
        choices = typing.get_args(kind)
        if value not in choices:
            raise ConfigError(f"{where} cannot be {value!r}; {nearest(str(value), map(str, choices))}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where} must be a list, not {value!r}")
        return tuple(made(typing.get_args(kind)[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    if kind is float and isinstance(value, int | str) and not isinstance(value, bool):
        try:  # also from text: in YAML 1e-3 is text
            return float(value)
        except (ValueError, OverflowError):
            pass
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        raise ConfigError(f"{where} must be {_type_name(kind)}, not {value!r}")
    return value


def _section(kind: Any, value: Any, where: str) -> Any:
    if value is None:
        value = {}
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where or 'the configuration'} must hold settings, not {value!r}")
    hints = {f.name: h for f in fields(kind) if (h := typing.get_type_hints(kind)[f.name])}
    prefix = f"{where}." if where else ""
    for name in value:
        if name not in hints:
            raise ConfigError(f"there is no setting {prefix}{name}; {_nearest_setting(name, kind, prefix)}")
    for f in fields(kind):
        if f.default is MISSING and f.default_factory is MISSING and f.name not in value:
            raise ConfigError(f"{where} lacks {f.name}")
    try:
        return kind(**{
            f.name: _in_range(f, made(hints[f.name], value[f.name], prefix + f.name), prefix + f.name)
            for f in fields(kind) if f.name in value
        })  # fmt: skip
    except ConfigError:
        raise
    except (ValueError, TypeError) as fault:
        raise ConfigError(f"{where}: {fault}") from fault


def _in_range(setting: Field[Any], value: Any, where: str) -> Any:
    """`value`, checked against the setting's range; of a list, each element."""
    takes = allowed(setting)
    for i, one in enumerate(value) if isinstance(value, tuple) else [(None, value)]:
        if takes is not None and one not in takes:
            at = where if i is None else f"{where}[{i}]"
            raise ConfigError(f"{at} cannot be {one!r}: it takes {_type_name(type(one))} {takes}")
    return value


def _type_name(kind: Any) -> str:
    if isinstance(kind, types.UnionType):
        return " or ".join(_type_name(k) for k in typing.get_args(kind))
    return {str: "text", int: "a whole number", float: "a number", bool: "true or false"}.get(kind, str(kind))


def _nearest_setting(name: object, kind: Any, prefix: str) -> str:
    """A hint at the setting that may be meant; one that is called `name` in a section is meant."""
    meant = next((full for full in full_names(kind) if full.endswith(f".{name}")), None)
    if meant:
        return f"did you mean {prefix}{meant}?"
    return nearest(str(name), (f.name for f in fields(kind)), prefix)


def full_names(kind: Any) -> Iterator[str]:
    """The names of all settings below this section: generate.beams."""
    for name, inner in typing.get_type_hints(kind).items():
        if is_dataclass(inner):
            yield from (f"{name}.{below}" for below in full_names(inner))
        elif name in {f.name for f in fields(kind)}:
            yield name


def nearest(name: str, known: Iterable[str], prefix: str = "") -> str:
    """A hint at the known name that may be meant, with what stands before it."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {prefix}{close[0]}?" if close else f"there are {', '.join(known)}"
