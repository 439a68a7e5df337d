"""A function of a GPU's small kernels, launched at once: recorded as a CUDA graph, and replayed.

Not for the CPU. What is recorded is tried when the engine starts (opening.py), which goes on without if that
fails.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class Replayed:
    """`call` reads and writes the same tensors whenever it is called, and no host value. At first it runs
    as it is, so that what is loaded when first used is there; the second time it is recorded."""

    def __init__(self, call: Callable[[], Tensor]) -> None:
        self._call, self._called = call, False
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> Tensor:
        if not self._called:
            self._called = True
            return self._call()
        if self._graph is None:
            self._graph = torch.cuda.CUDAGraph()
            # Other threads of this process may use the GPU meanwhile, as CLIP's does.
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                self._made = self._call()
        self._graph.replay()
        return self._made
