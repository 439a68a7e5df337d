"""The constraint in the engine: scores against plain arithmetic, and both runners' interfaces alike.

vLLM's first runner keeps requests in rows that move: here its own InputBatch moves them. Its second
runner keeps them in slots and needs a GPU, so `SecondRunner` below imitates what it hands to a logits
processor, on CPU tensors (vllm/v1/worker/gpu: states.py, model_runner.py, sample/sampler.py).
"""

from __future__ import annotations

import math
import random
import tempfile
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gemel_ray.knowledge.prefix_tree import PrefixTree, build

pytest.importorskip("vllm", reason="no vLLM is installed")

from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessors, MoveDirectionality
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsContext, LogitsProcRequestState
from vllm.v1.worker.gpu_input_batch import CachedRequestState, InputBatch

from gemel_ray.engine.vllm.constraint import (
    UNCONSTRAINED,
    TreeConstraintV1,
    TreeConstraintV2,
    Trees,
    TreeScores,
)

VOCABULARY, END, LETTERS = 30, 29, 8
LENGTH, ROWS = 64, 6
CPU = torch.device("cpu")


def letters(names: list[str]) -> list[list[int]]:
    return [[ord(c) - ord("a") for c in name] for name in names]


def make_tree(seed: int, folder: Path, count: int = 25) -> PrefixTree:
    rng = random.Random(seed)
    names = ["".join(rng.choices("abcdefgh", k=rng.randint(1, 5))) for _ in range(count)]
    return build(names, letters, END, folder)


NO_CONFIG: Any = None  # in the place of VllmConfig: the constraint asks nothing of it


def wants(tree: Path, node: int, renormalise: bool) -> SamplingParams:
    extra = {"tree": str(tree), "tree_node": node, "tree_renormalise": renormalise}
    return SamplingParams(temperature=0.0, max_tokens=LENGTH, extra_args=extra)


FREE = SamplingParams(temperature=0.0, max_tokens=LENGTH)


def plain_scores(logits: list[float], allowed: list[int], renormalise: bool) -> list[float]:
    """One row, slowly: log-softmax over everything, or over what is allowed; else minus infinity."""
    total = math.fsum(math.exp(x) for i, x in enumerate(logits) if not renormalise or i in allowed)
    return [x - math.log(total) if i in allowed else -math.inf for i, x in enumerate(logits)]


def allowed_at(tree: PrefixTree, node: int) -> list[int]:
    return [int(token) for token in tree.children(node)[1]]


def random_logits(seed: object, rows: int) -> torch.Tensor:
    made = random.Random(repr(seed))
    return torch.tensor([[made.uniform(-6, 6) for _ in range(VOCABULARY)] for _ in range(rows)])


@settings(deadline=None)
@given(
    seed=st.integers(0, 10**6), batch=st.integers(1, 7), wide=st.sampled_from([1, 3, 1024]), data=st.data()
)
def test_scores_are_those_of_each_row_alone(seed: int, batch: int, wide: int, data: st.DataObject) -> None:
    """Also where a node of `wide` children is done with as a block."""
    with tempfile.TemporaryDirectory() as folder:
        tree = make_tree(seed, Path(folder))
    rows = data.draw(st.lists(st.integers(0, batch - 1), unique=True))
    nodes = data.draw(st.lists(st.integers(0, len(tree.token) - 1), min_size=len(rows), max_size=len(rows)))
    renormalise = data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows)))
    logits = random_logits(seed, batch)
    expected = logits.clone()
    for row, node, within in zip(rows, nodes, renormalise, strict=True):
        expected[row] = torch.tensor(plain_scores(logits[row].tolist(), allowed_at(tree, node), within))
    TreeScores(tree, CPU, wide).score(
        logits,
        torch.tensor(rows, dtype=torch.int64),
        torch.tensor(nodes, dtype=torch.int64),
        torch.tensor(renormalise, dtype=torch.bool),
    )
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def test_torch_takes_the_mapped_tree_without_a_warning(tmp_path: Path) -> None:
    """Torch warns once a process of arrays that cannot be written: in ours that is an error somewhere."""
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            TreeScores(make_tree(0, tmp_path), CPU)
    finally:
        torch.set_warn_always(before)


