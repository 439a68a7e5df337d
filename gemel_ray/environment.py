"""The environment of a process that runs stages: its threads, and which GPUs it sees."""

from __future__ import annotations

import os
import sys

from gemel_ray.segments import OnlineSegment, SegmentOptions


def variables(options: SegmentOptions | OnlineSegment, processes: int, address: str) -> dict[str, str]:
    """Of each of so many processes, on a Ray at `address`. Who is given no GPU sees none: Ray hides them only
    from those that it gives some."""
    hidden = {} if options.gpus else {"CUDA_VISIBLE_DEVICES": ""}
    return hidden | {
        "OMP_NUM_THREADS": str(threads(options.threads, options.cpus, processes, address)),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }


def threads(asked: int, cpus: float, processes: int, address: str) -> int:
    """Of torch in a process, where Ray gives it one unless told: as many as `asked`; else what `cpus` say,
    or, on a Ray of our own, its share of the cores."""
    here = (os.cpu_count() or 1) // processes if address == "local" else 0
    return asked or max(1, here, int(cpus))


def lean() -> None:
    """To be called before a process imports its models' libraries: transformers imports scikit-learn where it
    finds it, 1 to 3 seconds, for a way of generating that nothing here uses."""
    sys.modules.setdefault("sklearn", None)  # type: ignore[arg-type]
