"""The environment of a process that runs stages: its threads, visible GPUs, and access to its Ray."""

from __future__ import annotations

import gc
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import NamedTemporaryFile

from gemel_ray.segments import OnlineSegment, SegmentOptions

_UNUSED = ("boto3", "scipy", "sklearn")
LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"  # 0: Ray keeps to this machine


def variables(options: SegmentOptions | OnlineSegment, processes: int, address: str) -> dict[str, str]:
    """Environment variables of each of `processes`, on a Ray at `address`. A process without a GPU must see
    none: Ray hides GPUs only from processes that have some."""
    hidden = {} if options.gpus else {"CUDA_VISIBLE_DEVICES": ""}
    return hidden | {
        "OMP_NUM_THREADS": str(threads(options.threads, options.cpus, processes, address)),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }


def cores() -> int:
    """The cores that this process may use: fewer than the machine's where it is pinned or in a container."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads(configured: int, cpus: float, processes: int, address: str) -> int:
    """Torch's threads in a process, since Ray's default is one: `configured`, or else `cpus`, and on a local
    Ray at least the process's share of the cores."""
    share = cores() // processes if address == "local" else 0
    return configured or max(1, share, int(cpus))


@contextmanager
def fast_start() -> Iterator[None]:
    """Make importing the models' libraries and starting stages faster.

    transformers, accelerate and vLLM import some libraries if they are installed, for features that are not
    used here: these cannot be imported until all has started. Garbage collection takes a quarter of the
    imports' time and finds hardly anything: it runs once at the end, and what is alive then is never examined
    again.
    """
    no_gpu = os.environ.get("CUDA_VISIBLE_DEVICES") == ""  # see variables()
    unused = {*_UNUSED, "triton"} if no_gpu else {*_UNUSED}
    unused -= sys.modules.keys()
    sys.modules |= dict.fromkeys(unused)  # type: ignore[arg-type]
    gc.disable()
    try:
        yield
    finally:
        for name in unused:
            del sys.modules[name]
        gc.enable()
        gc.collect()
        gc.freeze()


def before_ray(address: str) -> None:
    """Set variables that ray reads when it is imported: call this before. A Ray that is started here
    (`local`) is private: its ports, those of metrics too, are on the loopback, by Ray's variable for systems
    without clusters."""
    # Ray logs an error for every actor that Ray Data itself starts (Ray's issue 53727).
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    if address == "local":
        os.environ.setdefault(LOOPBACK, "0")
        ensure_private_token()


def ensure_private_token() -> None:
    """Create the token of Ray's clusters, if there is none: Ray 2.60 makes one that all users can read."""
    if os.environ.keys() & {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}:
        return
    folder = Path.home() / ".ray"
    token = folder / "auth_token"
    with suppress(OSError):  # a home that cannot be written: Ray reports it
        folder.mkdir(mode=0o700, exist_ok=True)
        with NamedTemporaryFile("w", dir=folder) as made:  # readable by its user only
            made.write(secrets.token_hex(32))
            made.flush()
            with suppress(FileExistsError):
                os.link(made.name, token)  # atomically, in case another process starts
        token.chmod(0o600)
