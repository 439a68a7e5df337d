"""The environment of a process that runs stages: its threads, which GPUs it sees, and who reaches its Ray."""

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

LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"  # 0: Ray keeps to this machine


def variables(options: SegmentOptions | OnlineSegment, processes: int, address: str) -> dict[str, str]:
    """Of each of so many processes, on a Ray at `address`. Who is given no GPU sees none: Ray hides them only
    from those that it gives some."""
    hidden = {} if options.gpus else {"CUDA_VISIBLE_DEVICES": ""}
    return hidden | {
        "OMP_NUM_THREADS": str(threads(options.threads, options.cpus, processes, address)),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }


def threads(configured: int, cpus: float, processes: int, address: str) -> int:
    """Torch's threads in a process, since Ray's default is one: `configured`, or else `cpus`, and on a local
    Ray at least the process's share of the cores."""
    share = (os.cpu_count() or 1) // processes if address == "local" else 0
    return configured or max(1, share, int(cpus))


@contextmanager
def lean() -> Iterator[None]:
    """While a process imports its models' libraries and starts its stages.

    transformers imports scikit-learn where it finds it, 1 to 3 seconds, for a way of generating that nothing
    here uses. And hardly anything that is made now is garbage: looking for it takes a quarter of the imports'
    time. It is looked for once at the end, and what is found alive is never looked at again.
    """
    sys.modules.setdefault("sklearn", None)  # type: ignore[arg-type]
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.collect()
        gc.freeze()


def before_ray(address: str) -> None:
    """To be called before ray is imported, which looks then. One that is started here (`local`) is its user's
    alone: its ports, those of metrics too, are the loopback's, by Ray's own name for what it does on systems
    that have no clusters."""
    # Ray logs an error for every actor that Ray Data itself starts (its issue 53727): not ours to mend.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    if address == "local":
        os.environ.setdefault(LOOPBACK, "0")
        own_token()


def own_token() -> None:
    """The token of Ray's clusters, where there is none yet: Ray 2.60 makes it for everybody to read."""
    if os.environ.keys() & {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}:
        return
    folder = Path.home() / ".ray"
    token = folder / "auth_token"
    with suppress(OSError):  # a home that cannot be written: Ray says so
        folder.mkdir(mode=0o700, exist_ok=True)
        with NamedTemporaryFile("w", dir=folder) as made:  # for its user alone
            made.write(secrets.token_hex(32))
            made.flush()
            with suppress(FileExistsError):
                os.link(made.name, token)  # at once and whole, whoever else starts
        token.chmod(0o600)
