"""DIR/manifest.json: what stands in the output folder, and what made it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gemel_ray.config import Config
from gemel_ray.job import results
from gemel_ray.job.record import Record
from gemel_ray.knowledge.bringing import Shared
from gemel_ray.knowledge.versions import read_facts
from gemel_ray.object_folder import Place, folder_at

_PACKAGES = ("gemel-ray", "ray", "torch", "transformers", "open_clip_torch", "qdrant-edge-py")


def write_manifest(
    config: Config, workspace: Path, inputs: Sequence[str], told: Record, knowledge: str
) -> dict[str, Any]:
    """Write it and return it: counts over the whole output, the last run's measures and seconds."""
    done = told.write("finished")
    facts = read_facts(workspace, knowledge)
    manifest = {
        "inputs": list(inputs),
        **results.counts(told.output),
        "seconds": done["seconds"],
        "measures": done["measures"],
        "workspace": {
            "path": str(Shared.of(workspace)),
            "knowledge": knowledge,
            "version": facts["version"],
            "models": facts["models"],
        },
        "configuration": config.plain(),
        "versions": {package: version(package) for package in _PACKAGES},
    }
    told.output.write("manifest.json", json.dumps(manifest, indent=2).encode())
    return manifest


def read_manifest(output: Place) -> dict[str, Any]:
    """What a job says of itself; nothing where it has not finished."""
    try:
        said = json.loads(folder_at(output).read("manifest.json"))
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}
