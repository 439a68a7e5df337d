"""What ray_config.yaml says, as frozen dataclasses.

Values come, later ones winning, from: the dataclasses' defaults, the file, the settings a workspace
carries (one made by import-gemel brings the paper's), and --set a.b=value.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from gemel_ray.checked import ConfigError, made, merged, parsed
from gemel_ray.segments import in_line
from gemel_ray.settings import Bank, Input, Models, Offline, Online, Train, Vectors
from gemel_ray.stages.assemble import Assemble
from gemel_ray.stages.detect import Detect
from gemel_ray.stages.encode import Encode
from gemel_ray.stages.generate import Generate
from gemel_ray.stages.retrieve import Retrieve


@dataclass(frozen=True, kw_only=True)
class Config:
    """The whole of ray_config.yaml."""

    models: Models = field(default_factory=Models)
    input: Input = field(default_factory=Input)
    detect: Detect = field(default_factory=Detect)
    encode: Encode = field(default_factory=Encode)
    retrieve: Retrieve = field(default_factory=Retrieve)
    assemble: Assemble = field(default_factory=Assemble)
    generate: Generate = field(default_factory=Generate)
    bank: Bank = field(default_factory=Bank)
    vectors: Vectors = field(default_factory=Vectors)
    offline: Offline = field(default_factory=Offline)
    online: Online = field(default_factory=Online)
    train: Train = field(default_factory=Train)

    def plain(self) -> dict[str, Any]:
        """As nested dictionaries, for files."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain

    def fingerprint(self, *facts: object) -> str:
        """Equal for runs whose results may be compared: what the stages do, by which models, on which
        knowledge (`facts`); not where they run."""
        stages = (self.detect, self.encode, self.retrieve, self.assemble, self.generate)
        meaning: dict[str, Any] = {
            s.name: {f.name: getattr(s, f.name) for f in fields(s) if "machine" not in f.metadata}
            for s in stages
        }
        meaning |= {"models": asdict(self.models), "input": asdict(self.input)}
        meaning["exact_below"] = self.vectors.exact_below
        text = json.dumps([meaning, *map(repr, facts)], sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


# The paper's way (section 4.1), as --set takes it. It shows training mentions only, no names.
PAPER = (
    "bank.names=0",
    "retrieve.by=mention",
    "retrieve.names=false",
    "retrieve.words=0",
    "bank.ranker=0",
    "retrieve.ranking=0",
    "retrieve.sets=0",
    "retrieve.demonstrations=16",
    "generate.search=beam",
    "generate.beams=5",
    "generate.score=paper",
    "generate.length_penalty=1.0",
    "generate.prior_weight=0",
    "generate.neighbours=0",
    "generate.ranking=0",
)


# What a workspace may set: its models, and how it links. A workspace may come from a stranger, and its
# settings win over the configuration's. So addresses, hosts, files, limits, and what a machine or a person
# may be made to pay are never among them: whatever is not listed here is refused.
CARRIED: dict[str, tuple[str, ...]] = {
    "models": (
        "language", "clip", "clip_feature", "mention_encoder", "mention_pooling", "end_of_name",
    ),
    "detect": ("shortest", "case", "link_probability"),
    "encode": ("dtype",),
    "retrieve": (
        "demonstrations", "sets", "own", "by", "mention_weight", "image_weight", "words", "names", "itself",
        "published",
    ),
    "assemble": ("images",),
    "generate": (
        "beams", "search", "score", "length_penalty", "prior_weight", "neighbours", "nil_threshold", "dtype",
    ),
}  # fmt: skip


def load(file: Path | None, carried: Mapping[str, Any], overrides: Iterable[str]) -> Config:
    """The configuration of `file` (None: all defaults), under a workspace's settings and --set options.
    Raises ConfigError, also for settings that no workspace may carry."""
    values: dict[str, Any] = {}
    if file is not None:
        try:
            values = yaml.safe_load(file.read_text()) or {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as fault:
            raise ConfigError(f"cannot read the configuration {file}: {fault}") from fault
    values = merged(values, _allowed(carried))
    for override in overrides:
        values = merged(values, parsed(override))
    config: Config = made(Config, values, "")
    in_line("offline.segments", config.offline.segments)
    in_line("online.segments", config.online.segments)
    return config


def _allowed(settings: Any) -> Mapping[str, Any]:
    """The settings of a workspace.json. Raises ConfigError for one that a workspace may not set."""
    if not isinstance(settings, Mapping):
        raise ConfigError("the settings in workspace.json are no sections of ray_config.yaml")
    for section, values in settings.items():
        names = values if isinstance(values, Mapping) else ("",)
        for name in names:
            if name not in CARRIED.get(section, ()):
                raise ConfigError(
                    f"workspace.json sets {'.'.join(filter(None, (str(section), str(name))))}, which no "
                    "workspace may: take it out there, and give it by --config or --set if you want it"
                )
    return settings
