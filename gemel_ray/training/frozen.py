"""The frozen language model of a training, and the memory that a process takes."""

from __future__ import annotations

import ctypes
import resource
import sys
from typing import Any

import torch

from gemel_ray.settings import Train

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # as malloc.h numbers them


def language_model(name: str, options: Train, device: str) -> Any:
    """A causal language model of transformers, frozen, without dropout."""
    from transformers import AutoConfig, AutoModelForCausalLM

    if device == "cpu":
        _keep_freed_memory()
    settings = AutoConfig.from_pretrained(name)
    for key, value in vars(settings).items():
        if isinstance(value, float) and ("drop" in key or key.endswith("pdrop")):
            setattr(settings, key, 0.0)
    model: Any = AutoModelForCausalLM.from_pretrained(
        name, config=settings, dtype=getattr(torch, options.dtype)
    ).to(device)
    model.eval().requires_grad_(False)
    if options.checkpointing:  # transformers recomputes only in training mode, which the loop sets
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def _keep_freed_memory() -> None:
    """Let glibc keep large blocks. By default it returns them to the system at once and requests them again
    in the next layer; clearing their pages took 40% of a step on a CPU. Other C libraries have no mallopt."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    for parameter in (_TRIM_THRESHOLD, _MMAP_THRESHOLD):
        mallopt(parameter, 2**31 - 1)


def peak_memory() -> str:
    """The peak memory of this process, as text."""
    unit = 1 if sys.platform == "darwin" else 1024
    memory = f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30:.1f} GiB"
    on_gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return f"{memory}, {on_gpu / 2**30:.1f} GiB of GPU" if on_gpu else memory
