"""The content of ray_config.yaml, as frozen dataclasses.

Values come, later ones winning, from: the dataclasses' defaults, the file, the settings a workspace
carries (one made by import-gemel brings the paper's), and --set a.b=value.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml

from gemel_ray.checked import ConfigError, Values, made, merged, parsed, renamed
from gemel_ray.errors import GraphError
from gemel_ray.graph import Graph
from gemel_ray.records import DOCUMENT, LINK
from gemel_ray.segments import Offline, Online
from gemel_ray.setting import section
from gemel_ray.settings import Bank, Input, Models, Train, Vectors
from gemel_ray.stage import Stage
from gemel_ray.stages.assemble import Assemble
from gemel_ray.stages.detect import Detect
from gemel_ray.stages.encode import Encode
from gemel_ray.stages.generate import Generate
from gemel_ray.stages.retrieve import Retrieve


@dataclass(frozen=True, kw_only=True)
class Config:
    """The whole of ray_config.yaml. Its stages are the graph, in their order here: a new one is a line."""

    models: Models = section(
        Models,
        "The models. `starter` stands for the small ones that come with the package. A workspace carries\n"
        "the models it was built with, and those win over this file.",
    )
    input: Input = section(Input, "How documents are read.")
    detect: Detect = section(
        Detect, "The stages, in their order. Detect finds mentions in documents that come without."
    )
    encode: Encode = section(Encode, "Pictures and mentions become vectors.")
    retrieve: Retrieve = section(Retrieve, "Solved examples are found for each mention.")
    assemble: Assemble = section(Assemble, "The prompt is put together.")
    generate: Generate = section(Generate, "The language model writes a name of the knowledge base.")
    bank: Bank = section(Bank, "What a build makes of entities and solved examples.")
    vectors: Vectors = section(Vectors, "Where the examples' vectors are searched.")
    offline: Offline = section(
        Offline,
        "The job (gemel-ray link), and where its stages run. A segment is adjacent stages in one kind of\n"
        "process. Below, CLIP and an engine share each of four GPUs (generate.gpu_memory: 0.7 leaves CLIP\n"
        "its memory). The shares say where Ray may place, not what is used: more than half a GPU keeps\n"
        "engines apart. On one machine the processes are spread over its GPUs; on a cluster Ray fills one\n"
        "GPU first, so all encoders together leave room for an engine.\n"
        "    - {stages: [detect, encode], workers: 4, cpus: 4.0, gpus: 0.1, batch: 128}\n"
        "    - {stages: [retrieve, assemble, generate], workers: 4, cpus: 2.0, gpus: 0.6, batch: 64}",
    )
    online: Online = section(
        Online,
        "The endpoint (gemel-ray serve), and what it takes from strangers. An API key, if any, is in the\n"
        "environment variable GEMEL_RAY_API_KEY.",
    )
    train: Train = section(Train, "The training of the feature mapper (gemel-ray train).")

    def __post_init__(self) -> None:
        """Give all stages to a single segment that names none."""
        for place in ("offline", "online"):
            run: Offline | Online = getattr(self, place)
            if len(run.segments) == 1 and not run.segments[0].stages:
                whole: Any = (replace(run.segments[0], stages=STAGES),)
                object.__setattr__(self, place, replace(run, segments=whole))

    @property
    def line(self) -> Graph:
        """The graph of its stages, without a workspace."""
        return Graph(tuple(getattr(self, name) for name in STAGES), DOCUMENT, LINK)

    def plain(self) -> Values:
        """The configuration as nested dictionaries, for files."""
        plain: Values = json.loads(json.dumps(asdict(self)))
        return plain

    def fingerprint(self, *facts: object) -> str:
        """A digest, equal for runs whose results may be compared: of what the stages do, the models and the
        knowledge (`facts`); not of where they run."""
        meaning: dict[str, Any] = {
            s.name: {f.name: getattr(s, f.name) for f in fields(s) if "machine" not in f.metadata}
            for s in self.line.stages
        }
        meaning |= {"models": asdict(self.models), "input": asdict(self.input)}
        meaning["exact_below"] = self.vectors.exact_below
        text = json.dumps([meaning, *map(repr, facts)], sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


STAGES: tuple[str, ...] = tuple(
    part.name
    for part in fields(Config)
    if isinstance(part.default_factory, type) and issubclass(part.default_factory, Stage)
)

# The paper's settings (section 4.1), for --set. Its examples are training mentions only, no names.
PAPER = (
    "bank.names=0",
    "retrieve.by=mention",
    "retrieve.names=false",
    "retrieve.word_bonus=0",
    "bank.ranker=0",
    "retrieve.ranking=0",
    "retrieve.shared_sets=0",
    "retrieve.demonstrations=16",
    "generate.search=beam",
    "generate.beams=5",
    "generate.score=paper",
    "generate.length_penalty=1.0",
    "generate.prior_weight=0",
    "generate.neighbour_weight=0",
    "generate.ranking=0",
)

# What a workspace may set: its models, and how it links. A workspace may be untrusted, and its settings
# override the configuration's. So addresses, hosts, files, limits and anything that costs resources or money
# are excluded: whatever is not listed here is refused.
CARRIED: dict[str, tuple[str, ...]] = {
    "models": (
        "language", "clip", "clip_feature", "mention_encoder", "mention_pooling", "end_of_name",
    ),
    "detect": ("min_characters", "case", "link_probability"),
    "encode": ("dtype",),
    "retrieve": (
        "demonstrations", "shared_sets", "nearest", "by", "mention_weight", "image_weight", "word_bonus",
        "names", "allow_itself", "official_order",
    ),
    "assemble": ("images",),
    "generate": (
        "beams", "search", "score", "length_penalty", "prior_weight", "neighbour_weight",
        "ranking", "choice_weight", "nil_threshold", "dtype",
    ),
}  # fmt: skip


def load(
    file: Path | None,
    carried: Mapping[str, Any],
    overrides: Iterable[str],
    hint: Callable[[str], None] = lambda _: None,
) -> Config:
    """The configuration of `file` (None: all defaults), overridden by a workspace's settings and --set
    options. `hint` receives a sentence for each name of the previous version. Raises ConfigError, also for
    settings that no workspace may carry."""
    values: Values = {}
    if file is not None:
        try:
            values = yaml.safe_load(file.read_text()) or {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as fault:
            raise ConfigError(f"cannot read the configuration {file}: {fault}") from fault
    if isinstance(values, Mapping):
        values = renamed(Config, values, hint)
    if isinstance(carried, Mapping):
        carried = renamed(Config, carried, hint)
    values = merged(values, _allowed(carried))
    for override in overrides:
        values = merged(values, renamed(Config, parsed(override), hint))
    config: Config = made(Config, values, "")
    for where, segments in (("offline", config.offline.segments), ("online", config.online.segments)):
        try:
            config.line.cut(segments)
        except GraphError as fault:
            raise ConfigError(f"{where}.{fault}") from fault
    return config


def refuse_built(overrides: Iterable[str]) -> None:
    """Raise ConfigError for a --set option that changes nothing in a workspace that is there."""
    for name in (override.partition("=")[0] for override in overrides):
        if name.partition(".")[0] == "bank":
            raise ConfigError(
                f"--set {name}: only a build reads this; it changes nothing in a workspace that is there. "
                "Leave it out here, and give it to gemel-ray build"
            )


def _allowed(settings: Any) -> Mapping[str, Any]:
    """The settings of a workspace.json. Raises ConfigError for one that a workspace may not set."""
    if not isinstance(settings, Mapping):
        raise ConfigError("the settings in workspace.json are not sections of ray_config.yaml")
    for part, values in settings.items():
        names = values if isinstance(values, Mapping) else ("",)
        for name in names:
            if name not in CARRIED.get(part, ()):
                raise ConfigError(
                    f"workspace.json sets {'.'.join(filter(None, (str(part), str(name))))}, which no "
                    "workspace may: take it out there, and give it by --config or --set if you want it"
                )
    return settings
