"""Prompts that begin alike are computed once: the losses and gradients are those of whole prompts."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PreTrainedConfig,
)

from gemel_ray.knowledge import prefix_tree
from gemel_ray.models.mapper import FeatureMapper
from gemel_ray.starter.models import language_model
from gemel_ray.training import Example, item_losses
from gemel_ray.training import attention as pack_attention
from gemel_ray.training.decoding import decode
from gemel_ray.training.losses import losses, share_beginnings
from gemel_ray.training.packing import packs
from gemel_ray.training.trunks import Trunks

FEATURE, WIDTH, VOCABULARY = 12, 32, 300
_SHAPE = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": VOCABULARY}
_GROUPED = _SHAPE | {"num_key_value_heads": 2, "intermediate_size": 64, "head_dim": 8}
KINDS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**_GROUPED),
    "opt": OPTConfig(**_SHAPE, word_embed_proj_dim=WIDTH, ffn_dim=64, dropout=0.0),
    "gpt2": GPT2Config(n_embd=WIDTH, n_layer=2, n_head=4, vocab_size=VOCABULARY),
}
UNFIT: dict[str, PreTrainedConfig] = {
    "softcap": Gemma2Config(**_GROUPED),
    "a sliding window of 20": MistralConfig(**_GROUPED, sliding_window=20),
    "an attention that cannot be replaced": BloomConfig(
        hidden_size=WIDTH, n_layer=2, n_head=4, vocab_size=VOCABULARY
    ),
}


def made(config: PreTrainedConfig) -> Any:
    torch.manual_seed(0)
    config = copy.deepcopy(config)  # which attention a model has is written into it
    config.initializer_range = 0.2
    model: Any = AutoModelForCausalLM.from_config(config)
    return model.eval().requires_grad_(False)


def mapper() -> FeatureMapper:
    torch.manual_seed(1)
    return FeatureMapper(FEATURE, 4, WIDTH)


def examples() -> list[Example]:
    """Most begin with six demonstrations, some leave out one of them, some begin otherwise, one has none; two
    are asked the same, with other answers."""
    rng = np.random.default_rng(0)
    pictures = rng.normal(size=(6, FEATURE)).astype(np.float32)
    texts = [rng.integers(5, VOCABULARY, 7 + i).tolist() for i in range(6)]

    def example(rows: list[int], own: int, target: int) -> Example:
        prompt = [n for row in rows for n in (*((-2 - row,) if row != 3 else ()), *texts[row])]
        features = [pictures[row] for row in rows if row != 3] + [rng.normal(size=FEATURE)]
        query = [-1, *rng.integers(5, VOCABULARY, own).tolist()]
        shown = np.array(features, np.float32)
        return Example([*prompt, *query], shown, rng.integers(5, VOCABULARY, target).tolist())

    whole, backwards = list(range(6)), list(range(6))[::-1]
    asked = example(whole, 5, 2)
    return [
        *(example(whole, own, 1 + own % 3) for own in (4, 5, 9, 30)),
        *(example([r for r in whole if r != gone], 6, 2) for gone in (0, 4, 5)),
        *(example(backwards, own, 2) for own in (3, 8)),
        example([], 5, 3),
        asked,
        replace(asked, target=[7, 8, 9, 10]),
    ]


def of_all(model: Any, mapped: FeatureMapper, items: list[Example], tokens: int) -> tuple[list[float], Any]:
    mapped.zero_grad()
    for _, part in losses(model, mapped, items, tokens):
        part.sum().backward()  # type: ignore[no-untyped-call]
    assert mapped.linear.weight.grad is not None
    return item_losses(model, mapped, items, tokens=tokens), mapped.linear.weight.grad.clone()


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("tokens", [20, 200, 10_000])
def test_losses_and_gradients_are_those_of_whole_prompts(kind: str, tokens: int) -> None:
    model, mapped, items = made(KINDS[kind]), mapper(), examples()
    expected, gradient = of_all(model, mapped, items, tokens)
    assert not pack_attention.used_by(model)
    assert share_beginnings(model, mapped) is None
    assert pack_attention.used_by(model)
    found, other = of_all(model, mapped, items, tokens)
    assert found == pytest.approx(expected, abs=1e-4)
    assert torch.allclose(other, gradient, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("kind", list(KINDS))
def test_decoding_behind_a_trunk_answers_the_same(kind: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    names = [rng.integers(5, 30, 1 + n % 4).tolist() for n in range(200)]

    def tokens(rows: list[str]) -> list[list[int]]:
        return [list(names[int(row)]) for row in rows]

    tree = prefix_tree.build(map(str, range(len(names))), tokens, 3, tmp_path)
    model, mapped, items = made(KINDS[kind]), mapper(), examples()
    expected = decode(model, mapped, tree, items)
    assert len({tuple(answer) for answer in expected}) > 2
    assert share_beginnings(model, mapped) is None
    computed: list[int] = []
    model.base_model.register_forward_pre_hook(
        lambda _, __, given: computed.append(given["inputs_embeds"][..., 0].numel()), with_kwargs=True
    )
    assert decode(model, mapped, tree, items) == expected
    whole = sum(len(e.prompt) + 3 * len(e.features) for e in items)
    assert sum(computed) < 0.8 * whole
    assert decode(model, mapped, tree, items, tokens=150) == expected


def test_the_gradients_of_a_long_beginning_are_not_those_of_rounded_scores() -> None:
    """In bfloat16, a score of 30 is off by 0.1."""
    rng = np.random.default_rng(0)
    beginning = rng.integers(5, VOCABULARY, 300).tolist()
    (pack,) = packs([Example([*beginning, last], np.empty((0, FEATURE)), [2]) for last in (3, 4)], 4, 1000)
    torch.manual_seed(0)
    states = [torch.randn(1, 4, len(pack.places), 64) * scale for scale in (16.0, 1.0, 1.0)]
    gradients = []
    for dtype in (torch.float32, torch.bfloat16):
        query, key, value = (state.bfloat16().to(dtype).requires_grad_() for state in states)
        out, _ = pack_attention.attend(None, query, key, value, None, pack=pack)
        out[:, : pack.trunk].float().pow(2).sum().backward()
        gradients.append(key.grad.float())
    assert (gradients[1] - gradients[0]).norm() < 0.02 * gradients[0].norm()


@pytest.mark.slow
def test_rounding_is_not_taken_for_another_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """The starter's language model as training has it by default, in bfloat16."""
    for seed in range(4):
        model = AutoModelForCausalLM.from_pretrained(language_model(), dtype=torch.bfloat16)
        torch.manual_seed(seed)
        assert share_beginnings(model, FeatureMapper(FEATURE, 4, model.config.hidden_size)) is None
    right = pack_attention._by_products
    monkeypatch.setattr(
        pack_attention, "_by_products", lambda g, q, k, v, tk, tv: right(g, q, k, v, tk.roll(1, 1), tv)
    )
    model = AutoModelForCausalLM.from_pretrained(language_model(), dtype=torch.bfloat16)
    mapped = FeatureMapper(FEATURE, 4, model.config.hidden_size)
    assert "losses that differ" in str(share_beginnings(model, mapped))


