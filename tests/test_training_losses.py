"""Losses, decoding and batches, each against a plain way of saying the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_training import tiny_language_model
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma2ForCausalLM

from gemel_ray.knowledge import prefix_tree
from gemel_ray.models.mapper import FeatureMapper
from gemel_ray.settings import Train
from gemel_ray.training import Example, item_losses
from gemel_ray.training.decoding import accuracy, decode
from gemel_ray.training.loop import optimiser, schedule
from gemel_ray.training.losses import micro_batches
from gemel_ray.training.team import batch_of

FEATURE, WIDTH = 12, 32


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tiny_language_model(tmp_path_factory.mktemp("lm"))
    made: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return made.eval().requires_grad_(False)


def mapper(prefix: int, hidden: int) -> FeatureMapper:
    torch.manual_seed(prefix)
    made = FeatureMapper(FEATURE, prefix, WIDTH, hidden)
    if hidden:
        torch.nn.init.normal_(made.outer.weight)
    return made


def examples(count: int) -> list[Example]:
    """Of different lengths, with none to three pictures."""
    rng = np.random.default_rng(0)
    made = []
    for i in range(count):
        prompt = rng.integers(5, 40000, 3 + 5 * (i % 4)).tolist()
        places = sorted(rng.choice(len(prompt), i % 4, replace=False).tolist())
        for place in places:
            prompt[place] = -1 if place == places[-1] else -7
        features = rng.normal(size=(len(places), FEATURE)).astype(np.float32)
        made.append(Example(prompt, features, rng.integers(5, 40000, 1 + i % 5).tolist()))
    return made


def plain(model: Any, mapped: FeatureMapper, example: Example, ids: list[int]) -> torch.Tensor:
    """The prompt's embeddings and those of `ids`, one by one."""
    embed, prefixes = model.get_input_embeddings(), iter(mapped(torch.from_numpy(example.features)))
    parts = [embed(torch.tensor([t])) if t >= 0 else next(prefixes) for t in [*example.prompt, *ids]]
    return torch.cat(parts)[None]


@pytest.mark.parametrize(("prefix", "hidden"), [(1, 0), (2, 0), (4, 0), (8, 0), (4, 6)])
def test_item_losses_are_those_of_hugging_face(model: Any, prefix: int, hidden: int) -> None:
    mapped, items = mapper(prefix, hidden), examples(9)
    expected = []
    for example in items:
        with torch.no_grad():
            inputs = plain(model, mapped, example, example.target)
            labels = torch.full(inputs.shape[:2], -100)
            labels[0, -len(example.target) :] = torch.tensor(example.target)
            expected.append(model(inputs_embeds=inputs, labels=labels).loss.item())
    assert item_losses(model, mapped, items) == pytest.approx(expected, abs=1e-4)
    assert item_losses(model, mapped, items, tokens=20) == pytest.approx(expected, abs=1e-4)


def test_what_a_model_does_behind_its_head_is_in_the_loss() -> None:
    """Gemma 2 caps its logits: a loss from its head alone is nats away."""
    made = Gemma2Config(
        vocab_size=200,
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        initializer_range=0.4,
        final_logit_softcapping=5.0,
    )
    torch.manual_seed(0)
    model = Gemma2ForCausalLM(made).eval().requires_grad_(False)
    mapped = mapper(4, 0)
    target = [7, 3, 1]
    example = Example([5, -1, 9, 11], np.ones((1, FEATURE), np.float32), target)
    with torch.no_grad():
        inputs = plain(model, mapped, example, target)
        labels = torch.tensor([[-100] * (inputs.shape[1] - len(target)) + target])
        expected = model(inputs_embeds=inputs, labels=labels).loss.item()
    assert item_losses(model, mapped, [example]) == pytest.approx([expected], abs=1e-4)


def test_decoding_is_greedy_under_the_tree(model: Any, tmp_path: Path) -> None:
    """Batched, padded, cached and cut short, it answers what one whole pass a token answers."""
    rng, end = np.random.default_rng(1), 3
    shared = rng.integers(5, 40000, 6).tolist()  # names that branch late, and names that begin others
    names = [[*shared[: n % 7], *rng.integers(5, 40000, n % 3).tolist()] or [9] for n in range(60)]
    names += [shared[:k] for k in range(1, 7)]

    def tokens(rows: list[str]) -> list[list[int]]:
        return [list(names[int(row)]) for row in rows]

    tree = prefix_tree.build(map(str, range(len(names))), tokens, end, tmp_path)
    mapped, items = mapper(4, 0), examples(12)
    expected = []
    for example in items:
        node, path = int(tree.root), []
        while not tree.is_leaf(node):
            with torch.no_grad():
                logits = model(inputs_embeds=plain(model, mapped, example, path)).logits[0, -1]
            _, tokens = tree.children(node)
            path.append(int(tokens[int(logits[torch.from_numpy(np.array(tokens)).long()].argmax())]))
            node = tree.step(node, path[-1])
        expected.append(path)
    assert len({tuple(p) for p in expected}) > 3
    assert decode(model, mapped, tree, items) == expected
    assert decode(model, mapped, tree, items, tokens=30) == expected
    targets = [path if i < 3 else [9] for i, path in enumerate(expected)]
    right = [Example(e.prompt, e.features, t) for e, t in zip(items, targets, strict=True)]
    assert accuracy(model, mapped, tree, right) == 3 / 12


def test_micro_batches_hold_every_example_within_the_budget() -> None:
    items = examples(30)

    def length(example: Example) -> int:
        return len(example.prompt)

    parts = list(micro_batches(items, length, 40))
    assert sorted(i for part in parts for i in part) == list(range(30))
    assert all(len(p) * max(length(items[i]) for i in p) <= 40 for p in parts)
    assert list(micro_batches(items[:2], length, 1)) == [[0], [1]], "one too long stands alone"


def test_every_epoch_has_all_examples_in_another_order() -> None:
    steps = [batch_of(step, 10, 4, seed=0) for step in range(6)]
    assert [len(s) for s in steps] == [4, 4, 2, 4, 4, 2]
    first, second = [i for s in steps[:3] for i in s], [i for s in steps[3:] for i in s]
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    assert batch_of(4, 10, 4, seed=0) == steps[4] != batch_of(4, 10, 4, seed=1)


def test_the_rate_rises_for_a_tenth_of_the_optimiser_steps_and_ends_at_nothing() -> None:
    adam = optimiser(mapper(1, 4), Train(learning_rate=1.0))
    assert [g["weight_decay"] for g in adam.param_groups] == [0.01, 0.0]
    assert {p.ndim for p in adam.param_groups[1]["params"]} == {1}
    line = schedule(adam, 20, 0.1)
    rates = []
    for _ in range(20):
        rates.append(adam.param_groups[0]["lr"])
        adam.step()
        line.step()
    assert rates[:2] == [0.5, 1.0]
    assert rates[2:] == pytest.approx([(20 - s) / 18 for s in range(2, 20)])
    assert adam.param_groups[0]["lr"] == 0.0
