"""Writes the page on the command line from its parsers."""

from __future__ import annotations

import argparse
import inspect
import re
import textwrap
from collections.abc import Iterator

from gemel_ray.arguments import parser
from gemel_ray.cli import _VERBS

_HEAD = """# Every command

`make docs` writes this page from the parsers of the command line, and a test compares them. `gemel-ray
VERB --help` says the same.

| exit status | meaning |
|---|---|
| 0 | done |
| 1 | finished with only error rows (with `--strict`: with any); or `check` or `lint-deploy` found something |
| 2 | wrong usage or configuration |
| 130 | interrupted; the same command continues |

All verbs take

| option | |
|---|---|
"""
_MARK = "<!-- not run: with files of your own -->"


def commands() -> str:
    """The page."""
    root = parser(_VERBS)
    leaves = [verb for verb in _verbs(root) if not list(_verbs(verb))]
    shared = set.intersection(*({action.dest for action in verb._actions} for verb in leaves))
    head = "".join(_row(a) for a in leaves[0]._actions if a.dest in shared and a.dest != "help")
    return "\n".join([_HEAD + head, *(_about(verb, shared) for verb in _verbs(root))])


def _verbs(outer: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """The parser's verbs, each followed by its own verbs."""
    for action in outer._actions:
        if isinstance(action, argparse._SubParsersAction):
            for verb in action.choices.values():
                yield verb
                yield from _verbs(verb)


def _about(verb: argparse.ArgumentParser, shared: set[str]) -> str:
    level = "#" * verb.prog.count(" ")
    rows = [
        a for a in verb._actions if a.dest not in shared and not isinstance(a, argparse._SubParsersAction)
    ]
    table = "\n| | |\n|---|---|\n" + "".join(map(_row, rows)) if rows else ""
    return f"#{level} {verb.prog}\n\n{_prose(verb.description or '')}{table}"


def _prose(description: str) -> str:
    """The description's paragraphs; indented ones are commands, and those with columns keep their layout."""
    parts = []
    for paragraph in inspect.cleandoc(description).split("\n\n"):
        if paragraph.startswith("  "):
            parts.append(f"{_MARK}\n```bash\n{textwrap.dedent(paragraph)}\n```\n")
        elif "   " in paragraph:
            parts.append(f"```text\n{paragraph}\n```\n")
        else:
            parts.append(re.sub(r"([*<\[])", r"\\\1", paragraph) + "\n")
    return "\n".join(parts)


def _row(action: argparse.Action) -> str:
    value = action.metavar if isinstance(action.metavar, str) else None
    if action.choices is not None:
        value = "|".join(map(str, action.choices))
    elif value is None and action.nargs != 0:
        value = action.dest.upper()
    more = "..." if action.nargs in ("+", "*") else None
    spelled = " ".join(filter(None, (*action.option_strings[-1:], value, more)))
    about = action.help or ""
    needed = " (required)" if action.required and action.option_strings else ""
    spelled, about = (cell.replace("|", "\\|") for cell in (spelled, about + needed))
    return f"| `{spelled}` | {about} |\n"
