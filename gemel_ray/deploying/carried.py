"""Rules for the configuration that a job or a service carries: its file, found through the command and the
mounts, and whether it fits its cluster."""

from __future__ import annotations

import contextlib
import io
import math
import re
import shlex
from pathlib import PurePosixPath
from typing import Any

import yaml

from gemel_ray.checked import ConfigError, made, merged, parsed
from gemel_ray.config import Config
from gemel_ray.deploying import placement
from gemel_ray.deploying.manifests import Found, Json, Manifests, Pod, cluster, serve_config
from gemel_ray.errors import Mistake

_TOLERANCE = 1e-6


def command(manifests: Manifests) -> Found:
    """A job's command line can be parsed; and the paths in it, or in a service's arguments, are on a volume
    that all pods share. Addresses of object stores (s3://...) need no volume."""
    for where, document in manifests.of("RayJob", "RayService"):
        try:
            paths = _paths(document)
        except ValueError as fault:
            yield where, str(fault)
            continue
        for path in (path for path in paths if "://" not in path):
            for pod in manifests.nodes(where):
                if "persistentVolumeClaim" not in (_volume(pod, PurePosixPath(path)) or {}):
                    yield pod.where, f"{path} is on no claim there"


def configuration(manifests: Manifests) -> Found:
    """It loads, joins its cluster, and sets threads: the default depends on the cores of the head's node."""
    for where, document in manifests.of("RayJob", "RayService"):
        try:
            config = carried(manifests, where, document)
        except ValueError as fault:
            yield where, str(fault)
            continue
        if document["kind"] == "RayJob" and config.offline.address != "auto":
            yield where, f"offline.address must be auto, the cluster it is in, not {config.offline.address}"
        for segment in _segments(document, config):
            if not 0 < segment.threads <= segment.cpus:
                name = ", ".join(segment.stages)
                yield where, f"segment {name}: threads must be 1 to its cpus ({segment.cpus})"


def gpus(manifests: Manifests) -> Found:
    """The groups have at most as many GPUs as the segments take: more would be paid for and idle."""
    for where, document, config in _configured(manifests):
        needed = sum(count * s.gpus for s, count in _most(document, config))
        there = placement.gpus(placement.room(cluster(document), "maxReplicas"))
        if abs(needed - there) > _TOLERANCE:
            yield where, f"its groups have {there:g} GPUs at most, and its segments take {needed:g}"


def room(manifests: Manifests) -> Found:
    """There is room for all workers, however Ray places them."""
    for where, document, config in _configured(manifests):
        spare = placement.READING if document["kind"] == "RayJob" else placement.API
        most = placement.room(cluster(document), "maxReplicas")
        if not placement.fits(most, _most(document, config), spare):
            yield where, "its workers can be placed so that one of them, or reading, finds no room"


def surge(manifests: Manifests) -> Found:
    """There is room for the extra replicas that online.segments[].surge starts when all are replaced."""
    for where, document, config in _configured(manifests):
        segments = [] if document["kind"] == "RayJob" else list(config.online.segments)
        if not any(s.surge for s in segments):
            continue
        most = placement.room(cluster(document), "maxReplicas")
        both = [(s, s.max_replicas + math.ceil(s.surge * s.max_replicas)) for s in segments]
        if not placement.fits(most, both, placement.API):
            yield (
                where,
                "surge asks for replicas beside the old ones, and the groups' maxReplicas leaves no room",
            )


def drain(manifests: Manifests) -> Found:
    """No pod that serves is removed before the longest request (online.deadline) has ended."""
    for where, document, config in _configured(manifests):
        if document["kind"] != "RayService":
            continue
        longest = config.online.deadline
        if document["spec"].get("rayClusterDeletionDelaySeconds", 60) <= longest:
            yield where, f"rayClusterDeletionDelaySeconds must be above online.deadline ({longest:g})"
        for pod in (pod for pod in manifests.nodes(where) if pod.role == "worker"):
            stop = pod.main.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", [""])
            waits = max(map(int, re.findall(r"sleep (\d+)", stop[-1])), default=0)
            if not longest < waits < pod.spec.get("terminationGracePeriodSeconds", 30):
                yield pod.where, "preStop must sleep above online.deadline, and the grace period be longer"


