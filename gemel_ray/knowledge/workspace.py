"""A WORKSPACE: the folder with all knowledge for linking, to be copied and memory-mapped anywhere.

    workspace.json   what it was made from and with; settings it carries
    tree/            prefix tree of the entities' names       entities.arrow   the entities
    bank/            demonstrations, tokenised, with features  vectors/         their Qdrant shard
    mapper.safetensors   the feature mapper, if there is one
    ranking/         names, examples and descriptions indexed, and the ranker
    features/        precomputed features of pictures, by key (import-gemel)
    versions/        later versions, by gemel-ray kb: see versions.py
    cache/, training/    features of pictures and encoded examples; training's checkpoint, curve and logs

It records the revisions of its models and refuses others.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from gemel_ray.errors import Mistake, WorkspaceError
from gemel_ray.knowledge import vector_stores, versions
from gemel_ray.knowledge.bank import Bank
from gemel_ray.knowledge.entities import Entities
from gemel_ray.knowledge.prefix_tree import PrefixTree, Tokenize
from gemel_ray.knowledge.versions import Facts, read_facts
from gemel_ray.models.encoders import Clip, MentionEncoder, load_tokenizer, tokenize
from gemel_ray.models.revision import revision
from gemel_ray.settings import Models
from gemel_ray.settings import Vectors as Options

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from gemel_ray.knowledge.vectors import Vectors
    from gemel_ray.models.mapper import FeatureMapper

_REBUILD = {
    "language": "the prefix tree and the demonstrations are in its tokens",
    "clip": "the demonstrations' pictures are encoded by it",
    "clip_feature": "the demonstrations' pictures are encoded so",
    "mention_encoder": "the demonstrations' mentions are encoded by it",
    "mention_pooling": "the demonstrations' mentions are encoded so",
    "end_of_name": "the prefix tree's names end with it",
}


def resolved(models: Models) -> dict[str, str]:
    """The models' folders or hub names; the starter's are prepared."""
    from gemel_ray.starter import models as starter

    ready: dict[str, Callable[[], Path]] = {
        "language": starter.language_model,
        "clip": starter.clip,
        "mention_encoder": starter.mention_encoder,
    }
    names: dict[str, str] = asdict(models)
    return {k: str(ready[k]()) if k in ready and v == "starter" else v for k, v in names.items()}


def revisions(names: dict[str, str], whole: bool = True) -> dict[str, str]:
    """The revisions of the resolved models: see models/revision.py."""
    models = ("language", "clip", "mention_encoder")
    return {k: revision(v, whole) if k in models else v for k, v in names.items()}


class Sections(Protocol):
    """The part of a configuration that a workspace needs: its models, and where vectors are."""

    @property
    def models(self) -> Models: ...
    @property
    def vectors(self) -> Options: ...


class _Sections(NamedTuple):
    models: Models
    vectors: Options


def with_short_wait(sections: Sections) -> Sections:
    """The sections for a service, whose callers do not wait for a server as long as a job does."""
    return _Sections(sections.models, vector_stores.with_short_wait(sections.vectors))


class Workspace:
    """One version of a workspace's knowledge, `knowledge`, opened with a configuration. Everything in it is
    loaded on first use."""

    def __init__(
        self,
        folder: Path,
        sections: Sections,
        facts: Facts,
        knowledge: str = versions.FIRST,
        inside: Path | None = None,  # its folder while it is being made
    ) -> None:
        self.folder, self.facts, self.knowledge = folder, facts, knowledge
        self.sections: Sections = _Sections(sections.models, sections.vectors)
        self.inside = inside or versions.folder(folder, knowledge)
        self.mapper_file = folder / "mapper.safetensors"
        self._models, self._expected = resolved(sections.models), 0

    @classmethod
    def open(cls, folder: Path, sections: Sections, knowledge: str | None = None) -> Workspace:
        """Open the version `knowledge`, by default the one that is current now. Raises WorkspaceError."""
        knowledge = knowledge or versions.current(folder)
        workspace = cls(folder, sections, read_facts(folder, knowledge), knowledge)
        workspace.check_models()
        vector_stores.check(folder, workspace.facts, sections.vectors)
        return workspace

    def at(self, knowledge: str) -> Workspace:
        """Another version, opened in the same way. Raises WorkspaceError."""
        return Workspace.open(self.folder, self.sections, knowledge)

    def before_training(self, prefix: int) -> Workspace:
        """The workspace as it will be with a mapper: pictures take `prefix` tokens of a prompt."""
        made = copy(self)
        made._expected = prefix
        return made

    def ask(self, say: Callable[[str], None]) -> None:
        """Check, before any work, that its Qdrant server, if it has one, answers and has its vectors."""
        vector_stores.ask(self.folder, self.facts, self.sections.vectors, say)

    def check_models(self) -> None:
        """Raise WorkspaceError if it was made with other models than the configuration's."""
        now, made = revisions(self._models), self.facts["revisions"]
        if any(now[name] != made[name] for name in _REBUILD):  # or recorded by the ends of large files alone
            before = revisions(self._models, whole=False)
            now = {name: b if b == made[name] else now[name] for name, b in before.items()}
        for name in (name for name in _REBUILD if now[name] != made[name]):
            then, configured = self.facts["models"][name], getattr(self.sections.models, name)
            raise WorkspaceError(
                f"{self.folder} was built with models.{name} = {then} ({made[name]}), "
                f"but the configuration has {configured} ({now[name]}): "
                f"{_REBUILD[name]}. Build the workspace again (gemel-ray build), or set models.{name} back."
            )
        mapper = self.sections.models.mapper
        if mapper not in ("auto", self.facts["models"].get("mapper")):
            its = "another feature mapper" if self.mapper_file.exists() else "no feature mapper"
            raise WorkspaceError(
                f"{self.folder} has {its}, and models.mapper = {mapper} changes nothing: only a build reads "
                "it. Leave it out here. With assemble.images=false prompts have no pictures; another mapper "
                "comes from gemel-ray train, or from gemel-ray build with models.mapper"
            )

    @property
    def version(self) -> str:
        """The version of knowledge, models and mapper, for fingerprints."""
        mapper = revision(str(self.mapper_file)) if self.mapper_file.exists() else "none"
        return f"{self.facts['version']}-{mapper}"

    @property
    def language_model(self) -> str:
        return self._models["language"]

    @property
    def tree_folder(self) -> Path:
        return self.inside / "tree"

    @cached_property
    def tree(self) -> PrefixTree:
        return PrefixTree.open(self.tree_folder)

    @cached_property
    def entities(self) -> Entities:
        return Entities.open(self.inside / "entities.arrow")

    @cached_property
    def bank(self) -> Bank:
        return Bank.open(self.inside / "bank")

    @property
    def ranking_folder(self) -> Path:
        return self.inside / "ranking"

    @property
    def ranks(self) -> bool:
        """Whether it has a ranker, fitted on its examples or the default one (gemel_ray/ranking)."""
        return (self.ranking_folder / "ranker.safetensors").exists()

    @cached_property
    def features(self) -> Features | None:
        """Precomputed features of pictures, by key (import-gemel)."""
        folder = self.inside / "features"
        return Features.open(folder) if folder.exists() else None

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.language_model)

    @cached_property
    def tokenize(self) -> Tokenize:
        """Gives the token ids of each text, without BOS; special tokens in a text are plain text."""
        return partial(tokenize, self.tokenizer)

    @property
    def prefix(self) -> int:
        """Tokens that a picture takes in a prompt; 0 without a mapper: then prompts have no pictures."""
        from gemel_ray.models.mapper import prefix_of

        return prefix_of(self.mapper_file) if self.mapper_file.exists() else self._expected

    def mapper(self) -> FeatureMapper | None:
        """The feature mapper, loaded, if there is one."""
        from gemel_ray.models.mapper import FeatureMapper

        return FeatureMapper.load(self.mapper_file)[0] if self.mapper_file.exists() else None

    def clip(self, device: str, dtype: str) -> Clip:
        return Clip(
            self._models["clip"], feature=self.sections.models.clip_feature, dtype=dtype, device=device
        )

    def picture_cache(self, dtype: str) -> Path:
        """The file for features of pictures by this CLIP in this dtype."""
        of = (self.facts["revisions"]["clip"], self.sections.models.clip_feature, dtype)
        name = hashlib.blake2b(repr(of).encode(), digest_size=8).hexdigest()
        return self.folder / "cache" / f"pictures-{name}.sqlite"

    def mention_encoder(self, device: str, dtype: str) -> Callable[[list[str]], npt.NDArray[np.float32]]:
        """Unit vectors [n, width] of mention strings."""
        if self._models["mention_encoder"] == "clip":
            return self.clip(device, dtype).encode_texts
        pooling = self.sections.models.mention_pooling
        return MentionEncoder(
            self._models["mention_encoder"], pooling=pooling, dtype=dtype, device=device
        ).encode

    def vectors(self, *, names: bool = True) -> Vectors:
        """The demonstrations' vectors, opened for reading, with those of the knowledge base's `names`."""
        written_for = self.facts.get("vectors", versions.FIRST)
        folder = versions.folder(self.folder, written_for) / "vectors"
        return vector_stores.opened(self.sections.vectors, self.facts, self.bank, folder, names)

    def new_vectors(self, widths: dict[str, int]) -> Vectors:
        """An empty store for the demonstrations' vectors, to be filled once."""
        return vector_stores.created(self.sections.vectors, self.facts, self.inside / "vectors", widths)


