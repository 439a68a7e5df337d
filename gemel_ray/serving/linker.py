"""The interface between the endpoint and what links: one document in, its rows out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pyarrow as pa


class WorkerLost(Exception):
    """The worker of a document is lost (killed, or its engine died); the document can be sent again."""


@dataclass
class Reply:
    """A document's rows, the seconds of each stage, what the engine counted since its last reply, and which
    version of the knowledge answered."""

    rows: pa.Table
    seconds: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    knowledge: str = ""

    @property
    def known(self) -> dict[str, str]:
        """Knowledge and fingerprint that made the rows. During an upgrade the endpoint's may differ."""
        named = {"knowledge": self.knowledge} if self.knowledge else {}
        return named | {"fingerprint": self.rows["fingerprint"][0].as_py()}


Linker = Callable[[pa.Table], Awaitable[Reply]]  # raises WorkerLost; if cancelled, it gives up the work
