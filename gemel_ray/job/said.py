"""What is said while no rows come. Of workers, as that a server is waited for: the output brings it to the
driver."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from gemel_ray.job.index import Done
from gemel_ray.job.results import WORKERS
from gemel_ray.progress import Progress
from gemel_ray.storage import Folder, LocalFolder

_EVERY, _EVERY_REMOTE = 2.0, 10.0  # seconds between two looks, on a disk and in an object store
_SOURCE = logging.getLogger("gemel_ray.knowledge")


class _Saying(logging.Handler):
    def __init__(self, output: Folder, run: str) -> None:
        super().__init__(logging.WARNING)
        self.output, self.run = output, run

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):  # a full disk: the work itself will say so
            name = f"{_prefix(self.run)}{time.time_ns()}-{os.getpid()}"
            self.output.write(name, record.getMessage().encode())


def say(output: Folder, run: str) -> None:
    """In a worker: whatever this process warns of from now on is brought to the driver."""
    _SOURCE.addHandler(_Saying(output, run))


def retried(retry: str | None, done: Done, report: Callable[[Progress], None]) -> None:
    """How many documents that failed are to be done again, where that is asked for."""
    if retry is not None:
        report(Progress(0, {}, f"{done.asked:,} failed documents: those that INPUT holds are done again"))


@contextmanager
def heard(output: Folder, run: str, report: Callable[[Progress], None]) -> Iterator[None]:
    """In the driver, while a run goes on: what its workers say is reported, once when many say the same."""
    ended = threading.Event()
    every = _EVERY if isinstance(output, LocalFolder) else _EVERY_REMOTE
    thread = threading.Thread(target=_listen, args=(output, run, report, ended, every), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _listen(
    output: Folder, run: str, report: Callable[[Progress], None], ended: threading.Event, every: float
) -> None:
    read: set[str] = set()
    last = ""
    while not ended.wait(every):
        with suppress(OSError):
            for name in output.names(WORKERS):
                if name.startswith(_prefix(run)) and name not in read:
                    words = output.read(name).decode()
                    read.add(name)
                    if words != last:
                        report(Progress(0, {}, words))
                    last = words


def _prefix(run: str) -> str:
    return f"{WORKERS}/said-{run}-"
