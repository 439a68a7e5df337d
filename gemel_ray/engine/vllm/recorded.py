"""Passes of the model, and copies of blocks, that are recorded as CUDA graphs.

A GPU computes a pass of a small model faster than the host launches its several hundred kernels. A recorded
pass is one launch. Passes of some numbers of tokens are recorded: a pass uses the next larger one, and tokens
that it does not fill belong to no row. It is the same with copies."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gemel_ray.engine.vllm.seam import Inputs, Seam

T = TypeVar("T")
Pool = tuple[int, int]
_LEAST = 64  # tokens
_COPIES, _COPIED = (16, 128, 1024), 2**26  # blocks; bytes of a layer that are copied at once, at most
_UNUSED = 0  # a block that vLLM keeps empty


class Replayed(Generic[T]):
    """A function of many small kernels that is recorded as a CUDA graph, and replayed as one launch. `call`
    reads and writes the same tensors at every call, and no host values. It is called once before."""

    def __init__(self, call: Callable[[], T], pool: Pool | None = None) -> None:
        call()  # so that lazily loaded modules are there
        self._graph = torch.cuda.CUDAGraph()
        # Other threads of this process may use the GPU meanwhile, as CLIP's does.
        with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
            self._made = call()

    def __call__(self) -> T:
        self._graph.replay()
        return self._made


class Recorded:
    """The recorded passes of an engine, of at most `seam.tokens` tokens. They read the same tensors."""

    @torch.inference_mode()
    def __init__(self, seam: Seam) -> None:
        self._seam, self._sizes = seam, sizes(seam.tokens)
        new, most = partial(torch.zeros, device=seam.device), self._sizes[-1]
        self._inputs = Inputs(
            embeddings=seam.embed(new(most, dtype=torch.int64)),
            positions=new(most, dtype=torch.int64),
            slots=new(most, dtype=torch.int64).fill_(-1),
            begins=new(seam.rows + 1, dtype=torch.int32),
            lengths=new(seam.rows, dtype=torch.int32),
            table=new(seam.rows, -(-seam.length // seam.block), dtype=torch.int32),
            alike=new(1, dtype=torch.int32),
        )
        pool: Pool = torch.cuda.graph_pool_handle()  # the smaller ones use the memory of the largest
        splits = (False,) if seam.shared is None else (False, True)
        kinds = [(size, split) for size in reversed(self._sizes) for split in splits]
        self._passes = {kind: Replayed(self._pass(*kind), pool) for kind in kinds}
        cache, dim = seam.caches[0]
        most = max(1, _COPIED // (cache.nbytes // cache.shape[dim]))
        self._blocks = new(2, min(most, _COPIES[-1]), dtype=torch.int64).fill_(_UNUSED)
        numbers = sorted({min(number, most) for number in _COPIES})
        self._copying = {number: Replayed(self._copies(number), pool) for number in reversed(numbers)}

    def _of(self, tokens: int) -> Inputs:
        """The inputs of a pass of `tokens` tokens."""
        embeddings, positions, slots, *rows = self._inputs
        return Inputs(embeddings[:tokens], positions[:tokens], slots[:tokens], *rows)

    def _pass(self, tokens: int, split: bool) -> Callable[[], Tensor]:
        """A pass of any rows. The numbers on the host say what is possible, a single row of all tokens after
        as many as a prompt may have; the rows on the device are empty."""
        begins, lengths = np.full(self._seam.rows + 1, tokens, np.int32), np.zeros(self._seam.rows, np.int32)
        begins[0], lengths[0] = 0, self._seam.length
        return partial(self._seam.compute, self._of(tokens), begins, lengths, split)

    def _copies(self, number: int) -> Callable[[], None]:
        return partial(self._seam.copy_on_device, *self._blocks[:, :number])

    def run(self, inputs: Inputs, split: bool) -> Tensor | None:
        """The hidden states of a pass, [tokens or more, width], until the next one; None if it has too many
        tokens. `split`: with shared attention."""
        tokens, rows = len(inputs.positions), len(inputs.lengths)
        size = next((size for size in self._sizes if size >= tokens), None)
        if size is None:
            return None
        to = self._of(size)
        for there, given in zip(to, inputs, strict=True):
            there[tuple(map(slice, given.shape))] = given
        to.slots[tokens:] = -1
        to.begins[rows + 1 :] = tokens
        to.lengths[rows:] = 0
        return self._passes[size, split]()

    def copy(self, blocks: npt.NDArray[np.int64]) -> None:
        """Copy blocks [n, 2], from and to, in every layer."""
        most = self._blocks.shape[1]
        for start in range(0, len(blocks), most):
            some = blocks[start : start + most]
            padded = np.full((2, most), _UNUSED)
            padded[:, : len(some)] = some.T
            self._blocks.copy_(self._seam.send(torch.from_numpy(padded)))
            self._copying[min(size for size in self._copying if size >= len(some))]()


def sizes(most: int) -> list[int]:
    """Numbers of tokens up to `most`: each a third or a half larger than the one before."""
    powers = [1 << i for i in range(_LEAST.bit_length() - 1, most.bit_length())]
    return sorted({min(size, most) for power in powers for size in (power, power * 3 // 2)})
