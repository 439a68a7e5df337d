"""The rounds on a GPU: on pretended CUDA tensors, which have no values; and what only a real one runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from test_search import VOCABULARY, Model, logits_after, make_tree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gemel_ray.engine.columns import Arena, Columns, Mention
from gemel_ray.engine.growing import FlatTree, Growing
from gemel_ray.engine.rounds import Lockstep, _Pending
from gemel_ray.engine.vllm.recorded import Replayed
from gemel_ray.engine.vllm.seam import Seam
from gemel_ray.engine.work import TokenPrompt, Usage

CUDA, HIDDEN = torch.device("cuda"), 8
BLOCK, WIDTH = 4, 3


class PretendedModel:
    """Mixes what it is given, so that two devices in it are found out."""

    def __call__(self, *, positions: Any, inputs_embeds: Any, **others: Any) -> Any:
        return inputs_embeds * positions[:, None].to(inputs_embeds.dtype)

    def embed_input_ids(self, ids: Any) -> Any:
        return torch.empty(len(ids), HIDDEN, device=CUDA, dtype=torch.bfloat16) + ids[:, None]

    def compute_logits(self, hidden: Any) -> Any:
        return torch.empty(len(hidden), VOCABULARY, device=CUDA, dtype=torch.bfloat16) + hidden[:, :1]


class PretendedSeam(Seam):
    """A GPU's, without vLLM: what its metadata is made of has to be on the device, or is the host's own."""

    def __init__(self) -> None:
        self.device, self.block, self.tokens, self.rows, self.passes = CUDA, BLOCK, 64, 64, 0
        self.model, self._config, self._cache_config, self._groups = PretendedModel(), None, None, None
        self.shared = self.output = self.recorded = None
        self._context = lambda *given, **named: contextlib.nullcontext()
        self._by_layer = lambda *given: {}
        self._metadata = self._checked
        self.caches = [(torch.empty(2, 100, BLOCK, HIDDEN, device=CUDA, dtype=torch.bfloat16), 1)]

    def send(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(CUDA)

    def _checked(self, **given: Any) -> None:
        on_device = ("query_start_loc_gpu", "seq_lens", "slot_mappings")
        assert {given[name].device.type for name in on_device} == {"cuda"}
        assert given["block_tables"][0].device.type == "cuda"
        assert isinstance(given["max_query_len"], int) and isinstance(given["max_seq_len"], int)


class NeverWaiting(TorchDispatchMode):
    """Fails where the host would wait for the device: an operator whose answer the host reads, or that is of
    a length that only the device knows; a copy from the device; a number of the host put at an index."""

    WAITS = ("item", "_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        on_device = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor) and t.is_cuda]
        masked = name.startswith("index") and any(
            getattr(t, "dtype", None) == torch.bool for t in tree_leaves(args[1])
        )
        of_host = name.startswith("index_put") and any(
            not t.is_cuda for t in tree_leaves(args[2:]) if torch.is_tensor(t)
        )
        waits = masked or of_host or name.startswith(self.WAITS)
        assert not (on_device and waits), f"the host waits for {name}"
        made = func(*args, **(kwargs or {}))
        here = [t for t in tree_leaves(made) if isinstance(t, torch.Tensor) and not t.is_cuda]
        assert not (on_device and here), f"{name} copies to the host"
        return made


@pytest.fixture
def pretended() -> Iterator[None]:
    """Every operator of the round has to have a CUDA form, and none may need a value on the host."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True), torch.inference_mode(), NeverWaiting():
        yield


@pytest.mark.parametrize(
    "waits",
    [
        lambda t: t.cpu(),
        lambda t: int(t.sum()),
        lambda t: t.nonzero(),
        lambda t: t[t > 0],
        lambda t: torch.empty(3).copy_(t),
        lambda t: t.tolist(),
        lambda t: t.__setitem__(torch.zeros(1, dtype=torch.int64, device=CUDA), 0),
    ],
)
def test_what_waits_for_the_device_is_found_out(pretended: None, waits: Any) -> None:
    with pytest.raises(AssertionError):
        waits(torch.ones(3, device=CUDA))


@pytest.mark.parametrize("renormalise", [True, False])
def test_a_round_needs_no_value_of_the_device(pretended: None, renormalise: bool) -> None:
    tree = make_tree(1, 40)
    growing = Growing(FlatTree(tree, CUDA), 6, WIDTH, penalty=1.0, renormalise=renormalise)
    arena, seam = Arena(range(100), BLOCK), PretendedSeam()
    columns = Columns(arena, {}, 6, WIDTH, depth=tree.depth, length=40)
    lockstep = Lockstep(seam, growing, columns, replayed=False)
    vectors = torch.empty(2, HIDDEN, dtype=torch.bfloat16)
    for own in (3, 5):
        ids = np.arange(own)
        nobody: Any = None  # waits for the outcome
        nothing, prompt = TokenPrompt(ids[:0], ids[:0]), TokenPrompt(ids, ids, ((1, vectors),))
        columns.waiting[Mention(nothing, prompt, nobody, Usage())] = None
    readings = list(columns.readings(64, 64))
    next(iter(columns.occupants.values())).judging = (len(tree.token) - 1,)
    beams = np.array([[4, 4, 5], [0, 2, 1], [0, 2, 1], [1, 0, 2], [1, 2, 1]])  # as the host would have read
    lockstep._widest = 4
    seam.copy(np.array([[1, 2], [3, 4]]))
    lockstep._compute(_Pending(*beams), readings)
    told = growing.round()
    assert told.device.type == "cuda"
    assert len(told) == 1 + 6 * (7 * WIDTH + 2)
    assert seam.passes == 1


def round_by_round(device: str, *, replayed: bool, rounds: int = 8) -> list[list[float]]:
    """What a few rounds tell, on a device; every beam that asks is answered."""
    tree = make_tree(7, 60)
    growing = Growing(FlatTree(tree, torch.device(device)), 4, WIDTH, penalty=1.0, renormalise=False)
    grown = Replayed(growing.round) if replayed else growing.round
    columns, model = torch.arange(4, device=device), Model(0, tree, "paper")
    logits = torch.from_numpy(logits_after(model.seed, ())).to(device).expand(4 * WIDTH, -1)
    growing.begin(columns)
    root = torch.zeros_like(columns)
    growing.answer(columns, root, *growing.best(logits[:4], root, growing.tree.fan))
    told = []
    for _ in range(rounds):
        told.append(grown().cpu().tolist())
        column, beam = (part.flatten() for part in torch.meshgrid(columns, columns[:WIDTH], indexing="ij"))
        growing.answer(column, beam, *growing.best(logits, growing.node[column, beam], VOCABULARY))
    return told


@pytest.mark.gpu
@torch.inference_mode()
def test_a_replayed_round_is_the_round() -> None:
    plain = round_by_round("cuda", replayed=False)
    assert round_by_round("cuda", replayed=True) == plain
    for ours, theirs in zip(plain, round_by_round("cpu", replayed=False), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)


@pytest.mark.gpu
@pytest.mark.slow
def test_the_engine_of_a_gpu_searches_in_rounds_with_graphs(generating: Any) -> None:
    """That it says what rollouts say, test_rounds.py holds, on whatever device it runs."""
    rounds = generating.engine._rounds
    assert rounds is not None and rounds.replayed
    assert rounds.seam.recorded is not None
    assert rounds.seam.rows < rounds.seam.tokens
