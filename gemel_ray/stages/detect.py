"""Detect: which spans of a text are mentions.

Takes the mentions that came with the document; where none were given, finds the names and aliases
of the knowledge base in the text: whole words only, the longest match, one automaton pass however
many names there are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa

from gemel_ray.records import MENTION
from gemel_ray.stage import Stage, Work, answer

if TYPE_CHECKING:
    from ahocorasick_rs import AhoCorasick

    from gemel_ray.knowledge.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class Detect(Stage):
    """`shortest`: names of fewer characters are not looked for; `most`: mentions kept of one text."""

    reads: ClassVar = ("text", "given")
    writes: ClassVar = pa.schema([pa.field("mentions", pa.list_(MENTION))])
    shortest: int = 3
    most: int = 50

    def start(self, workspace: Workspace) -> Work:
        return _Detecting(self, workspace)


class _Detecting(Work):
    def __init__(self, stage: Detect, workspace: Workspace) -> None:
        self.stage, self.workspace = stage, workspace

    def renewed(self, workspace: Workspace) -> Work:
        made = _Detecting(self.stage, workspace)
        if "_automaton" in vars(self):  # names are looked for: the next document shall not wait for it
            _ = made._automaton
        return made

    def __call__(self, batch: pa.Table) -> pa.Table:
        given, texts = batch["given"].to_pylist(), batch["text"].to_pylist()
        found = [self._find(text) if g is None else g for g, text in zip(given, texts, strict=True)]
        return answer(self.stage.writes, {"mentions": found})

    def _find(self, text: str) -> list[dict[str, Any]]:
        return [
            {"mention_id": f"{start}-{end}", "mention": text[start:end], "start": start, "end": end}
            for start, end in self._spans(text)
        ][: self.stage.most]

    def _spans(self, text: str) -> Iterator[tuple[int, int]]:
        """Leftmost, longest, whole words, not overlapping. The automaton reports overlapping matches,
        since its own longest match may be cut off by a word's edge where a shorter one is not."""
        whole = [
            (start, end)
            for _, start, end in self._automaton.find_matches_as_indexes(text, overlapping=True)
            if _edge(text, start) and _edge(text, end)
        ]
        free = 0
        for start, end in sorted(whole, key=lambda span: (span[0], -span[1])):
            if start >= free:
                yield start, end
                free = end

    @cached_property
    def _automaton(self) -> AhoCorasick:
        from ahocorasick_rs import AhoCorasick, MatchKind

        names = {n for n in self.workspace.entities.surface_forms() if len(n) >= self.stage.shortest}
        return AhoCorasick(sorted(names), matchkind=MatchKind.Standard)


def _edge(text: str, at: int) -> bool:
    """Whether no word goes on across position `at`."""
    return at in (0, len(text)) or not (text[at - 1].isalnum() and text[at].isalnum())
