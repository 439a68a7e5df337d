"""Whether two ways to run the graph gave the same row."""

from __future__ import annotations

from typing import Any

import pytest

from gemel_ray.records import LINK


def same_row(got: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Field by field; scores but for rounding, and candidates in any order."""
    assert list(got) == LINK.names
    for field in LINK.names:
        if field in ("score", "probability"):
            assert got[field] == pytest.approx(wanted[field], abs=1e-4), wanted
        elif field == "candidates":
            assert _scored(got[field]) == pytest.approx(_scored(wanted[field]), abs=1e-4), wanted
        else:
            assert got[field] == wanted[field], (wanted, field)


def _scored(candidates: list[dict[str, Any]] | None) -> dict[tuple[str, str], float]:
    return {(c["entity"], c["entity_id"]): c["score"] for c in candidates or []}