# Precomputed features of pictures, by the picture's key (GEMEL's img_url or img_name), memory-mapped.
#
# Keys are compared in HDF5's spelling, since they come from there: "https://a//b" and "https:/a/b" are equal.


class Features:
    """A read-only view of the files that `write` made."""

    def __init__(self, keys: npt.NDArray[np.uint64], vectors: npt.NDArray[np.float32]) -> None:
        self._keys, self.vectors = keys, vectors

    @classmethod
    def open(cls, folder: Path) -> Features:
        """Map the features in `folder`."""
        keys, vectors = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("keys", "vectors"))
        return cls(keys, vectors)

    def __len__(self) -> int:
        return len(self._keys)

    def of(self, key: str) -> npt.NDArray[np.float32] | None:
        """The feature, float32 [feature], or None if the key is unknown."""
        wanted = _hash(key)
        at = int(np.searchsorted(self._keys, wanted))
        return self.vectors[at] if at < len(self._keys) and self._keys[at] == wanted else None


def write(keys: Sequence[str], vectors: npt.NDArray[np.float32], folder: Path) -> Features:
    """Write the features, float32 [pictures, feature], and open them. Raises ValueError for a double key."""
    folder.mkdir(parents=True, exist_ok=True)
    hashes = np.array([_hash(key) for key in keys], np.uint64)
    order = np.argsort(hashes)
    if len(np.unique(hashes)) < len(hashes):
        raise Mistake("two pictures have the same key")
    np.save(folder / "keys.npy", hashes[order])
    np.save(folder / "vectors.npy", vectors[order])
    return Features.open(folder)


def _hash(key: str) -> np.uint64:
    spelled = re.sub("/+", "/", key).strip("/")
    return np.uint64(int.from_bytes(hashlib.blake2b(spelled.encode(), digest_size=8).digest()))
