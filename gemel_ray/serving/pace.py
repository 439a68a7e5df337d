"""How long those who come now will have to wait, by how many mentions were lately done a second.

How many can be done depends on the machine, the models and the documents, so it is measured while mentions
wait for each other. Before that has happened once nothing is known. Later a quiet time, which says little of
what could have been done, can raise the estimate but never lower it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic

_SPAN = 5.0  # seconds over which mentions are counted
_CROWD = 4  # mentions inside; fewer do not show what many at once would come to
_UP, _DOWN = 0.3, 0.1  # weight of one document's span; a standstill is soon forgotten


@dataclass
class Pace:
    """A document that takes `long` seconds while others are inside has waited for them."""

    long: float
    now: Callable[[], float] = monotonic
    rate: float = 0.0  # mentions a second; 0: not known yet
    _done: deque[tuple[float, int]] = field(default_factory=deque)

    def done(self, seconds: float, inside: int, mentions: int = 1) -> None:
        """One of the documents with the mentions `inside` is done, which took so long."""
        now = self.now()
        self._done.append((now, mentions))
        while self._done[0][0] <= now - _SPAN:
            self._done.popleft()
        seen = sum(number for _, number in self._done) / _SPAN
        if seconds >= self.long and inside >= _CROWD:
            weight = (_UP if seen > self.rate else _DOWN) if self.rate else 1.0
            self.rate += weight * (seen - self.rate)
        elif self.rate:
            self.rate = max(self.rate, seen)

    def wait(self, ahead: int) -> float:
        """Seconds until so many mentions are done; 0 while nothing is known."""
        return ahead / self.rate if self.rate else 0.0
