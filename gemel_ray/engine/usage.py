"""What searches cost the engine."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Usage:
    """Prompt tokens asked of the engine, and those of them that were in its cache; tokens of names that it
    computed; vLLM's requests (a search in rounds makes none)."""

    asked: int = 0
    cached: int = 0
    decoded: int = 0
    requests: int = 0
