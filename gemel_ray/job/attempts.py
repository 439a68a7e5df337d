"""What a worker has begun and not ended, in files: how a row that kills its worker is found.

Ray starts a dead worker again and gives it the same batches; one has a batch at a time. That it has had them
before, only a file can tell it. The files are of one run: a run that is killed as a whole accuses no row.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count

from gemel_ray.storage import Folder

FOLDER = ".attempts"


@dataclass(frozen=True)
class Attempts:
    """The attempts at batches of one segment, in a job's output folder."""

    output: Folder
    segment: str

    def begin(self, sources: Sequence[str]) -> int:
        """Note that a batch of these documents is begun; how often it was begun before and did not end."""
        file = self._file(sources)
        before = int(self._read(file) or 0)
        self.output.write(file, str(before + 1).encode())
        return before

    def leave(self, sources: Sequence[str], words: str) -> None:
        """Why the worker is about to end itself."""
        self.output.write(f"{self._file(sources)}.why", words.encode())

    def left(self, sources: Sequence[str]) -> str:
        """What a worker said before it ended itself; nothing of one that was killed."""
        return self._read(f"{self._file(sources)}.why").decode()

    def end(self, sources: Sequence[str]) -> None:
        """The worker has lived through it."""
        file = self._file(sources)
        self.output.remove(file)
        self.output.remove(f"{file}.why")

    def lived(self) -> None:
        """Note that a worker of this run has lived through documents."""
        self.output.write(self._lived, b"yes")

    def set_aside(self) -> int:
        """Note a document that killed its worker; how many did in a run in which no worker has lived yet."""
        own = uuid.uuid4().bytes  # several workers may be here at once
        number = next(n for n in count(1) if self.output.create(f"{FOLDER}/{self.segment}.aside-{n}", own))
        return 0 if self._read(self._lived) else number

    @property
    def _lived(self) -> str:
        return f"{FOLDER}/{self.segment}.lived"

    def _read(self, file: str) -> bytes:
        with suppress(FileNotFoundError):
            return self.output.read(file)
        return b""

    def _file(self, sources: Sequence[str]) -> str:
        digest = hashlib.blake2b("\n".join(sources).encode(), digest_size=12).hexdigest()
        return f"{FOLDER}/{self.segment}-{digest}"
