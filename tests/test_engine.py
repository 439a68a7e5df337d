"""The engine against Hugging Face, with real models: same candidates, same scores, pictures included."""

from __future__ import annotations

import asyncio
import copy
import json
import random
from typing import Any, NamedTuple

import pytest
import torch
from files import SHARED, TEST

from gemel_ray.config import Config
from gemel_ray.engine.run import Engine
from gemel_ray.engine.search import Expansions, beam, exact, greedy
from gemel_ray.engine.vllm import starting
from gemel_ray.engine.work import Candidate, Prompt, RolloutOptions, Usage
from gemel_ray.graph import run_in_process
from gemel_ray.knowledge.prefix_tree import PrefixTree
from gemel_ray.knowledge.workspace import Workspace
from gemel_ray.linking import linking_graph
from gemel_ray.readers import documents
from gemel_ray.stages.assemble import query_text

pytestmark = pytest.mark.slow
MENTIONS = 4


@pytest.fixture(scope="module")
def prompts(workspace: Workspace, config: Config, generating: Any) -> list[Prompt]:
    """Prompt embeddings of test pictures, four demonstrations with pictures before each."""
    first = next(documents(str(TEST), batch=MENTIONS))
    segment = linking_graph(config, workspace).segment(
        ["detect", "encode", "retrieve", "assemble"], workspace
    )
    rows = next(run_in_process(segment, iter([first]))).to_pylist()
    assert sum(any(t < 0 for t in row["prompt"]) for row in rows) == MENTIONS, (
        "no visual prefix in the prompts"
    )
    return [generating.prompts(r["prompt"], torch.tensor(r["image_vector"]).numpy()) for r in rows]


@pytest.fixture(scope="module")
def reference(workspace: Workspace) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(workspace.language_model, dtype=torch.float32)


def search(
    generating: Any,
    prompt: Prompt,
    *,
    width: int,
    renormalise: bool,
    penalty: float,
    exactly: bool = False,
) -> list[Candidate]:
    tree, engine = generating.tree, generating.engine

    async def rollout(path: tuple[int, ...], node: int, wide: int = 0) -> Any:
        whole = generating.prompts.extended(prompt, path)
        limit = 1 if wide else tree.depth - len(path)
        return await engine.rollout(
            whole,
            RolloutOptions(
                tree=generating.tree_folder, node=node, limit=limit, wide=wide or 16, renormalise=renormalise
            ),
            Usage(),
        )

    async def run() -> list[Candidate]:
        expansions = Expansions(tree, rollout, renormalise=renormalise)
        if exactly:
            return await exact(tree, expansions, penalty, width)
        if width == 1:
            return await greedy(tree, expansions, penalty)
        return await beam(tree, expansions, penalty, width)

    return asyncio.run(run())


def by_hugging_face(
    model: Any, tree: PrefixTree, prompt: Prompt, beams: int, penalty: float
) -> list[tuple[int, float]]:
    """(leaf, score) of the returned beams, best first."""
    end = tree.end_token

    def allowed(_: int, tokens: torch.Tensor) -> list[int]:
        node = tree.walk(tokens.tolist())
        return tree.children(node)[1].tolist() if node >= 0 and not tree.is_leaf(node) else [end]

    out = model.generate(
        inputs_embeds=prompt.embeddings[None].float(),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        num_beams=beams,
        num_return_sequences=beams,
        max_new_tokens=32,
        do_sample=False,
        eos_token_id=end,
        pad_token_id=end,
        length_penalty=penalty,
        prefix_allowed_tokens_fn=allowed,
        return_dict_in_generate=True,
        output_scores=True,
    )
    names = [s[: s.index(end) + 1] for s in out.sequences.tolist() if end in s]
    return [(tree.walk(n), score) for n, score in zip(names, out.sequences_scores.tolist(), strict=True)]


@pytest.mark.gpu
def test_on_a_gpu_these_tests_are_of_the_second_model_runner(generating: Any) -> None:
    """Whose constraint test_constraint.py, which needs no GPU, knows by an imitation of the runner only."""
    opened = generating.engine._engine.vllm_config
    assert opened.use_v2_model_runner
    assert opened.model_config.logits_processors == ["gemel_ray.engine.vllm.constraint:TreeConstraintV2"]


