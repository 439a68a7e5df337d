"""Assemble: the prompt, as token ids and references. Only this file knows the template.

A prompt is a list of numbers: a token id, or, below zero, a visual prefix to be put there where the
engine is (engine/work.py): the document's picture or a demonstration's.
(Paper, section 3.2; gemel's official code tokenises piece by piece, and so do we: the pieces of the
bank are tokenised once, when it is built.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from gemel_ray.errors import Mistake
from gemel_ray.knowledge.bank import QUERY_IMAGE, image_of
from gemel_ray.models.encoders import longest_context
from gemel_ray.readers.fields import short
from gemel_ray.readers.mentions import place
from gemel_ray.records import Row
from gemel_ray.setting import setting
from gemel_ray.stage import ERROR, Stage, Work, settings_of
from gemel_ray.stages.choosing import LETTERS, Choices
from gemel_ray.stages.generate import Generate

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from gemel_ray.knowledge.workspace import Workspace

# A prompt within the language model's limit of tokens: which examples are in it, and which part of a text.
#
# The farthest examples are dropped first. A text is cut, around its mention, only if it does not fit by
# itself. Of pictures only the number of tokens is known here.


_KEPT_FREE = 4  # a quarter of the room is for the question, so that prompts share their beginning


def kept(sizes: Sequence[int], shared: int, question: int, room: int) -> list[int]:
    """Which examples of these sizes, the nearest last, come before a question of `question` tokens: their
    places, in order. The first `shared` are chosen regardless of the others, so that all prompts with that
    set share their beginning."""
    if sum(sizes) + question <= room:
        return list(range(len(sizes)))
    left = room - max(question, room // _KEPT_FREE)
    common = _nearest(sizes, range(shared), left * shared // max(1, len(sizes)))
    left -= sum(sizes[place] for place in common)
    return common + _nearest(sizes, range(shared, len(sizes)), left)


def _nearest(sizes: Sequence[int], places: range, room: int) -> list[int]:
    found: list[int] = []
    for at in reversed(places):
        if sizes[at] <= room:
            found.append(at)
            room -= sizes[at]
    return found[::-1]


def cut(
    tokenizer: Tokenizer, text: str, at: tuple[int, int], room: int, piece: Callable[[str], str]
) -> str | None:
    """The part of the text, around the characters `at`, with which `piece` has at most `room` tokens; None if
    not even the piece without a text fits."""

    def tokens(part: str) -> int:
        return len(tokenizer.encode(piece(part), add_special_tokens=False))

    wide = room - tokens("")
    if wide < 0:
        return None
    places: list[tuple[int, int]] = tokenizer.encode(text, add_special_tokens=False).offsets
    first = next((i for i, (_, end) in enumerate(places) if end > at[0]), 0)
    last = next((i for i, (start, _) in enumerate(places) if start >= at[1]), len(places))
    while wide > 0:
        begin, end = _window(first, last, wide, len(places))
        part = text[places[begin][0] : places[end - 1][1]].strip()
        over = tokens(part) - room
        if over <= 0:
            return part
        wide -= over
    return ""


def _window(first: int, last: int, wide: int, count: int) -> tuple[int, int]:
    """A window of `wide` out of `count` tokens, with `first` to `last` in its middle if possible."""
    before = max(0, wide - (last - first)) // 2
    begin = max(0, min(first - before, count - wide))
    return begin, min(count, begin + wide)


Ids = npt.NDArray[np.int32]
_NOTHING = np.empty(0, np.int32)
_CUT = "the text was cut around its mention, to {} of its {} characters"
_LEAST = 64  # tokens of a prompt
_SETS, _EXAMPLES = 4096, 65_536  # whose tokens are cached
_TOO_LONG = "the mention {} is too long: with it alone a prompt has more than {} tokens"


def query_text(text: str, mention: str) -> str:
    """The text after the visual prefix of the question."""
    return f"[Text]{text}\n[Question]What does {mention} mentioned in the text refer to?\n[Answer]"


def demonstration_text(text: str, mention: str, target: str) -> str:
    """The text after the visual prefix of a solved example."""
    return f"{query_text(text, mention)}{target}\n"


def choice_text(text: str, mention: str, candidates: Sequence[str]) -> str:
    """The text after the visual prefix if the language model chooses a candidate by its letter."""
    listed = "".join(f"{letter}. {line}\n" for letter, line in zip(LETTERS, candidates, strict=False))
    return (
        f"[Text]{text}\n[Candidates]\n{listed}"
        f"[Question]Which candidate does {mention} mentioned in the text refer to?\n[Answer]"
    )


@dataclass(frozen=True, kw_only=True)
class Assemble(Stage):
    """Makes the prompt: token ids, and the places of pictures.

    With `images: false` no picture is in the prompt. Retrieval still sees them.
    """

    reads: ClassVar = (
        "text", "mention", "start", "end", "placed", "unseen", "shots", "shared", "image_vector", "likely",
        "chances",
    )  # fmt: skip
    writes: ClassVar = pa.schema(
        [
            pa.field("prompt", pa.list_(pa.int32())),
            pa.field("beginning", pa.int32()),  # how many of its first numbers other prompts begin with, too
            pa.field("choice", pa.list_(pa.int32())),  # the rest of the prompt for choosing a candidate
            pa.field("demonstrations", pa.list_(pa.string())),  # ids of the examples in it
            pa.field("note", pa.string()),
        ]
    )
    images: bool = setting(True, "show pictures in the prompt")

    def start(self, workspace: Workspace, line: Sequence[Stage] = ()) -> Work:
        return _Assembling(self, workspace, settings_of(Generate, line))


class _Assembling(Work):
    def __init__(self, stage: Assemble, workspace: Workspace, asked: Generate) -> None:
        self.stage, self.bank, self.asked = stage, workspace.bank, asked
        self.tokenizer, self.tokenize = workspace.tokenizer, workspace.tokenize
        self.prefix = workspace.prefix if stage.images else 0  # tokens that a picture takes
        self.images = self.prefix > 0
        self.room = _room(workspace, asked.length)
        chooses = asked.rerank and 0 < asked.ranking < 1
        self.choices = Choices(workspace.entities, asked.rerank, asked.sure) if chooses else None
        self.example, self.joined = lru_cache(_EXAMPLES)(self._example), lru_cache(_SETS)(self._joined)

    def renewed(self, workspace: Workspace) -> Work:
        return _Assembling(self.stage, workspace, self.asked)

    def __call__(self, batch: pa.Table) -> pa.Table:
        seen = pc.is_valid(batch["image_vector"]).to_pylist()
        rows = batch.drop_columns(["image_vector"]).to_pylist()
        queries = self.tokenize([query_text(row["text"], row["mention"]) for row in rows])
        made = [
            self._prompt(row, query, [QUERY_IMAGE] if self.images and image else [])
            for row, image, query in zip(rows, seen, queries, strict=True)
        ]
        return pa.Table.from_pylist(made, self.stage.writes.append(ERROR))

    def _prompt(self, row: Row, query: list[int], image: list[int]) -> Row:
        room, notes, part = self.room - len(image) * self.prefix, [row["placed"], row["unseen"]], row["text"]
        if len(query) > room:
            part = self._cut(row, room // 2)
            if part is None:
                return {"error": _TOO_LONG.format(short(row["mention"]), self.room)}
            (query,) = self.tokenize([query_text(part, row["mention"])])
            notes.append(_CUT.format(len(part), len(row["text"])))
        shots, shared = row["shots"], row["shared"]
        sizes = [self.example(shot)[1] for shot in shots]
        places = kept(sizes, shared, len(query), room)
        beginning = self.joined(tuple(shots[place] for place in places if place < shared))
        individual = self._joined([shots[place] for place in places if place >= shared])
        if sizes and not places and (last := self._shortened(shots[-1], room - len(query))):
            places = [len(sizes) - 1]
            beginning, individual = (
                (individual, np.array(last)) if shared < len(sizes) else (np.array(last), individual)
            )
        return {
            "prompt": np.concatenate([beginning, individual, np.array([*image, *query], np.int32)]),
            "beginning": len(beginning),
            "choice": self.choices
            and self._choice(
                self.choices, row, part, image, room - sum(sizes[p] for p in places if p < shared)
            ),
            "demonstrations": self.bank.ids([shots[place] for place in places]),
            "note": "; ".join(filter(None, notes)) or None,
        }

    def _choice(self, choices: Choices, row: Row, text: str, image: list[int], room: int) -> list[int] | None:
        """The candidates listed, if there are any and they fit."""
        if not (candidates := choices.of(row)):
            return None
        (ids,) = self.tokenize([choice_text(text, row["mention"], candidates)])
        return [*image, *ids] if len(ids) <= room else None

    def _cut(self, row: Row, room: int) -> str | None:
        at = (row["start"] or 0, row["end"] or 0)
        return cut(self.tokenizer, row["text"], at, room, lambda part: query_text(part, row["mention"]))

    def _example(self, row: int) -> tuple[Ids, int]:
        """The example's picture reference and token ids; and how many tokens they take."""
        image = [image_of(row)] if self.images and self.bank.has_image(row) else []
        ids = np.concatenate([np.array(image, np.int32), self.bank.tokens(row)])
        return ids, len(ids) + len(image) * (self.prefix - 1)

    def _joined(self, rows: Sequence[int]) -> Ids:
        return np.concatenate([_NOTHING, *(self.example(row)[0] for row in rows)])

    def _shortened(self, row: int, room: int) -> list[int]:
        """As `_example`, with the text cut to `room` tokens; empty if nothing fits."""
        bank, image = self.bank, [i for i in self.example(row)[0][:1].tolist() if i < 0]
        text, mention, target = bank.text(row), bank.mention(row), bank.target(row)
        at = place(mention, text) or (0, 0)
        room -= len(image) * self.prefix
        part = cut(self.tokenizer, text, at, room, lambda part: demonstration_text(part, mention, target))
        return [*image, *self.tokenize([demonstration_text(part, mention, target)])[0]] if part else []


def _room(workspace: Workspace, configured: int) -> int:
    """Tokens of a prompt that leave room for the longest name. Raises ValueError if there is no room for a
    question."""
    longest, names = longest_context(workspace.language_model), workspace.tree.depth
    room = min(configured, longest) - names
    if room < _LEAST:
        raise Mistake(
            f"the knowledge base's longest name has {names:,} tokens, and generate.length is {configured:,}: "
            + (
                f"set generate.length to {names + _LEAST:,} or more"
                if names + _LEAST <= longest
                else f"the language model takes {longest:,}; build the workspace again: names of more than "
                "bank.longest_name tokens are left out"
            )
        )
    return room
