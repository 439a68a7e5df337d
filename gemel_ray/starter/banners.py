"""Pictures that no model has seen: banners of invented lands, to measure training with.

    python -m gemel_ray.starter.banners FOLDER

A land has one pattern in three colours; each picture of it is hung a little differently. Only the picture
says which land is meant: the captions are the same for all. Everything is drawn from a seed.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw, ImageEnhance

from gemel_ray.records import Row

SIZE = (240, 160)
_COLOURS = ("#c62828", "#1565c0", "#2e7d32", "#f9a825", "#ffffff", "#212121", "#6a1b9a", "#ef6c00")
_SYLLABLES = ("va", "rim", "ko", "dal", "esh", "tu", "lor", "mi", "zan", "pe", "gru", "nol", "sy", "bar")
_CAPTIONS = (
    ("The banner of {} over the harbour.", "this land"),
    ("Sailors of {} on the quay before they left.", "their land"),
    ("A delegation from {} arrived in the morning.", "that country"),
    ("In the stands they waved the colours of {} all evening.", "their country"),
)
Draw = Callable[[ImageDraw.ImageDraw, tuple[str, str, str]], None]


def write(folder: Path, lands: int = 150, each: int = 6, dev: int = 96, seed: int = 0) -> None:
    """entities.jsonl, train.parquet (`each` documents of every land) and dev.parquet (`dev` others)."""
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    names = _names(lands, rng)
    looks = rng.sample([*itertools.product(_PATTERNS, itertools.permutations(_COLOURS, 3))], lands)
    entities = [{"id": f"L{i}", "name": name} for i, name in enumerate(names)]
    (folder / "entities.jsonl").write_text("\n".join(map(json.dumps, entities)) + "\n")
    for part, wanted in (("train", [*range(lands)] * each), ("dev", rng.choices(range(lands), k=dev))):
        rows = [_document(f"{part}-{n}", names[i], looks[i], rng) for n, i in enumerate(wanted)]
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{part}.parquet")


def _names(count: int, rng: random.Random) -> list[str]:
    found: dict[str, None] = {}
    while len(found) < count:
        found["".join(rng.choices(_SYLLABLES, k=3)).capitalize()] = None
    return list(found)


def _document(number: str, name: str, look: tuple[Draw, tuple[str, str, str]], rng: random.Random) -> Row:
    caption, mention = rng.choice(_CAPTIONS)
    start = caption.index("{")
    asked = {"start": start, "end": start + len(mention), "target": name}
    picture = _hung(*look, rng)
    return {"id": number, "text": caption.format(mention), "image": picture, "mentions": [asked]}


def _hung(pattern: Draw, colours: tuple[str, str, str], rng: random.Random) -> bytes:
    """A picture of the banner: turned, lit and placed at random."""
    banner = Image.new("RGB", SIZE)
    pattern(ImageDraw.Draw(banner), colours)
    width = rng.randint(120, 180)
    small = banner.resize((width, width * 2 // 3))
    small = ImageEnhance.Brightness(small).enhance(rng.uniform(0.7, 1.2))
    turned = small.convert("RGBA").rotate(
        rng.uniform(-12, 12), expand=True, resample=Image.Resampling.BILINEAR
    )
    wall = Image.new("RGB", (224, 224), tuple(rng.randint(90, 190) for _ in range(3)))
    wall.paste(turned, (rng.randint(0, max(0, 224 - turned.width)), rng.randint(0, 60)), turned)
    out = io.BytesIO()
    wall.save(out, "JPEG", quality=88)
    return out.getvalue()


def _across(draw: ImageDraw.ImageDraw, colours: tuple[str, str, str]) -> None:
    for i, colour in enumerate(colours):
        draw.rectangle((0, i * 54, 240, i * 54 + 54), colour)


def _upright(draw: ImageDraw.ImageDraw, colours: tuple[str, str, str]) -> None:
    for i, colour in enumerate(colours):
        draw.rectangle((i * 80, 0, i * 80 + 80, 160), colour)


def _cross(draw: ImageDraw.ImageDraw, colours: tuple[str, str, str]) -> None:
    draw.rectangle((0, 0, 240, 160), colours[0])
    for wide, colour in ((28, colours[1]), (12, colours[2])):
        draw.rectangle((80 - wide, 0, 80 + wide, 160), colour)
        draw.rectangle((0, 80 - wide, 240, 80 + wide), colour)


def _disc(draw: ImageDraw.ImageDraw, colours: tuple[str, str, str]) -> None:
    draw.rectangle((0, 0, 240, 80), colours[0])
    draw.rectangle((0, 80, 240, 160), colours[1])
    draw.ellipse((75, 35, 165, 125), colours[2])


def _wedge(draw: ImageDraw.ImageDraw, colours: tuple[str, str, str]) -> None:
    draw.rectangle((0, 0, 240, 80), colours[0])
    draw.rectangle((0, 80, 240, 160), colours[1])
    draw.polygon(((0, 0), (110, 80), (0, 160)), colours[2])


def _sash(draw: ImageDraw.ImageDraw, colours: tuple[str, str, str]) -> None:
    draw.polygon(((0, 0), (240, 0), (0, 160)), colours[0])
    draw.polygon(((240, 0), (240, 160), (0, 160)), colours[1])
    draw.line((0, 160, 240, 0), colours[2], 40)


_PATTERNS: tuple[Draw, ...] = (_across, _upright, _cross, _disc, _wedge, _sash)


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("folder", type=Path)
    write(options.parse_args().folder)
