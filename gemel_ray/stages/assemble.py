"""Assemble: the prompt, as token ids and references. The only place that knows the template.

A prompt is a list of numbers: a token id, or, below zero, a visual prefix to be put there where the
engine is (engine/prompts.py): the document's own picture or a demonstration's.
(Paper, section 3.2; gemel's official code tokenises piece by piece, and so do we: the pieces of the
bank are tokenised once, when it is built.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from gemel_ray.knowledge.bank import QUERY_IMAGE, image_of
from gemel_ray.stage import Stage, Work, answer

if TYPE_CHECKING:
    from gemel_ray.knowledge.workspace import Workspace


def query_text(text: str, mention: str) -> str:
    """What stands behind the visual prefix of the mention asked about."""
    return f"[Text]{text}\n[Question]What does {mention} mentioned in the text refer to?\n[Answer]"


def demonstration_text(text: str, mention: str, target: str) -> str:
    """What stands behind the visual prefix of a solved example."""
    return f"{query_text(text, mention)}{target}\n"


@dataclass(frozen=True, kw_only=True)
class Assemble(Stage):
    """`images`: False leaves every picture out of the prompt (retrieval still sees it)."""

    reads: ClassVar = ("text", "mention", "shots", "shared", "image_vector")
    writes: ClassVar = pa.schema(
        [
            pa.field("prompt", pa.list_(pa.int32())),
            pa.field("beginning", pa.int32()),  # so many of its numbers are what other prompts begin with too
        ]
    )
    images: bool = True

    def start(self, workspace: Workspace) -> Work:
        return _Assembling(self, workspace)


class _Assembling(Work):
    def __init__(self, stage: Assemble, workspace: Workspace) -> None:
        self.stage, self.bank, self.tokenize = stage, workspace.bank, workspace.tokenize
        self.images = stage.images and workspace.sees

    def renewed(self, workspace: Workspace) -> Work:
        return _Assembling(self.stage, workspace)

    def __call__(self, batch: pa.Table) -> pa.Table:
        pairs = zip(batch["text"].to_pylist(), batch["mention"].to_pylist(), strict=True)
        queries = self.tokenize([query_text(text, mention) for text, mention in pairs])
        seen = pc.is_valid(batch["image_vector"]).to_pylist()
        columns: dict[str, list[Any]] = {"prompt": [], "beginning": []}
        shots, shared = batch["shots"].to_pylist(), batch["shared"].to_pylist()
        for rows, common, image, query in zip(shots, shared, seen, queries, strict=True):
            beginning = self._demonstrations(rows[:common])
            own = [*self._demonstrations(rows[common:]), *([QUERY_IMAGE] if self.images and image else [])]
            columns["prompt"].append([*beginning, *own, *query])
            columns["beginning"].append(len(beginning))
        return answer(self.stage.writes, columns)

    def _demonstrations(self, shots: list[int]) -> list[int]:
        ids: list[int] = []
        for row in shots:
            if self.images and self.bank.has_image(row):
                ids.append(image_of(row))
            ids.extend(self.bank.tokens(row))
        return ids
