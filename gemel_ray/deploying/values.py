"""Rules for values that the API server or pod admission refuses although their types are right.

Source: Kubernetes 1.34, pkg/apis/core, networking, policy and batch, the packages called validation.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from typing import Any

from gemel_ray.deploying.manifests import Found, Json, Manifests, kind_and_name

_DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_PREFIX = re.compile(r"(?=.{1,253}$)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_PORT_NAME = re.compile(r"(?=.{1,15}$)(?=.*[a-z])[a-z0-9]+(-[a-z0-9]+)*")
_ACCESS = ("ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod")
_HANDLERS = {"exec", "httpGet", "tcpSocket", "grpc", "sleep"}
_EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")


def labels(manifests: Manifests) -> Found:
    """Keys are PREFIX/NAME, values at most 63 letters, digits, dashes, dots and underscores."""
    for where, labels in _labelled(manifests):
        for key, value in labels.items():
            prefix, slash, name = key.rpartition("/")
            if not _NAME.fullmatch(name) or (slash and not _PREFIX.fullmatch(prefix)):
                yield where, f"the label key {key!r} must be NAME or PREFIX/NAME, without spaces"
            if value and not _NAME.fullmatch(value):
                yield where, f"the label {key}: {value!r} must be at most 63 of A-Z a-z 0-9 - _ ."


def _labelled(manifests: Manifests) -> Iterator[tuple[str, dict[str, str]]]:
    for document in manifests.documents:
        yield kind_and_name(document), document["metadata"].get("labels", {})
    for pod in manifests.pods():
        yield pod.where, pod.labels


def scheduling(manifests: Manifests) -> Found:
    """Tolerations and spread constraints have values that Kubernetes knows."""
    for pod in manifests.pods():
        for toleration in pod.spec.get("tolerations", ()):
            if (operator := toleration.get("operator", "Equal")) not in ("Equal", "Exists"):
                yield pod.where, f"a toleration's operator must be Equal or Exists, not {operator}"
            if (effect := toleration.get("effect", "")) and effect not in _EFFECTS:
                yield pod.where, f"a toleration's effect must be one of {', '.join(_EFFECTS)}, not {effect}"
        for spread in pod.spec.get("topologySpreadConstraints", ()):
            if (unmet := spread.get("whenUnsatisfiable")) not in ("DoNotSchedule", "ScheduleAnyway"):
                yield pod.where, f"whenUnsatisfiable must be DoNotSchedule or ScheduleAnyway, not {unmet}"


def handlers(manifests: Manifests) -> Found:
    """A probe, and a lifecycle hook, has exactly one handler."""
    for pod in manifests.pods():
        for container in pod.containers:
            hooks = dict(container.get("lifecycle", {}))
            hooks |= {k: v for k, v in container.items() if k.endswith("Probe")}
            for name, hook in hooks.items():
                ways = sorted(_HANDLERS & hook.keys()) if isinstance(hook, dict) else []
                if len(ways) != 1 and name != "stopSignal":
                    found = " and ".join(ways) or "none"
                    yield pod.where, f"{container['name']}'s {name} must have one handler, not {found}"


def port_values(manifests: Manifests) -> Found:
    """Port names and numbers are valid; a Service's clusterIP is an address or None."""
    for pod in manifests.pods():
        for container in pod.containers:
            for port in container.get("ports", ()):
                yield from _port(pod.where, port.get("name"), port.get("containerPort"), _PORT_NAME)
    for where, document in manifests.of("Service"):
        for port in document["spec"].get("ports", ()):
            yield from _port(where, port.get("name"), port.get("port"), _DNS_LABEL)
        address = document["spec"].get("clusterIP", "None")
        if address not in ("None", "") and not _is_address(address):
            yield where, f"clusterIP must be None or an address, not {address!r}"


def _port(where: str, name: str | None, number: Any, pattern: re.Pattern[str]) -> Found:
    if name is not None and not pattern.fullmatch(name):
        most = 15 if pattern is _PORT_NAME else 63
        yield where, f"the port name {name!r} must be at most {most} of a-z 0-9 -, with a letter"
    if isinstance(number, int) and not 0 < number < 65536:
        yield where, f"port {number} must be from 1 to 65535"


