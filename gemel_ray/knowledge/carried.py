"""What a workspace may set: its models, and how it links. A workspace may come from a stranger, and its
settings win over the configuration's. So addresses, hosts, files, limits, and what a machine or a person may
be made to pay are never among them: whatever is not listed here is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gemel_ray.checked import ConfigError

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


def allowed(settings: Any) -> Mapping[str, Any]:
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
