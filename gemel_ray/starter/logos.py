"""The logo set: captions with a picture, whose mention only the picture resolves.

`python -m gemel_ray.starter.logos [--output FOLDER] [--seed N]` writes
entities.jsonl (the knowledge base) and train, dev and test.parquet (documents
`id, text, image, mentions`). Test documents are called test-seen-... or, where
no picture of their entity is in train or dev, test-unseen-...
Equal seeds give equal data.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.random import Generator

from gemel_ray.records import Row
from gemel_ray.starter.brands import Brand, brands
from gemel_ray.starter.rendering import jpeg, render

# Captions for the logo set, in the style of photo and news captions.
#
# A caption has one mention, and says nothing else about the entity: only the picture shows which member of a
# family is meant. `caption(mention, rng)` returns the text and the mention's place in it.


GENERIC = (
    "the company", "this brand", "the service", "this product", "the maker",
    "this firm", "the business", "the label",
)  # fmt: skip

TEMPLATES = (
    "{mention} has redesigned its app icon again.",
    "A sticker of {mention} on the back of a laptop.",
    "The sign of {mention} above the entrance of the new office.",
    "Visitors queue at the stand of {mention} at the trade fair.",
    "A mug with the logo of {mention}, left behind in a meeting room.",
    "Shares rose on Tuesday after {mention} presented its figures.",
    "A slide about {mention} at the autumn conference.",
    "The badge of {mention} photographed in evening light.",
    "According to a spokesperson, {mention} will hire two hundred people this year.",
    "A student wears a shirt with the emblem of {mention}.",
    "The home screen shows {mention} in the bottom row.",
    "Fans of {mention} collect enamel pins like this one.",
    "Regulators are looking into {mention}, as the paper reported last week.",
    "A neon sign advertises {mention} at a street corner.",
    "Screenshot from the day {mention} went offline for six hours.",
    "An early sketch of the logo that {mention} still uses.",
    "A banner of {mention} hangs over the hall.",
    "The new version of {mention} came out this morning.",
    "A cake for the anniversary of {mention}, baked by a colleague.",
    "In the window, a poster of {mention} fades in the sun.",
    "Our reviewer spent a week with {mention} and kept notes.",
    "A delivery van painted in the colours of {mention}.",
    "Many users say they could not work without {mention}.",
    "The logo of {mention}, cut out of coloured paper.",
    "A billboard for {mention} near the central station.",
    "Reporters wait outside the headquarters of {mention}.",
    "A tutorial on {mention} drew a full room on the second day.",
    "This tile on the start page opens {mention}.",
    "A keyring from {mention}, handed out at the door.",
    "Critics praise the plain look that {mention} gave itself.",
    "A flag with the mark of {mention} on a windy afternoon.",
    "Photographed at the launch party of {mention}.",
)


def caption(mention: str, rng: Generator) -> tuple[str, int, int]:
    """A caption around the mention, and the mention's span in characters."""
    before, after = TEMPLATES[int(rng.integers(len(TEMPLATES)))].split("{mention}")
    if not before:
        mention = mention[0].upper() + mention[1:]
    return before + mention + after, len(before), len(before) + len(mention)


DATA = Path(__file__).parent / "data"
SEED = 7
_MEMBERS, _SINGLES = 14, 10  # brands without a picture in train or dev: of families, and others

T = TypeVar("T")

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("text", pa.string()),
        ("image", pa.binary()),
        (
            "mentions",
            pa.list_(
                pa.struct(
                    [
                        ("start", pa.int32()),
                        ("end", pa.int32()),
                        ("target", pa.string()),
                    ]
                )
            ),
        ),
    ]
)


@dataclass(frozen=True)
class Part:
    """One part of the set: the number of documents for an entity, and the wording of mentions."""

    name: str
    number: int  # makes the parts' random states differ
    per_member: float  # documents for an entity of a family; a fraction is drawn at random
    per_single: float
    family_word: float = 0.6  # share of family documents that say "Google", not "the company"
    full_name: float = 0.15  # share of single-brand documents that give the name itself


