"""A WORKSPACE: the folder with all knowledge a link needs, to be copied and memory-mapped anywhere.

    workspace.json   what it was made from and with; settings it carries
    tree/            prefix tree of the entities' names       entities.arrow   the entities
    bank/            demonstrations, tokenised, with features  vectors/         their Qdrant shard
    mapper.safetensors   the feature mapper, where there is one
    ranking/         names, examples and descriptions indexed, and the ranker fitted on them
    features/        pictures' features that came ready-made, by key (import-gemel)
    versions/        what gemel-ray kb made of it since: see versions.py
    cache/, training/    features of pictures and encoded examples; training's checkpoint, curve and logs

It knows the models' revisions it was made with and refuses others.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gemel_ray.errors import WorkspaceError
from gemel_ray.knowledge import versions
from gemel_ray.knowledge.bank import Bank
from gemel_ray.knowledge.entities import Entities
from gemel_ray.knowledge.features import Features
from gemel_ray.knowledge.prefix_tree import PrefixTree
from gemel_ray.models.revision import revision
from gemel_ray.models.tokenizer import load_tokenizer, tokenize

if TYPE_CHECKING:
    from PIL.Image import Image
    from tokenizers import Tokenizer

    from gemel_ray.config import Config
    from gemel_ray.engine.prompts import PromptEmbeddings
    from gemel_ray.engine.run import Engine
    from gemel_ray.knowledge.vectors import Vectors
    from gemel_ray.models.clip import Clip
    from gemel_ray.models.remembered import PictureCache
    from gemel_ray.settings import Models

    Watch = Callable[[tuple[bytes | None, str | None], Image], None]  # (bytes, address) and the picture

FORMAT = 1
_REBUILD = {
    "language": "the prefix tree and the demonstrations are in its tokens",
    "clip": "the demonstrations' pictures are encoded by it",
    "clip_feature": "the demonstrations' pictures are encoded so",
    "mention_encoder": "the demonstrations' mentions are encoded by it",
    "mention_pooling": "the demonstrations' mentions are encoded so",
    "end_of_name": "the prefix tree's names end with it",
}


def resolved(models: Models) -> dict[str, str]:
    """The models' folders or hub names, with the starter's made ready."""
    from gemel_ray.starter import models as starter

    ready: dict[str, Callable[[], Path]] = {
        "language": starter.language_model,
        "clip": starter.clip,
        "mention_encoder": starter.mention_encoder,
    }
    names: dict[str, str] = asdict(models)
    return {k: str(ready[k]()) if k in ready and v == "starter" else v for k, v in names.items()}


def revisions(names: dict[str, str], whole: bool = True) -> dict[str, str]:
    """What the resolved models are, for comparing: see models/revision.py."""
    models = ("language", "clip", "mention_encoder")
    return {k: revision(v, whole) if k in models else v for k, v in names.items()}


class Workspace:
    """One version of a workspace's knowledge, `knowledge`, opened under a configuration. Everything in it is
    made on first use."""

    def __init__(
        self,
        folder: Path,
        config: Config,
        facts: dict[str, Any],
        knowledge: str = versions.FIRST,
        inside: Path | None = None,  # where it lies while it is being made
    ) -> None:
        self.folder, self.config, self.facts, self.knowledge = folder, config, facts, knowledge
        self.inside = inside or versions.folder(folder, knowledge)
        self._models = resolved(config.models)
        self.sees = self._mapper_file.exists()  # whether pictures stand in prompts; training says yes before
        self.watch: Watch | None = None  # is shown every picture that Encode decodes

    @classmethod
    def open(cls, folder: Path, config: Config, knowledge: str | None = None) -> Workspace:
        """The version `knowledge`, or the current one, whatever becomes current. Raises WorkspaceError."""
        from gemel_ray.knowledge import homes

        knowledge = knowledge or versions.current(folder)
        workspace = cls(folder, config, read_facts(folder, knowledge), knowledge)
        workspace.check_models()
        homes.check(workspace)
        return workspace

    def check_models(self) -> None:
        """Raises WorkspaceError when it was made with other models than the configuration names."""
        now, made = revisions(self._models), self.facts["revisions"]
        if any(now[name] != made[name] for name in _REBUILD):  # or sealed by large files' ends alone
            before = revisions(self._models, whole=False)
            now = {name: b if b == made[name] else now[name] for name, b in before.items()}
        for name in (name for name in _REBUILD if now[name] != made[name]):
            then, asked = self.facts["models"][name], getattr(self.config.models, name)
            raise WorkspaceError(
                f"{self.folder} was built with models.{name} = {then} ({made[name]}), "
                f"but the configuration has {asked} ({now[name]}): "
                f"{_REBUILD[name]}. Build the workspace again (gemel-ray build), or set models.{name} back."
            )

    @property
    def version(self) -> str:
        """Of the knowledge, the models and the mapper, for fingerprints."""
        mapper = revision(str(self._mapper_file)) if self._mapper_file.exists() else "none"
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
        """Whether a ranker was fitted on the examples (gemel_ray/ranking)."""
        return (self.ranking_folder / "ranker.safetensors").exists()

    @cached_property
    def features(self) -> Features | None:
        """Pictures' features that came ready-made, by key (import-gemel)."""
        folder = self.inside / "features"
        return Features.open(folder) if folder.exists() else None

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.language_model)

    def tokenize(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text alone: no BOS, and no text of an input is taken for a special token."""
        return tokenize(self.tokenizer, texts)

    @property
    def _mapper_file(self) -> Path:
        return self.folder / "mapper.safetensors"

    @cached_property
    def prefix(self) -> int:
        """Tokens that a picture takes in a prompt; before a mapper is trained, as many as it will take."""
        from gemel_ray.models.mapper import prefix_of

        return prefix_of(self._mapper_file) if self._mapper_file.exists() else self.config.train.prefix

    def clip(self, device: str, dtype: str) -> Clip:
        from gemel_ray.models.clip import Clip

        return Clip(self._models["clip"], feature=self.config.models.clip_feature, dtype=dtype, device=device)

    def picture_cache(self, dtype: str, most: int) -> PictureCache:
        """Features of pictures that were encoded before, by this CLIP in this dtype."""
        from gemel_ray.models.remembered import PictureCache

        of = (self.facts["revisions"]["clip"], self.config.models.clip_feature, dtype)
        name = hashlib.blake2b(repr(of).encode(), digest_size=8).hexdigest()
        return PictureCache(self.folder / "cache" / f"pictures-{name}.sqlite", most)

    def mention_encoder(self, device: str, dtype: str) -> Callable[[list[str]], npt.NDArray[np.float32]]:
        """Unit vectors [n, width] of mention strings."""
        if self._models["mention_encoder"] == "clip":
            return self.clip(device, dtype).encode_texts
        from gemel_ray.models.mention_encoder import MentionEncoder

        pooling = self.config.models.mention_pooling
        return MentionEncoder(
            self._models["mention_encoder"], pooling=pooling, dtype=dtype, device=device
        ).encode

    def vectors(self) -> Vectors:
        """The demonstrations' vectors, opened to be read."""
        from gemel_ray.knowledge import homes

        return homes.opened(self)

    def new_vectors(self, widths: dict[str, int]) -> Vectors:
        """An empty store for the demonstrations' vectors, to be filled once."""
        from gemel_ray.knowledge import homes

        return homes.created(self, widths)

    def prompt_embeddings(self, engine: Engine, former: PromptEmbeddings | None = None) -> PromptEmbeddings:
        """For this engine. What those of another version have computed of the same pictures is taken over."""
        from gemel_ray.engine.prompts import PromptEmbeddings
        from gemel_ray.models.mapper import FeatureMapper

        mapper = FeatureMapper.load(self._mapper_file)[0] if self._mapper_file.exists() else None
        if mapper is not None and mapper.width != engine.width:
            raise WorkspaceError(
                f"{self._mapper_file} writes vectors of {mapper.width}, but the language model's have "
                f"{engine.width}: train a mapper for this model (gemel-ray train)"
            )
        return PromptEmbeddings(engine.embed, mapper, self.bank, former)


def read_facts(folder: Path, knowledge: str | None = None) -> dict[str, Any]:
    """What workspace.json says of the version `knowledge`, or of the current one. Raises WorkspaceError for a
    folder that is no workspace of this format."""
    inside = versions.folder(folder, knowledge or versions.current(folder))
    try:
        facts: dict[str, Any] = json.loads((inside / "workspace.json").read_text())
    except (OSError, ValueError) as fault:
        raise WorkspaceError(
            f"{folder} is not a workspace ({fault}); make one with gemel-ray build"
        ) from fault
    if facts.get("format") != FORMAT:
        raise WorkspaceError(
            f"{folder} has format {facts.get('format')}; this version reads {FORMAT}: build it again"
        )
    return facts
