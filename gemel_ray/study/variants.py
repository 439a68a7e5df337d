"""The documents of a study, and variants of them with errors: for measuring how robust a linker is.

Documents and mentions keep their order and targets, so a variant serves as gold, too. Random choices depend
on the document's id alone: they are the same in every run.
"""

from __future__ import annotations

import hashlib
import io
import re
import string
from collections.abc import Callable, Iterable
from pathlib import Path
from unicodedata import combining, normalize

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gemel_ray import storage
from gemel_ray.errors import Mistake
from gemel_ray.pictures.images import read_image
from gemel_ray.pictures.limits import ImageError
from gemel_ray.readers import documents
from gemel_ray.records import Row

_SHARE = 0.1  # of a caption's letters that are mistyped
_QUALITY, _SCALE = 5, 4  # of a damaged picture: JPEG quality, and the factor by which it is shrunk
_SOUNDS = {
    "sch": "sh", "ph": "f", "ck": "k", "ch": "k", "c": "k", "w": "v", "th": "t", "oe": "ö", "ae": "ä",
}  # fmt: skip
_PICTURE = ("image", "image_address", "image_key")


def sample(files: Iterable[str], limit: int, seed: int) -> list[Row]:
    """At most `limit` documents, drawn at random, of those that have a mention with a target and all their
    mentions in place; all of them for 0."""
    rows = [
        row
        for file in files
        for table in documents(file)
        for row in table.to_pylist()
        if not row["error"] and any(m["target"] for m in row["given"] or ()) and _placed(row)
    ]
    if not rows:
        raise Mistake("the gold files have no mention with a target")
    order = np.random.default_rng(seed).permutation(len(rows))[: limit or None]
    return [rows[i] for i in sorted(order)]


def others(files: Iterable[str], measured: Iterable[Row]) -> list[Row]:
    """The documents of `files` with all their mentions in place, but for those whose text is `measured`."""
    texts = {row["text"] for row in measured}
    rows = [row for file in files for table in documents(file) for row in table.to_pylist()]
    return [
        row for row in rows if row["text"] not in texts and not row["error"] and row["given"] and _placed(row)
    ]


def digest(rows: Iterable[Row]) -> str:
    """Different for other documents."""
    made = hashlib.blake2b(digest_size=6)
    for row in rows:
        made.update(f"{row['document_id']}\0{row['text']}\0".encode())
    return made.hexdigest()


def _placed(row: Row) -> bool:
    """Whether all mentions have places: without one, a mention could not be found in a changed text."""
    return all(m["start"] is not None for m in row["given"])


def have_pictures(rows: Iterable[Row], *, features: bool = False) -> bool:
    """Whether any document has a picture. A key is one only where the workspace has `features` by keys."""
    names = _PICTURE if features else _PICTURE[:2]
    return any(row[name] is not None for row in rows for name in names)


def write(rows: list[Row], variant: str, path: Path) -> None:
    """Write the documents, changed as `variant` says, in this project's form."""
    changed = VARIANTS[variant](rows)
    table = [
        {
            "id": row["document_id"],
            "text": row["text"],
            "image": {"bytes": row["image"], "path": row["image_address"]},
            "image_key": row["image_key"],
            "mentions": [{k: m[k] for k in ("start", "end", "target", "target_id")} for m in row["given"]],
        }
        for row in changed
    ]
    with storage.replacing(path) as aside:
        pq.write_table(pa.Table.from_pylist(table, SCHEMA), aside)


_MENTION = pa.struct(
    [("start", pa.int32()), ("end", pa.int32()), ("target", pa.string()), ("target_id", pa.string())]
)
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("text", pa.string()),
        ("image", pa.struct([("bytes", pa.large_binary()), ("path", pa.string())])),
        ("image_key", pa.string()),
        ("mentions", pa.list_(_MENTION)),
    ]
)


def shuffled(rows: list[Row]) -> list[Row]:
    """Each document with the picture of the next one."""
    moved = rows[1:] + rows[:1]
    return [row | {name: other[name] for name in _PICTURE} for row, other in zip(rows, moved, strict=True)]


def blind(rows: list[Row]) -> list[Row]:
    """The documents without pictures."""
    return [row | dict.fromkeys(_PICTURE) for row in rows]


def damaged(rows: list[Row]) -> list[Row]:
    """Pictures shrunk to a quarter, enlarged again and saved as a poor JPEG. A picture that cannot be read is
    not changed; precomputed features cannot be damaged, and are left out."""
    return [row | _damaged(row) | {"image_key": None} for row in rows]