def network_values(manifests: Manifests) -> Found:
    """Address blocks and ports of NetworkPolicies are valid."""
    for where, document in manifests.of("NetworkPolicy"):
        rules = [*document["spec"].get("ingress", ()), *document["spec"].get("egress", ())]
        for rule in rules:
            for port in rule.get("ports", ()):
                yield from _port(where, None, port.get("port"), _PORT_NAME)
            for peer in (*rule.get("from", ()), *rule.get("to", ())):
                yield from _block(where, peer.get("ipBlock"))


def _block(where: str, block: Json | None) -> Found:
    if block is None:
        return
    try:
        whole = ipaddress.ip_network(block["cidr"])
    except ValueError as fault:
        yield where, f"ipBlock.cidr: {fault}"
        return
    for part in block.get("except", ()):
        try:
            inside = ipaddress.ip_network(part).subnet_of(whole)  # type: ignore[arg-type]
        except (ValueError, TypeError) as fault:
            yield where, f"ipBlock.except: {fault}"
            continue
        if not inside:
            yield where, f"ipBlock.except: {part} is outside {block['cidr']}"


def object_values(manifests: Manifests) -> Found:
    """Budgets, schedules, access modes and the restart policies of jobs are valid."""
    for where, document in manifests.of("PodDisruptionBudget"):
        if {"minAvailable", "maxUnavailable"} <= document["spec"].keys():
            yield where, "minAvailable and maxUnavailable exclude each other"
    for where, document in manifests.of("CronJob"):
        yield from _schedule(where, document["spec"].get("schedule", ""))
    for pod in manifests.pods():
        restart = pod.spec.get("restartPolicy", "Always")
        if pod.where.startswith(("CronJob/", "Job/")) and restart not in ("Never", "OnFailure"):
            yield pod.where, f"restartPolicy must be Never or OnFailure, not {restart}"
    for where, modes in _claims(manifests):
        for mode in modes:
            if mode not in _ACCESS:
                yield where, f"accessModes must be of {', '.join(_ACCESS)}, not {mode}"


def _schedule(where: str, schedule: str) -> Found:
    from croniter import croniter

    if not schedule.startswith("@") and (len(schedule.split()) != 5 or not croniter.is_valid(schedule)):
        yield where, f"schedule {schedule!r} is not a cron line: minute hour day month weekday"


def _claims(manifests: Manifests) -> Iterator[tuple[str, list[str]]]:
    for where, document in manifests.of("PersistentVolumeClaim"):
        yield where, document["spec"].get("accessModes", [])
    for where, document in manifests.of("StatefulSet"):
        for claim in document["spec"].get("volumeClaimTemplates", ()):
            yield where, claim["spec"].get("accessModes", [])


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def sizes(manifests: Manifests) -> Found:
    """Memory is at least what the processes are known to need, and the object store fits in it."""
    for pod in manifests.pods():
        limit = quantity(pod.main.get("resources", {}).get("limits", {}).get("memory", 0))
        least = LEAST_MEMORY.get(pod.role, 0.0)
        if 0 < limit < least * 2**30:
            yield pod.where, f"{limit / 2**30:.2g} GiB of memory: a {pod.role} needs at least {least:g} GiB"
    for where, group, params in start_parameters(manifests):
        limit = quantity(group["template"]["spec"]["containers"][0]["resources"]["limits"].get("memory", 0))
        store = params.get("object-store-memory", "0")
        if store.isdigit() and 0 < limit <= int(store):
            yield where, f"object-store-memory ({store}) must be below the memory limit ({limit:.0f})"


# GiB, measured with the starter's models: a head 1.26 (job) and 1.5 (service), a worker 4.2 to 4.65, of
# which torch and vLLM alone take 2.
LEAST_MEMORY = {"head": 1.5, "worker": 3.0}


def start_parameters(manifests: Manifests) -> Iterator[tuple[str, Json, dict[str, str]]]:
    """Each group of a Ray cluster with its options for `ray start`."""
    for where, cluster in manifests.clusters():
        for group in (cluster["headGroupSpec"], *(cluster.get("workerGroupSpecs") or ())):
            yield f"{where} {group.get('groupName', 'head')}", group, group.get("rayStartParams") or {}


_UNITS = {"m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
_UNITS |= {f"{unit}i": 2.0 ** (10 * power) for power, unit in enumerate("KMGTPE", 1)}


def quantity(text: Any) -> float:
    """The value of a Kubernetes quantity, 12Gi or 500m; 0 for anything else, which the schema reports."""
    found = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", str(text))
    return float(found[1]) * _UNITS.get(found[2], 1.0) if found else 0.0
