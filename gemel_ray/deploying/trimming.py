"""Writes CustomResourceDefinitions to the one file that `schema` reads: types and ranges, no prose.

    python -m gemel_ray.deploying.trimming FOLDER...      # of CRDs, for a newer KubeRay

It takes the storage version of each kind. Schemas that occur more than once, such as a pod's, are written
once. Descriptions and CEL rules are left out; `operator` has the rules that matter.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from gemel_ray.deploying.manifests import Json

KINDS = ("RayCluster", "RayJob", "RayService", "PodMonitor", "PrometheusRule")
FILE = Path(__file__).with_name("crds.json")
_SHORT = 200  # characters, below which a schema is not shared
_PROSE = ("description", "x-kubernetes-validations")


def trimmed(folders: Sequence[Path]) -> str:
    """The definitions in `folders` as the text of FILE."""
    found: dict[str, Json] = {}
    for file in sorted(file for folder in folders for file in folder.glob("*.yaml")):
        definition = yaml.load(file.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))["spec"]
        kind = definition["names"]["kind"]
        if kind in KINDS:
            (stored,) = [v for v in definition["versions"] if v["storage"]]
            found[f"{definition['group']}/{stored['name']} {kind}"] = _without_prose(
                stored["schema"]["openAPIV3Schema"]
            )
    counts: Counter[str] = Counter()
    for schema in found.values():
        _count(schema, counts)
    shared: dict[str, Json] = {}
    kinds = {name: _referring(schema, counts, shared, []) for name, schema in sorted(found.items())}
    lines = [f"{json.dumps(n)}:{json.dumps(s, separators=(',', ':'))}" for n, s in (kinds | shared).items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _without_prose(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_without_prose(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    bare = {}
    for name, value in schema.items():
        if name == "properties":  # names here are fields, one of which may be called description
            bare[name] = {field: _without_prose(inner) for field, inner in value.items()}
        elif name not in _PROSE:
            bare[name] = _without_prose(value)
    return bare


def _key(schema: Any) -> str:
    return json.dumps(schema, sort_keys=True)


def _is_sharable(schema: Any) -> bool:
    return isinstance(schema, dict) and isinstance(schema.get("type"), str) and len(_key(schema)) > _SHORT


def _count(schema: Any, counts: Counter[str]) -> None:
    if _is_sharable(schema):
        counts[_key(schema)] += 1
        if counts[_key(schema)] > 1:
            return
    for inner in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        _count(inner, counts)


def _referring(schema: Any, counts: Counter[str], shared: dict[str, Json], path: list[str]) -> Any:
    """`schema` with references to shared parts, each named by the first place where it occurs."""
    if isinstance(schema, list):
        return [_referring(item, counts, shared, path) for item in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {name: _referring(value, counts, shared, [*path, name]) for name, value in schema.items()}
    if not (_is_sharable(schema) and counts[_key(schema)] > 1):
        return inner
    same = [name for name, known in shared.items() if known == inner]
    if not same:
        word = next((p for p in reversed(path) if p not in ("items", "properties")), "schema")
        same = [f"{word}{sum(n.rstrip('0123456789') == word for n in shared) or ''}"]
        shared[same[0]] = inner
    return {"$ref": f"#/definitions/{same[0]}"}


if __name__ == "__main__":
    FILE.write_text(trimmed([Path(folder) for folder in sys.argv[1:]]))