def _damaged(row: Row) -> Row:
    try:
        image = read_image(row["image"], row["image_address"])
    except ImageError:
        return {}
    small = image.resize((max(8, image.width // _SCALE), max(8, image.height // _SCALE)))
    buffer = io.BytesIO()
    small.resize(image.size).save(buffer, "JPEG", quality=_QUALITY)
    return {"image": buffer.getvalue(), "image_address": None}


def caption_typos(rows: list[Row]) -> list[Row]:
    """A tenth of the letters outside mentions replaced by others."""
    changed = []
    for row in rows:
        inside = {i for m in row["given"] if not m["error"] for i in range(m["start"], m["end"])}
        rng = _drawing(row)
        places = [i for i, c in enumerate(row["text"]) if c.isalpha() and i not in inside]
        changed.append(
            row | {"text": _mistyped(row["text"], [i for i in places if rng.random() < _SHARE], rng)}
        )
    return changed


def mention_typos(rows: list[Row]) -> list[Row]:
    """One letter of every mention replaced by another; two letters if it has more than eight."""
    changed = []
    for row in rows:
        text, rng = row["text"], _drawing(row)
        for mention in row["given"]:
            if mention["error"]:
                continue
            letters = [i for i in range(mention["start"], mention["end"]) if text[i].isalpha()]
            count = min(len(letters), 1 + (len(letters) > 8))
            text = _mistyped(text, rng.choice(letters, count, replace=False) if count else [], rng)
        changed.append(row | {"text": text})
    return changed


def respelled(rows: list[Row]) -> list[Row]:
    """Mentions as another language might spell them, by letters that sound alike. In a mention without such
    letters the first small vowel is doubled."""
    return _renamed(rows, _respelled)


def last_words(rows: list[Row]) -> list[Row]:
    """Mentions of several words shortened to the last one: family names."""
    return _renamed(rows, lambda words: words.split()[-1])


def initials(rows: list[Row]) -> list[Row]:
    """Mentions of several words shortened to their first letters."""
    return _renamed(rows, lambda words: "".join(w[0] for w in words.split()) if " " in words else words)


def slips(rows: list[Row]) -> list[Row]:
    """One letter of every mention, not the first, left out, doubled or swapped with the next."""
    return _renamed(rows, _slipped)


def without_accents(rows: list[Row]) -> list[Row]:
    """Mentions without accents."""
    return _renamed(rows, lambda words: "".join(c for c in normalize("NFKD", words) if not combining(c)))


def capitals(rows: list[Row]) -> list[Row]:
    """Mentions in capitals."""
    return _renamed(rows, str.upper)


def _slipped(words: str) -> str:
    rng = np.random.default_rng(int.from_bytes(hashlib.blake2b(words.encode(), digest_size=8).digest()))
    pairs = [(i, words[i], words[i + 1]) for i in range(1, len(words) - 1)]
    places = [i for i, one, two in pairs if one.isalpha() and two.isalpha() and one != two]
    if not places:
        return words
    at = int(rng.choice(places))
    one, two = words[at], words[at + 1]
    changed = (two, one + one + two, two + one)[int(rng.integers(3))]
    return f"{words[:at]}{changed}{words[at + 2 :]}"


def _respelled(words: str) -> str:
    changed = words
    for one, other in _SOUNDS.items():
        changed = changed.replace(one, other).replace(one.capitalize(), other.capitalize())
    return changed if changed != words else re.sub(r"([aeiouy])", r"\1\1", words, count=1)


def _renamed(rows: list[Row], rename: Callable[[str], str]) -> list[Row]:
    """Replace every mention, and move the places after it; documents with overlapping mentions do not
    change."""
    changed = []
    for row in rows:
        text, moved, places = row["text"], 0, dict[int, tuple[int, int]]()
        order = sorted(range(len(row["given"])), key=lambda i: row["given"][i]["start"])
        ends = [row["given"][i]["end"] for i in order]
        starts = [row["given"][i]["start"] for i in order]
        if any(end > start for end, start in zip(ends, starts[1:], strict=False)):
            changed.append(row)
            continue
        for i, start, end in zip(order, starts, ends, strict=True):
            new = rename(row["text"][start:end])
            text = f"{text[: start + moved]}{new}{text[end + moved :]}"
            places[i] = (start + moved, start + moved + len(new))
            moved += len(new) - (end - start)
        given = [m | dict(zip(("start", "end"), places[i], strict=True)) for i, m in enumerate(row["given"])]
        changed.append(row | {"text": text, "given": given})
    return changed


def _mistyped(text: str, places: Iterable[int], rng: np.random.Generator) -> str:
    letters = list(text)
    for place in places:
        others = [c for c in string.ascii_lowercase if c != letters[place].lower()]
        other = str(rng.choice(others))
        letters[place] = other.upper() if letters[place].isupper() else other
    return "".join(letters)


def _drawing(row: Row) -> np.random.Generator:
    seed = hashlib.blake2b(row["document_id"].encode(), digest_size=8).digest()
    return np.random.default_rng(int.from_bytes(seed))


VARIANTS: dict[str, Callable[[list[Row]], list[Row]]] = {
    "clean": lambda rows: rows,
    "shuffled": shuffled,
    "blind": blind,
    "damaged": damaged,
    "caption-typos": caption_typos,
    "mention-typos": mention_typos,
    "mention-slips": slips,
    "respelled": respelled,
    "without-accents": without_accents,
    "capitals": capitals,
    "last-word": last_words,
    "initials": initials,
}
