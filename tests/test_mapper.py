"""The feature mapper's file, and prompts with its prefixes in their places."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from gemel_ray.engine.work import PromptEmbeddings
from gemel_ray.knowledge import bank as banks
from gemel_ray.knowledge.bank import QUERY_IMAGE, Bank, image_of
from gemel_ray.models.mapper import FeatureMapper

FEATURE, PREFIX, WIDTH = 6, 3, 4


def mapper(seed: int = 0) -> FeatureMapper:
    torch.manual_seed(seed)
    return FeatureMapper(FEATURE, PREFIX, WIDTH)


# The file


def test_prefixes_are_one_linear_layer_cut_into_vectors() -> None:
    made = mapper()
    features = torch.randn(5, FEATURE)
    out = made(features)
    assert out.shape == (5, PREFIX, WIDTH)
    weight, bias = made.linear.weight, made.linear.bias
    assert weight.shape == (PREFIX * WIDTH, FEATURE)
    for row, feature in zip(out, features, strict=True):
        for k in range(PREFIX):
            part = slice(k * WIDTH, (k + 1) * WIDTH)
            torch.testing.assert_close(row[k], weight[part] @ feature + bias[part])
    assert made(features[:0]).shape == (0, PREFIX, WIDTH)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_features_of_any_precision_give_float32(dtype: torch.dtype) -> None:
    features = torch.randn(2, FEATURE).to(dtype)
    assert mapper()(features).equal(mapper()(features.float()))


def test_saved_and_loaded_is_the_same(tmp_path: Path) -> None:
    made = mapper()
    made.save(tmp_path / "mapper.safetensors", language="opt", figures={"loss": [3.5, 2.25]}, note="ä")
    again, facts = FeatureMapper.load(tmp_path / "mapper.safetensors")
    features = torch.randn(7, FEATURE)
    assert again(features).equal(made(features))
    assert facts == {"prefix": PREFIX, "width": WIDTH, "feature": FEATURE, "language": "opt"} | {
        "figures": {"loss": [3.5, 2.25]}, "note": "ä"
    }  # fmt: skip
    assert (again.prefix, again.width, again.linear.in_features) == (PREFIX, WIDTH, FEATURE)
    assert not again.training
    assert not any(p.requires_grad for p in again.parameters())
    assert [p.name for p in tmp_path.iterdir()] == ["mapper.safetensors"]  # nothing half-written stays


def test_saving_again_takes_the_old_one_s_place(tmp_path: Path) -> None:
    path = tmp_path / "mapper.safetensors"
    mapper(0).save(path)
    mapper(1).save(path, step=2)
    again, facts = FeatureMapper.load(path)
    assert again.linear.weight.equal(mapper(1).linear.weight)
    assert facts["step"] == 2


def test_a_mapper_saved_in_half_precision_is_loaded_in_float32(tmp_path: Path) -> None:
    made = mapper().half()
    made.save(tmp_path / "m.safetensors")
    again, _ = FeatureMapper.load(tmp_path / "m.safetensors")
    assert again.linear.weight.dtype == torch.float32
    assert again.linear.weight.equal(made.linear.weight.float())


def foreign(path: Path, what: str) -> None:
    weights = {"weight": torch.zeros(PREFIX * WIDTH, FEATURE), "bias": torch.zeros(PREFIX * WIDTH)}
    about = {"mapper": json.dumps({"prefix": PREFIX, "width": WIDTH, "feature": FEATURE})}
    match what:
        case "truncated":
            mapper().save(path)
            path.write_bytes(path.read_bytes()[:-10])
        case "empty":
            path.write_bytes(b"")
        case "text":
            path.write_text("this is no mapper")
        case "pickle":
            torch.save(weights, path)
        case "a folder":
            path.mkdir()
        case "without facts":
            save_file(weights, path)
        case "facts of another kind":
            save_file(weights, path, metadata={"mapper": "[1]"})
        case "facts that are incomplete":
            save_file(weights, path, metadata={"mapper": "{}"})
        case "facts that are no JSON":
            save_file(weights, path, metadata={"mapper": "{"})
        case "without bias":
            save_file({"weight": weights["weight"]}, path, metadata=about)
        case "other weights":
            save_file({"model.embed": torch.zeros(3)}, path, metadata=about)
        case "weights of another shape":
            save_file(weights | {"weight": torch.zeros(5, FEATURE)}, path, metadata=about)


@pytest.mark.parametrize("what", [
    "missing", "truncated", "empty", "text", "pickle", "a folder", "without facts", "facts of another kind",
    "facts that are incomplete", "facts that are no JSON", "without bias", "other weights",
    "weights of another shape",
])  # fmt: skip
def test_a_foreign_file_is_refused_by_its_name(tmp_path: Path, what: str) -> None:
    path = tmp_path / "some.safetensors"
    foreign(path, what)
    with pytest.raises(ValueError, match=r"some\.safetensors is not a feature mapper"):
        FeatureMapper.load(path)


# Prompts

PIECES = [[5, 6, 7], [8], [], [9, 10]]  # tokens of the bank's examples
IMAGE_ROWS = [1, -1, 0, 2]  # the picture of each: another row of the vectors, or none


def table(start: int, stop: int) -> pa.Table:
    rows = range(start, stop)
    columns = {
        "id": [f"d{i}/0-1" for i in rows], "text": [f"text {i}" for i in rows],
        "mention": ["m"] * len(rows), "target": ["t"] * len(rows),
        "tokens": [PIECES[i] for i in rows], "image_row": [IMAGE_ROWS[i] for i in rows],
    }  # fmt: skip
    return pa.table(columns, banks.SCHEMA)


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Bank:
    """Four examples in two batches, three pictures."""
    vectors = np.random.default_rng(0).normal(size=(3, FEATURE)).astype(np.float32)
    return banks.write(
        [table(0, 1), table(1, 4)], [], vectors, np.zeros((4, 2), np.float32), tmp_path_factory.mktemp("bank")
    )


def embed(ids: Any) -> torch.Tensor:
    """A toy embedding: token t is the vector t, t+0.25, t+0.5, t+0.75."""
    column = torch.as_tensor(np.asarray(ids, np.int64), dtype=torch.float32)[:, None]
    return column + torch.arange(WIDTH) / 4


def query(seed: int = 1) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=FEATURE).astype(np.float32)


def slowly(bank: Bank, prompt: list[int], image: npt.NDArray[np.float32] | None) -> torch.Tensor:
    """Token by token."""
    rows = []
    with torch.inference_mode():
        for number in prompt:
            if number >= 0:
                rows.append(embed([number]))
            elif number == QUERY_IMAGE:
                rows.append(mapper()(torch.tensor(image)[None])[0])
            else:
                vector = bank.image_vectors[IMAGE_ROWS[-2 - number]]
                rows.append(mapper()(torch.tensor(np.array(vector))[None])[0])
    return torch.cat(rows) if rows else torch.empty(0, WIDTH)


def test_the_bank_gives_back_what_was_written(bank: Bank) -> None:
    assert [bank.tokens(i).tolist() for i in range(4)] == PIECES
    assert [bank.image_row(i) for i in range(4)] == IMAGE_ROWS
    assert [bank.has_image(i) for i in range(4)] == [True, False, True, True]


def test_references_are_never_tokens_nor_each_other() -> None:
    assert len({QUERY_IMAGE, *map(image_of, range(1000))}) == 1001
    assert max(QUERY_IMAGE, *map(image_of, range(1000))) < 0
    assert [image_of(image_of(row)) for row in range(5)] == list(range(5))


numbers = st.integers(0, 50) | st.just(QUERY_IMAGE) | st.sampled_from([image_of(i) for i in (0, 2, 3)])


@settings(deadline=None)
@given(prompt=st.lists(numbers, max_size=20))
def test_prefixes_stand_where_their_references_stood(bank: Bank, prompt: list[int]) -> None:
    prompts = PromptEmbeddings(embed, mapper(), bank)
    made = prompts(prompt, query())
    assert made.embeddings.shape == (sum(PREFIX if n < 0 else 1 for n in prompt), WIDTH)
    torch.testing.assert_close(made.embeddings, slowly(bank, prompt, query()))


def test_a_whole_prompt_has_every_part_in_its_place(bank: Bank) -> None:
    """As Assemble writes it: two demonstrations, one of them without a picture, then the query."""
    prompt = [image_of(0), *PIECES[0], *PIECES[1], QUERY_IMAGE, 20, 21]
    made = PromptEmbeddings(embed, mapper(), bank)(prompt, query())
    assert len(made) == PREFIX + 3 + 1 + PREFIX + 2
    with torch.inference_mode():
        torch.testing.assert_close(
            made.embeddings[:PREFIX], mapper()(torch.tensor(np.array(bank.image_vectors[1:2])))[0]
        )
        torch.testing.assert_close(made.embeddings[7:10], mapper()(torch.tensor(query())[None])[0])
    torch.testing.assert_close(made.embeddings[3:7], embed([5, 6, 7, 8]))
    torch.testing.assert_close(made.embeddings[10:], embed([20, 21]))


def test_equal_prompts_are_equal_to_the_bit(bank: Bank) -> None:
    """Else the engine's prefix cache does not know them again, whatever came between."""
    prompts = PromptEmbeddings(embed, mapper(), bank)
    prompt = [image_of(0), *PIECES[0], image_of(3), *PIECES[3], QUERY_IMAGE, 20]
    first = prompts(prompt, query(1))
    other = prompts([*prompt[:-2], 7, QUERY_IMAGE, 20], query(2))
    assert first.embeddings.equal(prompts(prompt, query(1)).embeddings)
    shared = 2 * PREFIX + 5
    assert first.embeddings[:shared].equal(other.embeddings[:shared])
    assert not first.embeddings[shared:].equal(other.embeddings[shared + 1 :])  # the other picture