SEEN_PARTS = (
    Part("train", 1, per_member=10, per_single=5),
    Part("dev", 2, per_member=1, per_single=0.3),
    Part("test-seen", 3, per_member=3.4, per_single=0.45, family_word=0.85),
)
UNSEEN_PART = Part("test-unseen", 4, per_member=3, per_single=3)


def main() -> None:
    """Write the whole set into a folder."""
    parser = argparse.ArgumentParser(description="Make the logo set.")
    parser.add_argument("--output", type=Path, default=DATA, help="folder to write into")
    parser.add_argument("--seed", type=int, default=SEED)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    for name, rows in make(options.seed).items():
        table = pa.Table.from_pylist(rows, schema=SCHEMA)
        path = options.output / f"{name}.parquet"
        pq.write_table(table, path, compression="zstd", compression_level=19)
        print(f"{path.name}: {len(rows)} documents, {path.stat().st_size / 1e6:.2f} MB")
    write_entities(options.output / "entities.jsonl")


def make(seed: int = SEED) -> dict[str, list[Row]]:
    """The documents of train, dev and test."""
    unseen = held_out(seed)
    seen = [brand for brand in brands() if brand not in unseen]
    train, dev, test_seen = (documents(part, seen, seed) for part in SEEN_PARTS)
    return {
        "train": train,
        "dev": dev,
        "test": test_seen + documents(UNSEEN_PART, unseen, seed),
    }


def write_entities(path: Path) -> None:
    """The knowledge base: every entity of the set, seen in training or not."""
    with path.open("w", encoding="utf-8") as file:
        for brand in brands():
            entity = {"id": brand.id, "name": brand.name}
            file.write(json.dumps(entity, ensure_ascii=False) + "\n")
    print(f"{path.name}: {len(brands())} entities")


def held_out(seed: int = SEED) -> list[Brand]:
    """The brands without any picture in train or dev.

    At most a third of a family, none from small families, and never the brand
    whose name is the family's word: its mention would be its name.
    """
    rng = np.random.default_rng([seed, 0])
    families: dict[str, list[Brand]] = {}
    for brand in brands():
        if brand.family:
            families.setdefault(brand.family, []).append(brand)
    eligible = [
        brand
        for family in families.values()
        if len(family) >= 4
        for brand in shuffled((one for one in family if one.name != one.family), rng)[: len(family) // 3]
    ]
    alone = [brand for brand in brands() if not brand.family]
    return shuffled(eligible, rng)[:_MEMBERS] + shuffled(alone, rng)[:_SINGLES]


def documents(part: Part, chosen: list[Brand], seed: int) -> list[Row]:
    """A part's documents in random order, numbered."""
    rng = np.random.default_rng([seed, part.number])
    rows = shuffled(worded(part, chosen, rng), rng)
    return [{"id": f"{part.name}-{i:04d}"} | row for i, row in enumerate(rows, 1)]


def worded(part: Part, chosen: list[Brand], rng: Generator) -> Iterator[Row]:
    """Each brand's documents in turn, without ids."""
    for brand in chosen:
        expected = part.per_member if brand.family else part.per_single
        for _ in range(int(expected + rng.random())):
            text, start, end = caption(mention(part, brand, rng), rng)
            yield {
                "text": text,
                "image": jpeg(render(brand, rng), rng),
                "mentions": [{"start": start, "end": end, "target": brand.name}],
            }


def mention(part: Part, brand: Brand, rng: Generator) -> str:
    """The words for the brand in a caption."""
    if brand.family and rng.random() < part.family_word:
        return brand.family
    if not brand.family and rng.random() < part.full_name:
        return brand.name
    return GENERIC[int(rng.integers(len(GENERIC)))]


def shuffled(things: Iterable[T], rng: Generator) -> list[T]:
    """The things in random order."""
    ordered = list(things)
    return [ordered[i] for i in rng.permutation(len(ordered))]


if __name__ == "__main__":
    main()
