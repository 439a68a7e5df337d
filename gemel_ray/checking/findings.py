"""What was found, by kind: how often, and the first ten messages."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

from gemel_ray.readers.pictures import unread_lines

KINDS = {
    "row": "rows that cannot be read",
    "entity": "entities that cannot be read",
    "same_entity": "entities whose id an earlier one has: build keeps the first",
    "long_name": "names that may be too long: build leaves out those of more than bank.longest_name tokens",
    "id": "documents whose id another has (their links cannot be distinguished)",
    "mention": "mentions outside their text, or with other words at their place",
    "target": "targets that are not an entity's name or id",
    "renamed": "targets that have another name in the knowledge base, by their id",
    "duplicate": "mentions that are there twice, with the same text and place",
    "train_mention": "mentions that are in the training data, with the same text",
    "train_text": "documents whose text is in the training data",
    "train_image": "documents whose picture is in the training data, by key or content",
    "missing": "pictures that are not there",
    "corrupt": "pictures that cannot be decoded",
    "unread": "documents with something that looks like a picture, and is not read",
    "unused": "pictures in the folder that no document uses",
}
NOTES = {  # not faults: reported, nothing to correct
    "long_text": "texts that may be too long for a prompt: they are cut around each mention",
    "taken": "targets that are an entity's id, or spell its name as an address does: taken as that entity",
    "doubt": "targets that are a name and another entity's id",
    "placed": "mentions whose place was found by their words, or counts something else",
    "unplaced": "mentions whose words are not in their text: they are linked without a place",
}
SHOWN = 10


class Findings:
    """Counts of all findings, messages of the first."""

    def __init__(self) -> None:
        self.documents = self.mentions = self.pictures = 0
        self.fields = Counter[str]()  # that no form reads: not faults, but reported
        self.counts: dict[str, int] = defaultdict(int)
        self.first: dict[str, list[str]] = defaultdict(list)

    def add(self, kind: str, where: str, reason: str) -> None:
        """Add one finding, of one of the KINDS or NOTES."""
        self.counts[kind] += 1
        if len(self.first[kind]) < SHOWN:
            self.first[kind].append(f"{where}: {reason}")

    @property
    def clean(self) -> bool:
        return self.documents > 0 and not any(self.counts.get(kind) for kind in KINDS)

    def figures(self) -> dict[str, Any]:
        """For programs: what was checked, and by kind how often, with the first ten."""
        found = {
            k: {"count": self.counts[k], "first": self.first[k]}
            for k in (*KINDS, *NOTES)
            if self.counts.get(k)
        }
        looked = {"documents": self.documents, "mentions": self.mentions, "pictures": self.pictures}
        return looked | {"found": found, "fields_not_read": dict(self.fields)}

    def table(self) -> str:
        """The findings as text, for people."""
        lines = [
            f"{self.documents:,} documents, {self.mentions:,} mentions, {self.pictures:,} pictures looked at"
        ]
        lines += self._lines(KINDS)
        lines += ["", "there is no document in it"] if not self.documents else []
        lines += ["", "nothing found"] if self.clean else []
        lines += ["", *unread_lines({"unread": self.fields})] if self.fields else []
        return "\n".join([*lines, *self._lines(NOTES)])

    def _lines(self, kinds: dict[str, str]) -> list[str]:
        lines = []
        for kind in (k for k in kinds if self.counts.get(k)):
            count = self.counts[kind]
            lines += ["", f"{count:,} {kinds[kind]}", *(f"  {line}" for line in self.first[kind])]
            lines += [f"  ... and {count - SHOWN:,} more"] if count > SHOWN else []
        return lines
