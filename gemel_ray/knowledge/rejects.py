"""What was left out, and why: the first reasons, and how many there were."""

from __future__ import annotations

from collections.abc import Callable

SHOWN = 10
Reject = Callable[[str], None]  # is told where and why


class Rejects:
    """Called with each reason; of millions it keeps the first."""

    def __init__(self) -> None:
        self.first: list[str] = []
        self.count = 0

    def __call__(self, reason: str) -> None:
        self.count += 1
        if len(self.first) < SHOWN:
            self.first.append(reason)

    def lines(self, what: str) -> list[str]:
        """For people: the first, and the number of the others."""
        more = self.count - len(self.first)
        return [f"{what}: {reason}" for reason in self.first] + (
            [f"... and {more:,} more {what}"] if more else []
        )