def test_scores_stand_extreme_logits(tmp_path: Path) -> None:
    """Where the plain sum would overflow, and where the allowed tokens are almost impossible."""
    tree = build(["a", "b"], letters, END, tmp_path)
    logits = torch.full((2, VOCABULARY), 1000.0)
    logits[:, 0], logits[:, 1] = -1000.0, -1001.0
    every = torch.tensor([0, 1])
    TreeScores(tree, CPU).score(logits, every, torch.zeros_like(every), torch.tensor([False, True]))
    assert logits[0, :2].tolist() == pytest.approx([-2000 - math.log(28), -2001 - math.log(28)], rel=1e-6)
    inner = math.log(1 + math.exp(-1))
    assert logits[1, :2].tolist() == pytest.approx([-inner, -1 - inner], rel=1e-3)
    assert logits[:, 2:].eq(-math.inf).all()


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 60))
def test_step_is_the_tree_s_step(seed: int, count: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        tree = make_tree(seed, Path(folder), count)
    pairs = [(n, t) for n in range(len(tree.token)) for t in range(VOCABULARY + 1)]
    nodes, tokens = (torch.tensor(column) for column in zip(*pairs, strict=True))
    expected = [tree.step(n, t) for n, t in pairs]
    scores = TreeScores(tree, CPU)
    assert scores.step(nodes, tokens).tolist() == expected
    assert scores.step(nodes, tokens.to(torch.int32)).tolist() == expected  # as the runner keeps them
    lost = torch.full_like(nodes, UNCONSTRAINED)
    assert scores.step(lost, tokens).eq(UNCONSTRAINED).all()


@pytest.mark.parametrize(("node", "renormalise"), [(-1, True), ("0", True), (0, 1), (1.0, False)])
@pytest.mark.parametrize("constraint", [TreeConstraintV1, TreeConstraintV2])
def test_a_wrong_request_is_refused(constraint: Any, node: Any, renormalise: Any) -> None:
    extra = {"tree": "here", "tree_node": node, "tree_renormalise": renormalise}
    with pytest.raises(ValueError, match="tree_node and tree_renormalise"):
        constraint.validate_params(SamplingParams(extra_args=extra))


@pytest.mark.parametrize("constraint", [TreeConstraintV1, TreeConstraintV2])
def test_a_request_that_names_no_tree_is_refused(constraint: Any) -> None:
    with pytest.raises(ValueError, match="tree, tree_node and tree_renormalise"):
        constraint.validate_params(SamplingParams(extra_args={"tree_node": 0, "tree_renormalise": True}))


@pytest.mark.parametrize("constraint", [TreeConstraintV1, TreeConstraintV2])
def test_a_right_request_is_taken(constraint: Any) -> None:
    constraint.validate_params(wants(Path("here"), 0, True))
    constraint.validate_params(FREE)


# The first runner, by hand: what each kind of move does to the rows.


@dataclass
class ByHand:
    """Rows of the first runner, moved as its documentation says: removed, added, then moved."""

    folder: Path
    tree: PrefixTree
    constraint: TreeConstraintV1
    rows: dict[int, tuple[str, int | None, list[int]]] = field(default_factory=dict)  # name, node, output

    def update(
        self,
        removed: list[int] | None = None,
        added: list[tuple[int, str, int | None, list[int]]] | None = None,
        moved: list[tuple[int, int, MoveDirectionality]] | None = None,
    ) -> None:
        for row in removed or []:
            del self.rows[row]
        for row, name, node, output in added or []:
            self.rows[row] = (name, node, output)
        for source, target, direction in moved or []:
            there = self.rows.pop(target, None)
            self.rows[target] = self.rows.pop(source)
            if direction == MoveDirectionality.SWAP and there is not None:
                self.rows[source] = there
        new = [
            (r, FREE if n is None else wants(self.folder, n, True), [1, 2], out)
            for r, _, n, out in added or []
        ]
        self.constraint.update_state(BatchUpdate(len(self.rows), removed or [], new, moved or []))

    def check(self) -> None:
        raw = random_logits([sorted(self.rows), self.rows], max(self.rows, default=0) + 1)
        got = self.constraint.apply(raw.clone())
        for row, (name, node, output) in self.rows.items():
            want = raw[row].tolist()
            if node is not None:
                want = plain_scores(want, allowed_at(self.tree, self.tree.walk(output, node)), True)
            torch.testing.assert_close(got[row], torch.tensor(want), atol=1e-5, rtol=1e-5, msg=name)
        for row in set(range(len(raw))) - self.rows.keys():
            assert got[row].equal(raw[row]), f"row {row} is nobody's"


@pytest.fixture
def by_hand(tmp_path: Path) -> ByHand:
    tree = build(["abc", "abd", "aef", "b", "bcd", "gh"], letters, END, tmp_path)
    return ByHand(tmp_path, tree, TreeConstraintV1(NO_CONFIG, CPU, False))


def test_rows_are_added_and_grow_with_their_output(by_hand: ByHand) -> None:
    first: list[int] = []
    by_hand.update(added=[(0, "first", 0, first), (1, "free", None, []), (2, "resumed", 0, [1, 2])])
    by_hand.check()
    first += [0]
    by_hand.constraint.update_state(None)  # nothing moved
    by_hand.check()
    first += [1, 3]
    by_hand.check()


def test_a_row_is_replaced_while_it_was_never_removed(by_hand: ByHand) -> None:
    by_hand.update(added=[(0, "old", 0, [0, 1]), (1, "other", 0, [])])
    by_hand.check()
    by_hand.update(added=[(0, "new", 0, [])])
    by_hand.check()
    by_hand.update(added=[(0, "free", None, [])])
    by_hand.check()


def test_a_removed_row_leaves_nothing_behind(by_hand: ByHand) -> None:
    by_hand.update(added=[(0, "a", 0, [0]), (1, "b", 0, [1]), (2, "c", 0, [6])])
    by_hand.update(removed=[2])
    by_hand.check()
    by_hand.update(added=[(2, "free", None, [])])
    by_hand.check()


@pytest.mark.parametrize("free", ["source", "target", "neither"])
@pytest.mark.parametrize("direction", list(MoveDirectionality))
def test_rows_move_with_what_they_have_reached(
    by_hand: ByHand, direction: MoveDirectionality, free: str
) -> None:
    source, target = (None if free == "source" else 0), (None if free == "target" else 0)
    by_hand.update(added=[(0, "target", target, [0]), (1, "still", 0, [1]), (2, "source", source, [0, 4])])
    by_hand.check()
    by_hand.update(moved=[(2, 0, direction)])
    by_hand.check()


def test_a_row_moves_onto_a_free_place(by_hand: ByHand) -> None:
    by_hand.update(added=[(0, "a", 0, [0]), (1, "b", 0, [1]), (2, "c", 0, [6])])
    by_hand.update(removed=[0], moved=[(2, 0, MoveDirectionality.UNIDIRECTIONAL)])
    by_hand.check()
    assert set(by_hand.rows) == {0, 1}


# Both runners over whole lives of requests.


@dataclass
class Request:
    """One request, and where it stands in the scheduler's eyes."""

    name: str
    prompt: list[int]
    params: SamplingParams
    output: list[int] = field(default_factory=list)
    computed: int = 0
    state: str = "waiting"  # running, preempted, lingering (ended, one step more), done

    @property
    def total(self) -> int:
        return len(self.prompt) + len(self.output)

    def allowed(self, trees: dict[str, PrefixTree]) -> list[int] | None:
        """Tokens that may come next; None without constraint."""
        if (extra := self.params.extra_args) is None:
            return None
        tree = trees[extra["tree"]]
        return allowed_at(tree, tree.walk(self.output, extra["tree_node"]))

    def logits(self, step: int) -> torch.Tensor:
        return random_logits([self.name, self.output, step], 1)[0]


@dataclass
class Scheduled:
    """What one step runs: tokens of each request, and who left the batch before it."""

    tokens: dict[str, int]
    finished: list[str]
    preempted: list[str]


class FirstRunner:
    """vLLM's own persistent batch, told what its model runner tells it (_update_states)."""

    def __init__(self, rng: random.Random) -> None:
        self.constraint = TreeConstraintV1(NO_CONFIG, CPU, False)
        self.batch = InputBatch(
            max_num_reqs=ROWS, max_model_len=LENGTH, max_num_batched_tokens=LENGTH, device=CPU,
            vocab_size=VOCABULARY, block_sizes=[16], max_num_blocks_per_req=[8],
            logitsprocs=LogitsProcessors([self.constraint]),
        )  # fmt: skip
        self.states: dict[str, CachedRequestState] = {}
        self.rng = rng

    def step(self, plan: Scheduled, requests: dict[str, Request], step: int) -> dict[str, torch.Tensor]:
        for name in plan.finished:
            self.states.pop(name)
            self.batch.remove_request(name)
        for name in set(self.batch.req_id_to_index) - plan.tokens.keys():  # preempted, or not scheduled
            self.batch.remove_request(name)
        for name in plan.tokens.keys() - self.batch.req_id_to_index.keys():
            self.batch.add_request(self.states.setdefault(name, self._state(requests[name])))
        self.batch.condense()
        for _ in range(self.rng.choice([0, 0, 1, 2]) if len(plan.tokens) > 1 else 0):
            self.batch.swap_states(*self.rng.sample(range(len(plan.tokens)), 2))
        self.batch.refresh_metadata()
        logits = torch.stack([requests[name].logits(step) for name in self.batch.req_ids])
        return dict(zip(self.batch.req_ids, self.constraint.apply(logits), strict=True))

    def _state(self, request: Request) -> CachedRequestState:
        return CachedRequestState(
            req_id=request.name, prompt_token_ids=request.prompt, mm_features=[],
            sampling_params=request.params, generator=None, block_ids=([],), num_computed_tokens=0,
            output_token_ids=[],
        )  # fmt: skip

    def sampled(self, name: str, token: int) -> None:
        self.states[name].output_token_ids.append(token)


class SecondRunner:
    """A fake of vLLM's second model runner, which needs a GPU: its slots and its LogitsContext.

    As there: slots come from a free list and keep what their last request left in them; a request that
    was preempted comes back as a new one, in another slot, with its output as part of what is prefilled;
    decodes stand before prefills; host arrays reach the device only when they are flushed; under a full
    CUDA graph the host's sequence lengths are padded with zeros to the graph's size.
    """

    def __init__(self, padded: bool) -> None:
        self.padded = padded
        self.free = list(range(ROWS))
        self.slot: dict[str, int] = {}
        self.tokens = SimpleNamespace(gpu=torch.zeros((ROWS, LENGTH), dtype=torch.int32))
        self.prompt, self.prefill = self._on_both(), self._on_both()
        self.total = SimpleNamespace(gpu=torch.zeros(ROWS, dtype=torch.int32))
        states = LogitsProcRequestState(
            device=CPU, max_num_reqs=ROWS, vocab_size=VOCABULARY, all_token_ids=self.tokens,
            prompt_len=self.prompt, prefill_len=self.prefill, total_len=self.total,
        )  # fmt: skip
        self.constraint = TreeConstraintV2(NO_CONFIG, states)
        self.needs_processing = np.zeros(ROWS, dtype=bool)

    @staticmethod
    def _on_both() -> Any:
        return SimpleNamespace(np=np.zeros(ROWS, dtype=np.int32), gpu=torch.zeros(ROWS, dtype=torch.int32))

    def step(self, plan: Scheduled, requests: dict[str, Request], step: int) -> dict[str, torch.Tensor]:
        for name in sorted({*plan.finished, *plan.preempted}):
            self.free.append(self.slot.pop(name))
        for name in plan.tokens:
            if name not in self.slot:
                self._add(requests[name])
        self.prompt.gpu, self.prefill.gpu = (torch.tensor(x.np) for x in (self.prompt, self.prefill))
        self.constraint.apply_staged_writes()

        names = sorted(plan.tokens, key=lambda n: (plan.tokens[n] != 1, plan.tokens[n]))
        slots = np.array([self.slot[n] for n in names], dtype=np.intp)
        lengths = np.array([requests[n].computed + plan.tokens[n] for n in names], dtype=np.int32)
        logits = torch.stack([requests[n].logits(step) for n in names])
        if self.needs_processing[slots].any():
            logits = self.constraint.apply(logits, self._context(names, slots, lengths, plan))
        return dict(zip(names, logits, strict=True))

    def _add(self, request: Request) -> None:
        slot = self.slot[request.name] = self.free.pop()
        known = [*request.prompt, *request.output]
        self.prompt.np[slot], self.prefill.np[slot] = len(request.prompt), len(known)
        self.total.gpu[slot] = len(known)
        self.tokens.gpu[slot, : len(known)] = torch.tensor(known, dtype=torch.int32)
        self.needs_processing[slot] = self.constraint.add_request(slot, request.params)

    def _context(
        self, names: list[str], slots: np.ndarray, lengths: np.ndarray, plan: Scheduled
    ) -> LogitsContext:
        decodes = all(plan.tokens[n] == 1 for n in names)
        size = 1 << (len(names) - 1).bit_length() if self.padded and decodes else len(names)
        on_device = torch.from_numpy(slots.copy())
        position = torch.from_numpy(lengths.astype(np.int64)) - 1
        return LogitsContext(
            expanded_idx_mapping=on_device,
            idx_mapping=on_device,
            idx_mapping_np=slots,
            expanded_local_pos=torch.zeros(len(names), dtype=torch.int32),
            input_ids=self.tokens.gpu[on_device, position],
            pos=position,
            seq_lens_upper_bound_np=np.concatenate([lengths, np.zeros(size - len(names), np.int32)]),
        )

    def sampled(self, name: str, token: int) -> None:
        slot = self.slot[name]
        self.tokens.gpu[slot, int(self.total.gpu[slot])] = token
        self.total.gpu[slot] += 1


class Life:
    """A scheduler that does to requests, at random, whatever vLLM's may: chunked prefill, preemption and
    resumption, requests left out of a step, aborted ones, ended ones that stay a step longer."""

    def __init__(self, folder: Path, seed: int, padded: bool) -> None:
        self.rng = random.Random(seed)
        folders = [folder / "former", folder / "renewed"]
        self.trees = {str(f): make_tree(seed + i, f) for i, f in enumerate(folders)}
        self.first, self.second = FirstRunner(self.rng), SecondRunner(padded)
        self.requests: dict[str, Request] = {}
        self.left: list[str] = []  # finished or aborted since the last step
        self.preempted: list[str] = []  # since the last step
        self.compared = 0

    def run(self, steps: int) -> None:
        for step in range(steps):
            if plan := self._plan():
                self._step(plan, step)

    def _new(self) -> Request:
        name = self.rng.choice(list(self.trees))
        folder, tree = Path(name), self.trees[name]
        inner = [n for n in range(len(tree.token)) if not tree.is_leaf(n)]
        node = self.rng.choice([0, 0, self.rng.choice(inner)])
        params = self.rng.choice([FREE, wants(folder, node, True), *[wants(folder, node, False)] * 2])
        prompt = [self.rng.randrange(VOCABULARY) for _ in range(self.rng.randint(1, 12))]
        return Request(f"r{len(self.requests)}", prompt, params)

    def _plan(self) -> Scheduled | None:
        rng = self.rng
        for request in [r for r in self._in("running") if r.name in self.second.slot]:
            if rng.random() < 0.07:
                request.state, request.computed = "preempted", 0
                self.preempted.append(request.name)
            elif rng.random() < 0.04:
                request.state = "done"
                self.left.append(request.name)
        for request in [r for r in self._in("preempted") if r.name not in self.preempted]:
            if rng.random() < 0.5:
                request.state = "running"
        while len(self._alive()) < ROWS and rng.random() < 0.6:
            request = self._new()
            self.requests[request.name], request.state = request, "running"
        ready = [r for r in (*self._in("running"), *self._in("lingering")) if rng.random() < 0.9]
        if not ready:
            return None  # who left is told at the next step that runs
        plan = Scheduled({r.name: self._chunk(r) for r in ready}, self.left, self.preempted)
        self.left, self.preempted = [], []
        return plan

    def _chunk(self, request: Request) -> int:
        missing = request.total - request.computed
        return self.rng.randint(1, missing) if self.rng.random() < 0.4 else missing

    def _in(self, state: str) -> list[Request]:
        return [r for r in self.requests.values() if r.state == state]

    def _alive(self) -> list[Request]:
        return [r for r in self.requests.values() if r.state != "done"]

    def _step(self, plan: Scheduled, step: int) -> None:
        one, two = (r.step(plan, self.requests, step) for r in (self.first, self.second))
        assert one.keys() == two.keys() == plan.tokens.keys()
        for name, count in plan.tokens.items():
            request = self.requests[name]
            request.computed += count
            if request.computed < request.total:  # what is computed of such a row is thrown away
                continue
            self._compare(request, one[name], two[name], step)
            self._sample(request, one[name])

    def _compare(self, request: Request, one: torch.Tensor, two: torch.Tensor, step: int) -> None:
        raw, allowed = request.logits(step), request.allowed(self.trees)
        want = raw.tolist()
        if allowed is not None:
            assert request.params.extra_args
            want = plain_scores(want, allowed, request.params.extra_args["tree_renormalise"])
        for got in (one, two):
            torch.testing.assert_close(got, torch.tensor(want), atol=1e-5, rtol=1e-5)
        assert one.equal(two)
        self.compared += 1

    def _sample(self, request: Request, logits: torch.Tensor) -> None:
        if request.state == "lingering":
            request.state = "done"
            self.left.append(request.name)
            return
        possible = torch.nonzero(logits > -math.inf).flatten().tolist()
        token = self.rng.choice(possible)
        request.output.append(token)
        for runner in (self.first, self.second):
            runner.sampled(request.name, token)
        if token == END or request.total == LENGTH - 1:
            request.state = self.rng.choice(["done", "lingering"]) if token == END else "done"
            if request.state == "done":
                self.left.append(request.name)


@pytest.mark.parametrize("padded", [False, True], ids=["eager", "full CUDA graphs"])
@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32))
def test_both_runners_give_the_same_over_whole_lives(padded: bool, seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        life = Life(Path(folder), seed, padded)
        life.run(40)


def test_those_lives_are_eventful(tmp_path: Path) -> None:
    """Guards the test above: that its scheduler does what it claims to."""
    life = Life(tmp_path, 5, padded=False)
    seen = {"chunked": 0, "preempted": 0, "resumed with output": 0, "left out": 0, "ended": 0}
    for step in range(200):
        if plan := life._plan():
            seen["preempted"] += len(plan.preempted)
            seen["left out"] += len(life._in("running")) > len(plan.tokens)
            seen["ended"] += len(plan.finished)
            for name, count in plan.tokens.items():
                request = life.requests[name]
                seen["chunked"] += count < request.total - request.computed
                seen["resumed with output"] += request.computed == 0 and bool(request.output)
            life._step(plan, step)
    assert all(count >= 5 for count in seen.values()), seen
    assert life.compared > 100


def test_the_second_runner_s_slots_start_anew(tmp_path: Path) -> None:
    """A slot's next request is free of the last one's place in the tree, constrained or not."""
    tree = build(["abc", "abd", "b"], letters, END, tmp_path)
    runner = SecondRunner(padded=False)
    old = Request("old", [1, 2, 3], wants(tmp_path, 0, True))
    runner.step(Scheduled({"old": 3}, [], []), {"old": old}, 0)
    old.computed = 3
    for token in (0, 1):
        runner.sampled("old", token)
        old.output.append(token)
        runner.step(Scheduled({"old": 1}, [], []), {"old": old}, 1)
        old.computed += 1
    for params in (FREE, wants(tmp_path, 0, False)):
        new = Request("new", [4], params)
        got = runner.step(Scheduled({"new": 1}, [*runner.slot], []), {"new": new}, 2)["new"]
        want = new.logits(2).tolist()
        if params is not FREE:
            want = plain_scores(want, allowed_at(tree, 0), False)
        torch.testing.assert_close(got, torch.tensor(want), atol=1e-5, rtol=1e-5)
        assert runner.slot == {"new": ROWS - 1}  # the very slot that the old one had


def test_a_tree_is_open_while_it_is_used(tmp_path: Path) -> None:
    """And one that is dropped too early is opened again."""
    for name in ("former", "renewed"):
        build(["abc" if name == "former" else "ab"], letters, END, tmp_path / name)
    former, renewed = (str(tmp_path / name) for name in ("former", "renewed"))
    trees = Trees(CPU)
    first = trees[former][0]
    for _ in range(500):
        assert trees[former][0] is first
        trees.end_step()
    for _ in range(500):
        assert trees[renewed][0].depth == 3
        trees.end_step()
    assert len(trees) == 1
    assert trees[former][0].depth == 4
