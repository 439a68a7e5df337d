"""Checks a RayService's serveConfigV2 against Ray Serve's models, strictly. For the CRD it is a string, and
Serve ignores unknown keys: a misspelt limit would have no effect.

The only file here that imports ray, since only Ray knows what this version of Serve takes.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import typing
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from gemel_ray.deploying.manifests import Found, Json, Manifests, serve_config
from gemel_ray.deploying.values import start_parameters

_DEPRECATED = (
    "metrics_interval_s",
    "smoothing_factor",
    "upscale_smoothing_factor",
    "downscale_smoothing_factor",
)
_NEEDED = {"workspace", "config"}  # arguments of gemel_ray.online:app


def options(manifests: Manifests) -> Found:
    """Every key is one of Ray Serve's, with a valid value."""
    from ray.serve.schema import ServeDeploySchema

    yield from _unreadable(manifests)
    for where, config in _configs(manifests):
        yield from ((where, f"{path}: {what}") for path, what in _strictly(config, ServeDeploySchema, "$"))
        try:
            ServeDeploySchema.model_validate(config)
        except ValueError as fault:
            yield where, " ".join(str(fault).split())


def _unreadable(manifests: Manifests) -> Found:
    for where, document in manifests.of("RayService"):
        try:
            config = yaml.safe_load(document["spec"].get("serveConfigV2", ""))
        except yaml.YAMLError as fault:
            yield where, f"serveConfigV2 is not YAML: {' '.join(str(fault).split())}"
            continue
        if not isinstance(config, dict):
            yield where, "serveConfigV2 must be a mapping with applications"


def start_flags(manifests: Manifests) -> Found:
    """rayStartParams are options of `ray start`. KubeRay passes on unknown ones."""
    from ray.scripts.scripts import start

    known = {option.removeprefix("--") for parameter in start.params for option in parameter.opts}
    for where, _, given in start_parameters(manifests):
        for name in sorted(given.keys() - known):
            near = difflib.get_close_matches(name, known, 1)
            yield where, f"ray start has no option --{name}" + (f"; did you mean {near[0]}?" if near else "")


def http_port(manifests: Manifests) -> Found:
    """Serve listens at the pods' port `serve`, which probes, Services and policies name."""
    for where, config in _configs(manifests):
        port = (config.get("http_options") or {}).get("port", 8000)
        for pod in manifests.nodes(where):
            named = [p["containerPort"] for p in pod.main.get("ports", ()) if p.get("name") == "serve"]
            if named and port not in named:
                yield pod.where, f"its port serve is {named[0]}, and http_options.port is {port}"


def import_paths(manifests: Manifests) -> Found:
    """The import path exists, and is a function of one argument: the builder."""
    for where, application in _applications(manifests):
        path = application.get("import_path", "")
        module, _, name = path.partition(":")
        if _parameters(module, name) != 1:
            yield where, f"import_path {path} is not a function of one argument"


def arguments(manifests: Manifests) -> Found:
    """The builder's arguments are known; and numbers of segments are only in the configuration."""
    for where, application in _applications(manifests):
        given = set(application.get("args") or {})
        if not _NEEDED <= given <= _NEEDED | {"set"}:
            yield (
                where,
                f"args are workspace, config and perhaps set, not {', '.join(sorted(given)) or 'none'}",
            )
        for deployment in application.get("deployments") or ():
            if deployment.keys() - {"name", "ray_actor_options"} or deployment.get("name") != "api":
                yield where, "only the api's place stands here; segments stand in online.segments"


def _configs(manifests: Manifests) -> Iterator[tuple[str, Json]]:
    for where, document in manifests.of("RayService"):
        yield where, serve_config(document)


def _applications(manifests: Manifests) -> Iterator[tuple[str, Json]]:
    for where, config in _configs(manifests):
        yield from ((where, application) for application in config.get("applications") or ())


def _strictly(value: Any, kind: Any, path: str) -> Iterator[tuple[str, str]]:
    """Keys that no model has, and a model's errors where Ray's schema takes any dictionary."""
    if isinstance(value, list):
        for number, item in enumerate(value):
            yield from _strictly(item, kind, f"{path}[{number}]")
    model = _model(kind)
    if model is None or not isinstance(value, dict):
        return
    for name, inner in value.items():
        if name not in model.model_fields:
            yield path, f"there is no option {name}"
        elif name in _DEPRECATED:
            yield path, f"{name} is deprecated"
        else:
            yield from _strictly(inner, model.model_fields[name].annotation, f"{path}.{name}")
    if dict in _parts(kind):
        try:
            model.model_validate(value)
        except ValueError as fault:
            yield path, " ".join(str(fault).split())


def _parts(kind: Any) -> list[Any]:
    """The types in an annotation: for a list its items' types, for a dictionary only `dict`."""
    origin = typing.get_origin(kind)
    if origin is dict:
        return [dict]
    return [part for inner in typing.get_args(kind) for part in _parts(inner)] if origin else [kind]


def _model(kind: Any) -> Any:
    return next((p for p in _parts(kind) if inspect.isclass(p) and hasattr(p, "model_fields")), None)


def _parameters(module: str, name: str) -> int | None:
    """The number of parameters of a module's function; None where there is none. Only imports the packages
    around the module."""
    try:
        spec = find_spec(module)
    except (ModuleNotFoundError, ValueError):
        return None
    if spec is None or spec.origin is None:
        return None
    for node in ast.parse(Path(spec.origin).read_text()).body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return len(node.args.args)
    return None
