"""Errors of a kind: what a row's error says without what is that row's own."""

from __future__ import annotations

import re

_OWN = re.compile(
    r"""
      \b[a-z][a-z0-9+.-]*://\S+          # an address
    | '[^']*' | "[^"]*"                  # what is quoted
    | (?<!\w)[\w.~-]*/[^\s:,]+           # a path
    | \b[\w-]+\.[A-Za-z][A-Za-z0-9]{1,4}\b(?::\d+)?  # a file
    | \d[\d,.]*\d|\d                     # a number
    """,
    re.VERBOSE,
)


def kind(error: str) -> str:
    """The error with an ellipsis for each address, path, file, quotation and number in it, so that rows that
    failed alike are counted together."""
    return re.sub(r"\.\.\.(?:[\s,-]*\.\.\.)+", "...", _OWN.sub("...", error))
