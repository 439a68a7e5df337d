"""How long names and examples may be, in the language model's tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from gemel_ray.readers.fields import short
from gemel_ray.readers.mentions import place
from gemel_ray.stages.assemble import demonstration_text
from gemel_ray.stages.budget import cut

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Refusal = Callable[[str], str | None]  # why a name is not taken, or None


def longest_name(tokenize: Callable[[list[str]], list[list[int]]], most: int) -> Refusal:
    """Refuses names of more than `most` tokens: beside one of thousands no prompt would have room."""

    def refusal(name: str) -> str | None:
        if len(name.encode()) <= most:  # no token is less than a byte
            return None
        count = len(tokenize([name])[0])
        if count <= most:
            return None
        return f"the name {short(name)} has {count:,} tokens, more than bank.longest_name {most:,}"

    return refusal


def example_tokens(tokenizer: Tokenizer, row: dict[str, str], most: int) -> list[int] | None:
    """The tokens of an example (its text, mention and target) with its text cut around its mention; None
    where not even mention and target are within `most`."""
    text, mention = row["text"], row["mention"]

    def piece(part: str) -> str:
        return demonstration_text(part, mention, row["target"])

    part = cut(tokenizer, text, place(mention, text) or (0, 0), most, piece)
    return None if part is None else tokenizer.encode(piece(part), add_special_tokens=False).ids


def in_words(longer: Sequence[str], most: int) -> str:
    """What a build says of examples that were cut: their ids."""
    more = ", ..." if len(longer) > 3 else ""
    return (
        f"{len(longer):,} examples have more than bank.longest_example {most:,} tokens: their texts were cut "
        f"around the mention ({', '.join(longer[:3])}{more})"
    )
