"""What was found, by kind: how often, and the first ten in words."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

KINDS = {
    "row": "rows that cannot be read",
    "entity": "entities that cannot be read",
    "id": "documents whose id another has (their links cannot be told apart)",
    "mention": "mentions outside their text, or not what stands at their place",
    "target": "targets that are no entity's name or id",
    "renamed": "targets that have another name in the knowledge base, by their id",
    "duplicate": "mentions that are there twice, with the same text and place",
    "train_mention": "mentions that are in the training data, with the same text",
    "train_text": "documents whose text is in the training data",
    "train_image": "documents whose picture is in the training data, by key or content",
    "missing": "pictures that are not there",
    "corrupt": "pictures that cannot be decoded",
    "unused": "pictures in the folder that no document uses",
}
SHOWN = 10


class Findings:
    """Counts of all, words of the first."""

    def __init__(self) -> None:
        self.documents = self.mentions = self.pictures = 0
        self.counts: dict[str, int] = defaultdict(int)
        self.first: dict[str, list[str]] = defaultdict(list)

    def add(self, kind: str, where: str, reason: str) -> None:
        """One thing found, of one of the KINDS."""
        self.counts[kind] += 1
        if len(self.first[kind]) < SHOWN:
            self.first[kind].append(f"{where}: {reason}")

    @property
    def clean(self) -> bool:
        return not self.counts

    def figures(self) -> dict[str, Any]:
        """For machines: what was looked at, and by kind how often with the first ten."""
        found = {k: {"count": self.counts[k], "first": self.first[k]} for k in KINDS if self.counts.get(k)}
        looked = {"documents": self.documents, "mentions": self.mentions, "pictures": self.pictures}
        return looked | {"found": found}

    def table(self) -> str:
        """For people."""
        lines = [
            f"{self.documents:,} documents, {self.mentions:,} mentions, {self.pictures:,} pictures looked at"
        ]
        for kind in (k for k in KINDS if self.counts.get(k)):
            count = self.counts[kind]
            lines += ["", f"{count:,} {KINDS[kind]}", *(f"  {line}" for line in self.first[kind])]
            lines += [f"  ... and {count - SHOWN:,} more"] if count > SHOWN else []
        return "\n".join([*lines, "", "nothing found" if self.clean else ""]).rstrip()
