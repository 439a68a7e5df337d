"""The progress of a long job: a line on a terminal, occasional lines in a log file."""

from __future__ import annotations

import sys
import time
from collections import Counter
from dataclasses import dataclass

_EVERY = 15.0  # seconds between lines of a log; between redraws of a terminal's line: 1


@dataclass(frozen=True)
class Progress:
    """What one finished batch adds: documents, and their mentions by status; or a note to show."""

    documents: int
    statuses: dict[str, int]
    note: str = ""


class Meter:
    """Shows rows done, rate, errors and time left; `total` is None if unknown. `beginning`: what is done
    before the first batch is ready."""

    def __init__(self, what: str, total: int | None, beginning: str = "loading the models") -> None:
        self.what, self.total, self.done, self.beginning = what, total, 0, beginning
        self.statuses: Counter[str] = Counter()
        self.live = sys.stderr.isatty()
        self.began = self.reported = time.monotonic()
        self.first = (self.began, 0)  # when the first batch came, and with how many

    def __enter__(self) -> Meter:
        known = "an unknown number of" if self.total is None else f"{self.total:,}"
        first = "" if self.total == 0 else f"; {self.beginning}"
        self._report(f"{known} {self.what} to do{first}")
        return self

    def __exit__(self, *_: object) -> None:
        self._report(self._line())
        if self.live:
            print(file=sys.stderr)

    def add(self, progress: Progress) -> None:
        """Count a finished batch; a note is shown at once."""
        if progress.note:
            self._report(progress.note)
            return
        if not self.done:  # the models were loading until now, which is not part of the rate
            self.first = (time.monotonic(), progress.documents)
        self.done += progress.documents
        self.statuses.update(progress.statuses)
        if time.monotonic() - self.reported > (1.0 if self.live else _EVERY):
            self._report(self._line())

    def _line(self) -> str:
        now = time.monotonic()
        rows = sum(self.statuses.values()) or self.done
        rate = rows / max(now - self.began, 1e-9)
        since, before = self.first if self.done > self.first[1] else (self.began, 0)
        left = ((self.total or 0) - self.done) * (now - since) / (self.done - before) if self.done else 0
        share = f"{self.done:,}/{self.total:,}" if self.total else f"{self.done:,}"
        errors = self.statuses["error"]
        parts = [f"{share} {self.what}"]
        parts += [f"{rows:,} mentions"] if self.statuses else []
        parts += [f"{rate:.1f}/s"] + ([f"{errors:,} errors"] if self.statuses else [])
        parts += [f"{_span(now - self.began)} elapsed"] + ([f"{_span(left)} left"] if left > 0 else [])
        return ", ".join(parts)

    def _report(self, line: str) -> None:
        self.reported = time.monotonic()
        print(
            f"\r\x1b[2K{line}" if self.live else line,
            end="" if self.live else "\n",
            file=sys.stderr,
            flush=True,
        )


def _span(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"
