"""Detect: which spans of a text are mentions.

Takes the mentions that came with the document. Without any, it finds the names and aliases of the knowledge
base in the text, or what a model of the hub tags as a name, or both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import pyarrow as pa

from gemel_ray.errors import Mistake
from gemel_ray.records import MENTION
from gemel_ray.setting import DEVICE, setting
from gemel_ray.stage import Stage, Work, answer

if TYPE_CHECKING:
    from gemel_ray.detecting import Names, Tagger
    from gemel_ray.knowledge.workspace import Workspace
    from gemel_ray.readers.fields import Span


@dataclass(frozen=True, kw_only=True)
class Detect(Stage):
    """Finds the mentions of documents that come without.

    `names` finds whole words that are a name or an alias of the knowledge base: the longest of those that
    begin at the same word. `model` takes what a token-classification model tags.
    """

    reads: ClassVar = ("text", "given")
    writes: ClassVar = pa.schema([pa.field("mentions", pa.list_(MENTION))])
    by: Literal["names", "model", "both"] = setting(
        "names", "names of the knowledge base, a model that tags names, or both"
    )
    min_characters: int = setting(
        3, "shortest name that is searched for", at_least=1, unit="characters", was="shortest"
    )
    case: Literal["own", "any"] = setting(
        "own", "own: only in the name's upper and lower case; any: in any case"
    )
    link_probability: float = setting(
        0.05,
        "least share of a name's occurrences that are mentions, if the demonstrations show it",
        at_least=0,
        at_most=1,
    )
    stop_names: str = setting("", "file of names that are never a mention, one per line", was="stop")
    model: str = setting("", "token-classification model: folder or hub name")
    tag_probability: float = setting(
        0.5, "least probability of a tag of the model", at_least=0, at_most=1, was="tag"
    )
    max_mentions: int = setting(
        50, "greatest number of mentions in one text", at_least=1, unit="mentions", was="most"
    )
    device: str = setting("auto", "device of the model", form=DEVICE, machine=True)
    batch: int = setting(32, "texts in one pass of the model", at_least=1, unit="texts", machine=True)

    def __post_init__(self) -> None:
        if self.by != "names" and not self.model:
            raise Mistake(f"detect.by={self.by} needs detect.model: a folder or hub name")

    def check(self) -> None:
        """Raise ValueError if the file of stopped names is not on this machine."""
        if self.stop_names and not Path(self.stop_names).is_file():
            raise Mistake(f"detect.stop_names: there is no file {self.stop_names}")

    def start(self, workspace: Workspace, line: Sequence[Stage] = ()) -> Work:
        self.check()
        made = _Detecting(self, workspace)
        if self.by != "names":  # report a model that cannot be loaded before the first document
            _ = made._tagger
        return made


class _Detecting(Work):
    def __init__(self, stage: Detect, workspace: Workspace, former: _Detecting | None = None) -> None:
        self.stage, self.workspace = stage, workspace
        if former is not None and "_tagger" in vars(former):
            self._tagger = former._tagger

    def renewed(self, workspace: Workspace) -> Work:
        made = _Detecting(self.stage, workspace, self)
        if "_names" in vars(self):  # names are in use: make them now, so that no document waits
            _ = made._names
        return made

    def __call__(self, batch: pa.Table) -> pa.Table:
        mentions = batch["given"]
        if mentions.null_count:
            mentions = self._completed(mentions.to_pylist(), batch["text"].to_pylist())
        return answer(self.stage.writes, {"mentions": mentions})

    def _completed(self, given: list[Any], texts: list[str]) -> list[Any]:
        """The mentions of each text: those given, or, where that is None, those found in it."""
        bare = [i for i, mentions in enumerate(given) if mentions is None]
        for i, spans in zip(bare, self._spans([texts[i] for i in bare]), strict=True):
            given[i] = [
                {"mention_id": f"{a}-{b}", "mention": texts[i][a:b], "start": a, "end": b}
                for a, b in spans[: self.stage.max_mentions]
            ]
        return given

    def _spans(self, texts: Sequence[str]) -> list[list[Span]]:
        """The spans of each text, in order, not overlapping."""
        from gemel_ray.detecting import longest

        found: list[list[Any]] = [[] for _ in texts]
        if self.stage.by != "names":
            found = [list(spans) for spans in self._tagger(texts)]
        if self.stage.by != "model":
            for spans, text in zip(found, texts, strict=True):
                spans.extend(self._names.whole_words(text))
        return [list(longest(spans)) for spans in found]

    @cached_property
    def _names(self) -> Names:
        from gemel_ray.detecting import Names, rarely_linked, width
        from gemel_ray.readers.fields import normal

        stage = self.stage
        forms = {
            normal(f) for f in self.workspace.entities.surface_forms() if width(f) >= stage.min_characters
        }
        stopped = (
            set(map(normal, Path(stage.stop_names).read_text().splitlines())) if stage.stop_names else set()
        )
        stopped |= rarely_linked(self.workspace.folder, stage.link_probability)
        return Names(forms - stopped, any_case=stage.case == "any")

    @cached_property
    def _tagger(self) -> Tagger:
        from gemel_ray.detecting import Tagger

        return Tagger(self.stage.model, self.stage.device, self.stage.batch, self.stage.tag_probability)