def test_five_beams_find_what_hugging_face_finds(
    generating: Any, prompts: list[Prompt], reference: Any
) -> None:
    for prompt in prompts:
        ours = search(generating, prompt, width=5, renormalise=False, penalty=1.0)
        theirs = by_hugging_face(reference, generating.tree, prompt, 5, 1.0)
        assert [c.leaf for c in ours] == [leaf for leaf, _ in theirs]
        assert [c.score for c in ours] == pytest.approx([score for _, score in theirs], abs=1e-3)


def test_five_beams_find_what_hugging_face_finds_on_real_captions(
    generating: Any, workspace: Workspace, reference: Any
) -> None:
    """Names of this knowledge base, prompts of real captions (without demonstrations: they are long)."""
    source = SHARED / "wikidiverse" / "dev.json"
    if not source.exists():
        pytest.skip("../shared/data is not on this machine")
    lines = random.Random(0).sample(source.read_text().splitlines(), 4)
    for raw in map(json.loads, lines):
        text = query_text(raw["text"], raw["mention"])
        prompt = generating.prompts(workspace.tokenize([text])[0], None)
        ours = search(generating, prompt, width=5, renormalise=False, penalty=1.0)
        theirs = by_hugging_face(reference, generating.tree, prompt, 5, 1.0)
        assert [c.leaf for c in ours] == [leaf for leaf, _ in theirs]
        assert [c.score for c in ours] == pytest.approx([score for _, score in theirs], abs=1e-3)


def test_tree_scores_are_the_models_probabilities_of_names(
    generating: Any, prompts: list[Prompt], reference: Any
) -> None:
    """A candidate's score, computed anew by Hugging Face in one pass over its name."""
    tree = generating.tree
    path_of = {leaf: path for path, leaf in tree.names()}
    prompt = prompts[0]
    for candidate in search(generating, prompt, width=3, renormalise=True, penalty=0.0):
        path = path_of[candidate.leaf]
        whole = torch.cat([prompt.embeddings.float(), generating.engine.embed(path[:-1]).float()])
        with torch.no_grad():
            logits = reference(inputs_embeds=whole[None]).logits[0, len(prompt) - 1 :]
        node, total = tree.root, 0.0
        for token, row in zip(path, logits, strict=True):
            allowed = torch.tensor(tree.children(node)[1].tolist())
            total += (row[token] - row[allowed].logsumexp(0)).item()
            node = tree.step(node, token)
        assert candidate.log_prob == pytest.approx(total, abs=1e-3)


def test_greedy_is_the_first_of_one_beam(generating: Any, prompts: list[Prompt]) -> None:
    for prompt in prompts[:3]:
        one = search(generating, prompt, width=1, renormalise=True, penalty=0.0)
        path = next(path for path, leaf in generating.tree.names() if leaf == one[0].leaf)
        node = generating.tree.root
        engine: Engine = generating.engine
        for depth in range(len(path)):
            extended = generating.prompts.extended(prompt, tuple(path[:depth]))
            steps = asyncio.run(
                engine.rollout(
                    extended,
                    RolloutOptions(tree=generating.tree_folder, node=node, limit=1, wide=16),
                    Usage(),
                )
            )
            assert steps[0].tokens[0] == path[depth]
            node = generating.tree.step(node, path[depth])


class Names(NamedTuple):
    """By leaf, the log-probability of every name: of all names of the tree, and of all texts."""

    of_names: dict[int, float]
    of_texts: dict[int, float]