def test_the_pictures_of_a_batch_are_mapped_in_one_pass(bank: Bank) -> None:
    """Of a mapper for a large model a pass reads megabytes of weights, whatever the number of pictures."""
    passes: list[int] = []
    mapped = mapper()
    mapped.register_forward_hook(lambda module, given, made: passes.append(len(made)))
    prompts, alone = PromptEmbeddings(embed, mapped, bank), PromptEmbeddings(embed, mapper(), bank)
    passes.clear()
    prompts.map([query(1), None, query(2), query(1)])
    prompts.map([query(2), query(3)])
    made = [prompts([4, QUERY_IMAGE], query(i)) for i in (1, 2, 3)]
    assert passes == [2, 1]  # each picture once
    for i, found in enumerate(made, 1):
        expected = alone([4, QUERY_IMAGE], query(i))
        torch.testing.assert_close(found.embeddings, expected.embeddings)
        assert np.array_equal(found.identity, expected.identity)
    prompts.map([])
    PromptEmbeddings(embed, None, bank).map([query()])


def test_without_a_mapper_a_prompt_is_its_tokens(bank: Bank) -> None:
    prompts = PromptEmbeddings(embed, None, bank)
    assert prompts([1, 2, 3], query()).embeddings.equal(embed([1, 2, 3]))
    assert prompts([1, 2, 3], None).embeddings.equal(embed([1, 2, 3]))


