"""What a worker has begun and not ended, in files: how a row that kills its worker is found.

Ray starts a dead worker again and gives it the same batches. That it has had them before, only a file can
tell it. The files are of one run: a run that is killed as a whole accuses no row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Attempts:
    """The attempts at batches of one segment, in `folder`."""

    folder: Path
    segment: str

    def begin(self, sources: Sequence[str]) -> int:
        """Note that a batch of these documents is begun; how often it was begun before and did not end."""
        with self._file(sources).open("ab") as file:
            file.write(b".")
            return file.tell() - 1

    def leave(self, sources: Sequence[str], words: str) -> None:
        """Why the worker is about to end itself."""
        self._file(sources).with_suffix(".why").write_text(words)

    def left(self, sources: Sequence[str]) -> str:
        """What a worker said before it ended itself; nothing of one that was killed."""
        why = self._file(sources).with_suffix(".why")
        return why.read_text() if why.exists() else ""

    def end(self, sources: Sequence[str]) -> None:
        """The worker has lived through it."""
        file = self._file(sources)
        file.unlink(missing_ok=True)
        file.with_suffix(".why").unlink(missing_ok=True)

    def lived(self) -> None:
        """Note that a worker of this run has lived through documents."""
        (self.folder / f"{self.segment}.lived").touch()

    def set_aside(self) -> int:
        """Note a document that killed its worker; how many did in a run in which no worker has lived yet."""
        with (self.folder / f"{self.segment}.aside").open("ab") as file:
            file.write(b".")
            number = file.tell()
        return 0 if (self.folder / f"{self.segment}.lived").exists() else number

    def _file(self, sources: Sequence[str]) -> Path:
        digest = hashlib.blake2b("\n".join(sources).encode(), digest_size=12).hexdigest()
        return self.folder / f"{self.segment}-{digest}"
