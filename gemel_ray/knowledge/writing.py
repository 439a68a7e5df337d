"""How a workspace comes into being: whole or not at all, with facts that say what it was made from.

    with new_folder(output) as folder: ...; writer = BankWriter(workspace, made); ...; write_facts(...)

Knows nothing of where entities, examples and vectors come from: build.py makes them with the models,
gemel/importing.py takes them from GEMEL's own files.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from gemel_ray.config import Config
from gemel_ray.knowledge import bank as bank_file
from gemel_ray.knowledge.thumbnails import FILE as THUMBNAILS
from gemel_ray.knowledge.thumbnails import ThumbnailWriter
from gemel_ray.knowledge.workspace import FORMAT, Workspace, revisions
from gemel_ray.models.clip import unit
from gemel_ray.stages.assemble import demonstration_text

_POINTS = 4096


@dataclass
class Made:
    """What a build found, for the report and for workspace.json."""

    rejects: list[str] = field(default_factory=list)
    demonstrations: int = 0
    names: int = 0  # of the knowledge base, shown as examples of their own
    pictures: int = 0
    unknown_targets: int = 0
    multiplicity: dict[str, int] = field(default_factory=dict)  # most rows with one vector: see vectors.py


@contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """A folder to fill; it becomes `output`, in the place of what was there, when the block ends well."""
    output.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    try:
        yield folder
        folder.chmod(0o755)
        if output.exists():
            shutil.rmtree(output)
        folder.rename(output)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_facts(
    folder: Path, config: Config, names: dict[str, str], made: Made, **carried: dict[str, Any]
) -> None:
    """Write workspace.json: what is in the folder, by which models, and the settings it carries (beside its
    models, sections of ray_config.yaml)."""
    models = config.plain()["models"]
    facts: dict[str, Any] = {
        "format": FORMAT,
        "models": models,
        "revisions": revisions(names),
        "demonstrations": made.demonstrations,
        "names": made.names,
        "pictures": made.pictures,
        "multiplicity": made.multiplicity,
        "settings": {"models": {k: v for k, v in models.items() if k != "mapper"}, **carried},
    }
    digest = hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=8)
    inside = ("*.arrow", "tree/*", "bank/*", "features/*")
    for file in sorted(file for pattern in inside for file in folder.glob(pattern)):
        if file.name == THUMBNAILS:
            continue  # no answer depends on them
        with file.open("rb") as content:
            hashlib.file_digest(content, lambda: digest)  # type: ignore[arg-type, return-value]
    facts["version"] = digest.hexdigest()
    (folder / "workspace.json").write_text(json.dumps(facts, indent=2))


class BankWriter:
    """Gathers pictures' features (each once) and streams mention vectors into the store."""

    def __init__(self, workspace: Workspace, made: Made, thumbnails: ThumbnailWriter | None = None) -> None:
        self.workspace, self.made, self.thumbnails = workspace, made, thumbnails
        self.features: list[list[float]] = []
        self.picture_of: dict[bytes, int] = {}
        self.mentions: Counter[str] = Counter()
        self.uses: Counter[int] = Counter()
        self.rows: list[int] = []
        self.mention_vectors: list[npt.NDArray[np.float32]] = []

    def table(self, solved: list[dict[str, Any]]) -> pa.Table:
        """The bank's rows of some solved mentions."""
        pieces = [demonstration_text(r["text"], r["mention"], r["target"]) for r in solved]
        tokens = self.workspace.tokenize(pieces)
        rows = [
            {
                "id": f"{r['document_id']}/{r['mention_id']}",
                "text": r["text"],
                "mention": r["mention"],
                "target": r["target"],
                "tokens": ids,
                "image_row": self._picture(r),
            }
            for r, ids in zip(solved, tokens, strict=True)
        ]
        self.mention_vectors.append(np.array([r["mention_vector"] for r in solved], np.float32))
        self.mentions.update(r["mention"] for r in solved)
        return pa.Table.from_pylist(rows, bank_file.SCHEMA)

    def _picture(self, row: dict[str, Any]) -> int:
        vector = row["image_vector"]
        if vector is None:
            picture = -1
        else:
            picture = self.picture_of.setdefault(np.float32(vector).tobytes(), len(self.features))
            if picture == len(self.features):
                self.features.append(vector)
                if self.thumbnails is not None:
                    self.thumbnails.add(row.get("thumbnail"))
            self.uses[picture] += 1
        self.rows.append(picture)
        return picture

    def pictures(self) -> npt.NDArray[np.float32]:
        """Features of the distinct pictures, float32 [pictures, feature]."""
        return np.array(self.features, np.float32) if self.features else np.empty((0, 1), np.float32)

    def mentions_as_vectors(self) -> npt.NDArray[np.float32]:
        """Of all rows, float32 [rows, width]."""
        return np.concatenate(self.mention_vectors) if self.rows else np.empty((0, 1), np.float32)

    def finish(self, examples: int) -> None:
        """Fill the vector store, and note how many rows share one vector: it makes ties exact. The first
        rows are `examples`, found as mentions; the others, the knowledge base's own, as names."""
        if not self.rows:
            return
        self.made.multiplicity = dict.fromkeys(("mention", "name"), max(self.mentions.values()))
        mentions, features = self.mentions_as_vectors(), unit(self.pictures())
        widths = {"mention": mentions.shape[1]}
        if examples < len(self.rows):
            widths["name"] = mentions.shape[1]
        if len(features):
            widths["image"] = features.shape[1]
            self.made.multiplicity["image"] = max(self.uses.values())
        store = self.workspace.new_vectors(widths)
        padded = np.vstack(
            [features, np.full((1, features.shape[1]), np.nan, np.float32)]
        )  # [-1]: no picture
        pictures = np.array(self.rows)
        for start in range(0, len(pictures), _POINTS):
            rows = np.arange(start, min(start + _POINTS, len(pictures)))
            # Vectors reads a row of NaN as a point without a picture.
            with_image = {"image": padded[pictures[rows]]} if len(features) else {}
            solved = rows[:, None] < examples
            both = {"mention": np.where(solved, mentions[rows], np.nan)}
            if "name" in widths:
                both["name"] = np.where(solved, np.nan, mentions[rows])
            store.add(rows, {n: m.astype(np.float32, copy=False) for n, m in (both | with_image).items()})
        store.finish()
        store.close()
