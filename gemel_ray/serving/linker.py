"""What the endpoint asks for links: one document in, its rows out. Who answers is not known here."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pyarrow as pa


class Gone(Exception):
    """Whoever was at work on the document is no more (killed, or its engine died); it may be asked again."""


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
        """By what the rows were made. In an upgrade not always what the endpoint itself would say."""
        named = {"knowledge": self.knowledge} if self.knowledge else {}
        return named | {"fingerprint": self.rows["fingerprint"][0].as_py()}


Linker = Callable[[pa.Table], Awaitable[Reply]]  # raises Gone; cancelled, it gives up the work