def every_name(model: Any, tree: PrefixTree, prompt: Prompt) -> Names:
    """Brute force: all names teacher-forced behind the prompt, those of a length together."""
    found = Names({}, {})
    with torch.no_grad():
        read = model(inputs_embeds=prompt.embeddings[None].float(), use_cache=True)
        names = sorted(tree.names(), key=lambda name: len(name[0]))
        for i in range(0, len(names), 32):
            some = names[i : i + 32]
            cache = copy.deepcopy(read.past_key_values)
            cache.batch_repeat_interleave(len(some))
            written = [torch.tensor(path[:-1], dtype=torch.long) for path, _ in some]
            ids = torch.nn.utils.rnn.pad_sequence(written, batch_first=True)
            behind = model(input_ids=ids, past_key_values=cache).logits
            before = read.logits[:, -1:].expand(len(some), -1, -1)
            for (path, leaf), logits in zip(some, torch.cat([before, behind], dim=1), strict=True):
                steps = logits[: len(path)].log_softmax(-1)
                found.of_texts[leaf] = sum(row[token].item() for token, row in zip(path, steps, strict=True))
                node, among = tree.root, 0.0
                for token, row in zip(path, steps, strict=True):
                    among += row[tree.children(node)[1].tolist()].logsumexp(0).item()
                    node = tree.step(node, token)
                found.of_names[leaf] = found.of_texts[leaf] - among
    return found


@pytest.fixture(scope="module")
def all_names(generating: Any, prompts: list[Prompt], reference: Any) -> list[Names]:
    """Of the first two prompts."""
    return [every_name(reference, generating.tree, prompt) for prompt in prompts[:2]]


@pytest.mark.parametrize("renormalise", [True, False])
def test_exact_finds_the_best_of_all_names(
    generating: Any, prompts: list[Prompt], all_names: list[Names], renormalise: bool
) -> None:
    for prompt, names in zip(prompts, all_names, strict=False):
        right = names.of_names if renormalise else names.of_texts
        ours = search(generating, prompt, width=5, renormalise=renormalise, penalty=0.0, exactly=True)
        assert ours[0].leaf == max(right, key=lambda leaf: right[leaf])
        assert [c.log_prob for c in ours] == pytest.approx(sorted(right.values())[:-6:-1], abs=1e-3)
        assert [right[c.leaf] for c in ours] == pytest.approx([c.log_prob for c in ours], abs=1e-3)


def test_exact_is_at_least_as_good_as_beam_and_greedy(generating: Any, prompts: list[Prompt]) -> None:
    for prompt in prompts:
        ours = search(generating, prompt, width=5, renormalise=True, penalty=0.0, exactly=True)
        beams = search(generating, prompt, width=5, renormalise=True, penalty=0.0)
        one = search(generating, prompt, width=1, renormalise=True, penalty=0.0)
        assert all(e.log_prob >= b.log_prob - 1e-4 for e, b in zip(ours, beams, strict=True))
        assert ours[0].log_prob >= one[0].log_prob - 1e-4


def test_the_prior_is_what_the_model_gives_without_a_question(
    generating: Any, workspace: Workspace, reference: Any
) -> None:
    neutral = generating.prompts(workspace.tokenize([query_text("", "")])[0], None)
    right = every_name(reference, generating.tree, neutral).of_names
    leaves = random.Random(0).sample(sorted(right), 10)
    found = [Candidate(leaf, 0.0, 0.0) for leaf in leaves]
    corrected = asyncio.run(generating.rollouts.prior.corrected(found, 1.0, 0.0))
    assert {c.leaf: -c.score for c in corrected} == pytest.approx({n: right[n] for n in leaves}, abs=1e-3)


def test_a_cancelled_caller_frees_the_engine(generating: Any, prompts: list[Prompt]) -> None:
    engine: Engine = generating.engine
    turned = Prompt(prompts[0].embeddings.flip(0), prompts[0].identity[::-1], len(prompts[0]))

    async def leave() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await engine.rollout(
                    turned, RolloutOptions(tree=generating.tree_folder, node=0, limit=20, wide=16), Usage()
                )

    asyncio.run(leave())
    assert search(generating, prompts[1], width=2, renormalise=True, penalty=0.0)
    assert not engine.busy