def carried(manifests: Manifests, where: str, document: Json) -> Config:
    """The configuration that a RayJob's driver, or a RayService's builder, will load. ValueError where it
    cannot."""
    if document["kind"] == "RayJob":
        options = _options(document)
        path, overrides = str(options.config), list(options.set)
        readers = [pod for pod in manifests.nodes(where) if pod.role == "head"]
    else:
        arguments = _arguments(document)
        path, overrides = arguments.get("config", ""), arguments.get("set", [])
        readers = manifests.nodes(where)  # a replica may be on any of them
    texts = {_text(manifests, pod, path) for pod in readers}
    if len(texts) != 1:
        raise Mistake(f"pods of one cluster see different files at {path}")
    try:
        values: Any = yaml.safe_load(texts.pop()) or {}
    except yaml.YAMLError as fault:
        raise ConfigError(f"{path} is not YAML: {fault}") from fault
    for override in overrides:
        values = merged(values, parsed(override))
    config: Config = made(Config, values, "")
    return config


def _options(document: Json) -> Any:
    """A job's command line, parsed as `gemel-ray link` will parse it."""
    from gemel_ray.arguments import parser
    from gemel_ray.commands import link

    program, *arguments = shlex.split(document["spec"]["entrypoint"]) or [""]
    errors = io.StringIO()
    try:
        if program != "gemel-ray":
            raise Mistake(f"the entrypoint must start with gemel-ray, not {program}")
        with contextlib.redirect_stderr(errors):
            options = parser({"link": link.add}).parse_args(arguments)
    except SystemExit as refused:
        raise Mistake(f"the entrypoint is refused: {errors.getvalue().splitlines()[0]}") from refused
    if options.config is None:
        raise Mistake("the entrypoint must name its configuration with --config")
    return options


def _paths(document: Json) -> list[str]:
    """The paths that are read and written."""
    if document["kind"] == "RayService":
        return [_arguments(document).get("workspace", "")]
    options = _options(document)
    return [str(options.workspace), str(options.output), *options.inputs]


def _arguments(document: Json) -> Json:
    applications = serve_config(document).get("applications") or [{}]
    return applications[0].get("args") or {}


def _volume(pod: Pod, path: PurePosixPath) -> Json | None:
    """The volume that `path` is on, by the deepest mount above it."""
    mounts = [m for m in pod.main.get("volumeMounts", ()) if path.is_relative_to(m["mountPath"])]
    if not mounts:
        return None
    name = max(mounts, key=lambda m: len(m["mountPath"]))["name"]
    return next((v for v in pod.spec.get("volumes", ()) if v["name"] == name), None)


def _text(manifests: Manifests, pod: Pod, path: str) -> str:
    volume = _volume(pod, PurePosixPath(path)) or {}
    name = volume.get("configMap", {}).get("name")
    for _, document in manifests.of("ConfigMap"):
        text = document["data"].get(PurePosixPath(path).name)
        if document["metadata"]["name"] == name and text is not None:
            return str(text)
    raise Mistake(f"there is no ConfigMap's file at {path or 'args.config'} in {pod.where}")


def _configured(manifests: Manifests) -> Any:
    for where, document in manifests.of("RayJob", "RayService"):
        with contextlib.suppress(ValueError):  # reported by configuration()
            yield where, document, carried(manifests, where, document)


def _segments(document: Json, config: Any) -> Any:
    return config.offline.segments if document["kind"] == "RayJob" else config.online.segments


def _most(document: Json, config: Config) -> list[tuple[Any, int]]:
    """Each segment with its greatest number of workers."""
    job = document["kind"] == "RayJob"
    return [(s, s.workers if job else s.max_replicas) for s in _segments(document, config)]