def test_prefixes_have_the_language_model_s_precision(bank: Bank) -> None:
    def half(ids: Any) -> torch.Tensor:
        return embed(ids).to(torch.bfloat16)

    made = PromptEmbeddings(half, mapper(), bank)([image_of(0), 5, QUERY_IMAGE], query())
    assert made.embeddings.dtype == torch.bfloat16
    torch.testing.assert_close(
        made.embeddings, slowly(bank, [image_of(0), 5, QUERY_IMAGE], query()).to(torch.bfloat16)
    )


def test_a_path_stands_behind_its_prompt(bank: Bank) -> None:
    prompts = PromptEmbeddings(embed, mapper(), bank)
    made = prompts([4, QUERY_IMAGE], query())
    assert prompts.extended(made, ()) is made
    longer = prompts.extended(made, (8, 9))
    assert longer.embeddings[: len(made)].equal(made.embeddings)
    assert longer.embeddings[len(made) :].equal(embed([8, 9]))


def test_a_prompt_needs_no_example_in_the_bank(tmp_path: Path) -> None:
    empty = banks.write([], [], np.empty((0, FEATURE), np.float32), np.empty((0, 2), np.float32), tmp_path)
    made = PromptEmbeddings(embed, mapper(), empty)([QUERY_IMAGE, 3], query())
    assert len(empty) == 0
    assert made.embeddings.shape == (PREFIX + 1, WIDTH)


def test_prefixes_hold_no_graph_for_training(bank: Bank) -> None:
    made = PromptEmbeddings(embed, mapper(), bank)([image_of(0), QUERY_IMAGE], query())
    assert not made.embeddings.requires_grad