def test_what_stands_behind_a_held_prompt_is_computed_alone(generating: Any, prompts: list[Prompt]) -> None:
    """Not its last, half-filled block, whatever else has run; the numbers are the same. Let go, it is."""
    engine: Engine = generating.engine
    tree, prompt = generating.tree, prompts[2]
    first, tokens = tree.children(tree.root)
    paths = [(int(t),) for i, t in enumerate(tokens) if not tree.is_leaf(first + i)][:6]
    tail = len(prompt) % generating.stage.block
    assert tail, "this prompt ends with a block: another one is wanted"

    def asked(path: tuple[int, ...], hold: int, after: list[tuple[int, int]]) -> tuple[int, list[Any]]:
        usage = Usage()
        want = RolloutOptions(
            tree=generating.tree_folder, node=tree.walk(path), limit=1, wide=16, keep=hold, after=after
        )
        (step,) = asyncio.run(engine.rollout(generating.prompts.extended(prompt, path), want, usage))
        return usage.asked - usage.cached, [step.tokens, step.log_probs]

    engine.forget()
    alone = [asked(path, 0, []) for path in paths]
    assert [computed for computed, _ in alone[1:]] == [tail + 1] * 5
    engine.forget()
    hold = engine.hold()
    asked((), hold, [])
    search(generating, prompts[3], width=5, renormalise=True, penalty=0.0)  # takes blocks and gives them back
    held = [asked(path, hold, [(hold, prompt.base)]) for path in paths]
    assert [computed for computed, _ in held] == [1] * 6
    for (_, (tokens_held, scores_held)), (_, (tokens_alone, scores_alone)) in zip(held, alone, strict=True):
        assert tokens_held[:3] == tokens_alone[:3]
        assert scores_held == pytest.approx(scores_alone, abs=1e-3)
    engine.release(hold)
    assert asked(paths[0], 0, [(hold, prompt.base)])[0] == tail + 1


def test_a_longer_prompt_hashes_only_what_is_new(generating: Any, prompts: list[Prompt]) -> None:
    engine: Engine = generating.engine
    prompt = generating.prompts.extended(prompts[0], ())
    prompt.hashes.clear()

    def hashed(path: tuple[int, ...]) -> int:
        before = engine.measures()["hashed"]
        want = RolloutOptions(tree=generating.tree_folder, node=0, limit=1, wide=1)
        asyncio.run(engine.rollout(generating.prompts.extended(prompt, path), want, Usage()))
        return engine.measures()["hashed"] - before

    block = 8 * generating.stage.block + 32  # numbers of 8 bytes, and the hash of all before
    assert hashed(()) == pytest.approx(len(prompt) // generating.stage.block * block, abs=block)
    assert hashed((5,)) <= block
    assert hashed(()) <= block


def test_a_start_asks_no_other_process_about_the_model(
    generating: Any, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would import vLLM once more, unless a cache in the user's home knows the answer."""
    from vllm.model_executor.models import registry

    def another_process(*given: Any) -> None:
        raise AssertionError("vLLM starts a process")

    monkeypatch.setattr(registry, "_run_in_subprocess", another_process)
    asked = registry._LazyRegisteredModel("vllm.model_executor.models.llama", "LlamaForCausalLM")
    monkeypatch.setattr(registry._LazyRegisteredModel, "_load_modelinfo_from_cache", lambda *given: None)
    with pytest.raises(AssertionError):
        asked.inspect_model_cls()
    monkeypatch.setitem(registry.ModelRegistry.models, "LlamaForCausalLM", asked)
    starting._inspect(workspace.language_model)
    assert registry.ModelRegistry.models["LlamaForCausalLM"].inspect_model_cls().architecture


def test_a_gpu_captures_few_graphs_and_compiles_nothing(generating: Any) -> None:
    from vllm import envs
    from vllm.config import CompilationConfig, CUDAGraphMode

    made = CompilationConfig(**starting._graphs(1536))
    assert (int(made.mode), made.cudagraph_mode) == (0, CUDAGraphMode.FULL_DECODE_ONLY)
    assert made.cudagraph_capture_sizes == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]
    assert starting._graphs(300)["cudagraph_capture_sizes"][-1] == 256
    assert not envs.VLLM_USE_FLASHINFER_SAMPLER