@pytest.mark.parametrize("why", list(UNFIT))
def test_a_model_whose_attention_does_more_computes_whole_prompts(why: str) -> None:
    model, mapped, items = made(UNFIT[why]), mapper(), examples()
    expected = item_losses(model, mapped, items)
    said = share_beginnings(model, mapped)
    assert said is not None
    assert why in said
    assert item_losses(model, mapped, items) == expected


def test_a_model_with_other_losses_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The made-up prompts' losses say so where nothing else does: here shorter keys."""
    model, mapped = made(KINDS["llama"]), mapper()
    products = pack_attention._by_products

    def wrong(group: Any, q: Any, k: Any, v: Any, tk: Any, tv: Any) -> Any:
        return products(group, q, k, v, tk * 0.5, tv)

    monkeypatch.setattr(pack_attention, "_by_products", wrong)
    said = share_beginnings(model, mapped)
    assert said is not None
    assert "losses that differ" in said


def test_a_beginning_stands_in_a_row_once() -> None:
    items = examples()[:10]
    found = list(packs(items, 4, 10_000))
    assert sorted(m for pack in found for m in pack.members) == list(range(len(items)))
    whole = sum(len(e.prompt) + 3 * len(e.features) + len(e.target) - 1 for e in items)
    assert sum(len(pack.ids) for pack in found) < whole / 2
    most = found[0]
    assert set(most.members) == {0, 1, 2, 3, 5, 6}  # who leaves out the first shares nothing with them
    assert most.trunk == len(items[0].prompt) - 5 + 3 * 5
    assert len({g.cut for g in most.groups}) == 3


def test_rows_are_within_the_budget_where_they_can_be() -> None:
    items = examples()
    for tokens in (1, 90, 150):
        found = list(packs(items, 4, tokens))
        assert sorted(m for pack in found for m in pack.members) == list(range(len(items)))
        assert all(len(pack.ids) <= tokens or len(pack.members) == 1 for pack in found)


def test_pictures_that_differ_are_not_shared() -> None:
    """Two mentions with pictures of their own begin with the same number and not alike; those of
    one document do."""
    rng = np.random.default_rng(0)
    one, other = (rng.normal(size=(1, FEATURE)).astype(np.float32) for _ in range(2))
    items = [Example([-1, 5, 6, 7, 8], shown, [9]) for shown in (one, other, one)]
    rows = [(pack.members, pack.trunk) for pack in packs(items, 4, 1000)]
    assert rows == [([0, 2], 7), ([1], 0)]  # the last number of a prompt is its own


@pytest.mark.parametrize("kind", list(KINDS))
def test_kept_beginnings_have_the_same_losses_and_teach_nothing(kind: str) -> None:
    """With the keys and values of this mapper: the losses are exact, and only pictures behind count."""
    model, mapped, items = made(KINDS[kind]), mapper(), examples()
    assert share_beginnings(model, mapped) is None
    trunks = Trunks(2)

    def of_step(step: int) -> tuple[list[float], Any]:
        mapped.zero_grad()
        found = {}
        for members, part in losses(
            model, mapped, items, 10_000, partial(trunks.of, model, mapped, step=step)
        ):
            part.sum().backward()  # type: ignore[no-untyped-call]
            sizes = [len(items[i].target) for i in members]
            found |= dict(zip(members, (own.mean().item() for own in part.split(sizes)), strict=True))
        assert mapped.linear.weight.grad is not None
        return [found[i] for i in range(len(items))], mapped.linear.weight.grad.clone()

    expected, whole = of_all(model, mapped, items, 10_000)
    found, gradient = of_step(0)
    assert found == pytest.approx(expected, abs=1e-4)
    assert 0 < gradient.norm() != pytest.approx(whole.norm().item(), rel=1e-2)
    with torch.no_grad():
        mapped.linear.weight *= -1
    moved = item_losses(model, mapped, items)
    assert of_step(1)[0] != pytest.approx(moved, abs=1e-3), "still as of step 0"
    assert of_step(2)[0] == pytest.approx(moved, abs=1e-4), "computed anew"
