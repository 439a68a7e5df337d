"""Sets of examples that many mentions are shown alike."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from files import TEST

from gemel_ray.checked import ConfigError
from gemel_ray.config import Config, load
from gemel_ray.knowledge.bank import SharedSets
from gemel_ray.knowledge.workspace import Workspace
from gemel_ray.linking import linking_graph
from gemel_ray.readers import documents


@pytest.mark.parametrize("number", [1, 4, 100, 10_000])
def test_every_set_is_examples_of_different_entities(workspace: Workspace, number: int) -> None:
    bank = workspace.bank
    vectors = np.asarray(bank.mention_vectors)
    sets = SharedSets(bank, number, 6)
    shown = sets.of(vectors)
    assert 1 <= len({tuple(s) for s in shown}) <= min(number, bank.examples)
    for rows in {tuple(s.tolist()) for s in shown}:
        assert len(rows) == len(set(rows)) == 6
        assert max(rows) < bank.examples  # solved examples, no bare names
        if number <= 4:  # else a cluster has fewer entities than places
            assert len({bank.target(row) for row in rows}) == 6
    again = SharedSets(bank, number, 6).of(vectors)
    assert all(a.tolist() == b.tolist() for a, b in zip(shown, again, strict=True))


def test_near_mentions_are_shown_their_own_set(workspace: Workspace) -> None:
    """A set's examples are nearer to the mentions that are shown it than the other sets' are."""
    bank = workspace.bank
    vectors = np.asarray(bank.mention_vectors)
    shown = SharedSets(bank, 8, 4).of(vectors)
    centres = {tuple(s): vectors[s].mean(axis=0) for s in shown}
    assert len(centres) > 2
    near = [float(v @ centres[tuple(s)]) for v, s in zip(vectors, shown, strict=True)]
    far = [
        float(np.mean([v @ c for key, c in centres.items() if key != tuple(s)]))
        for v, s in zip(vectors, shown, strict=True)
    ]
    assert np.mean(near) > np.mean(far) + 0.1


Front = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="module")
def front(workspace: Workspace, config: Config) -> Front:
    def run(**settings: Any) -> list[dict[str, Any]]:
        own = replace(config, retrieve=replace(config.retrieve, **settings))
        segment = linking_graph(own, workspace).segment(
            ["detect", "encode", "retrieve", "assemble"], workspace
        )
        found: pa.Table = asyncio.run(segment.run(next(documents(str(TEST), batch=12))))
        segment.close()
        return found.to_pylist()

    return run


def test_a_prompt_is_its_set_and_then_its_own_nearest(front: Front, workspace: Workspace) -> None:
    alone, both = front(demonstrations=2, shared_sets=0), front(demonstrations=6, shared_sets=1, nearest=2)
    for mine, row in zip(alone, both, strict=True):
        assert row["shots"][:4] == both[0]["shots"][:4]
        assert row["shots"][4:] == mine["shots"]
        assert len(row["nearest"]) == 6 and row["nearest"][4:] == mine["nearest"]
        shown = sum(workspace.bank.has_image(r) + len(workspace.bank.tokens(r)) for r in row["shots"][:4])
        assert row["beginning"] == shown
        assert row["prompt"][:shown] == both[0]["prompt"][:shown]
        assert row["demonstrations"] == workspace.bank.ids(row["shots"])


def test_a_prompt_may_have_a_set_alone_or_no_set(front: Front) -> None:
    assert all(
        len(row["shots"]) == 3 and row["beginning"]
        for row in front(demonstrations=3, shared_sets=1, nearest=0)
    )
    assert all(
        len(row["shots"]) == 3 and not row["beginning"] for row in front(demonstrations=3, shared_sets=0)
    )


def test_an_example_never_shows_itself_in_a_set(workspace: Workspace, config: Config) -> None:
    """A document of the bank is shown its set without itself."""
    own = replace(config, retrieve=replace(config.retrieve, demonstrations=5, shared_sets=1, nearest=0))
    row = int(SharedSets(workspace.bank, 1, 5).of(np.asarray(workspace.bank.mention_vectors)[:1])[0][2])
    work: Any = own.retrieve.start(workspace)
    vector = np.asarray(workspace.bank.mention_vectors)[row].tolist()
    asked = {
        "text": pa.array([workspace.bank.table["text"][row].as_py()]),
        "mention": pa.array([workspace.bank.mention(row)]),
        "image_vector": pa.array([None], pa.list_(pa.float32())),
        "mention_vector": pa.array([vector], pa.list_(pa.float32())),
        "options": pa.array([None], pa.struct([("demonstrations", pa.bool_())])),
    }
    (shots,) = work(pa.table(asked))["shots"].to_pylist()
    work.close()
    assert len(shots) == 4 and row not in shots


def test_settings_that_do_not_go_together_are_refused() -> None:
    for wrong in (["retrieve.nearest=20"], ["retrieve.official_order=true"]):
        with pytest.raises(ConfigError, match=r"retrieve\."):
            load(None, {}, ["retrieve.shared_sets=1", *wrong])


@pytest.mark.slow
def test_a_shared_beginning_is_computed_once(workspace: Workspace, config: Config, generating: Any) -> None:
    """Behind it every mention costs its own tokens only, and the answers are those without any cache."""
    own = replace(config, retrieve=replace(config.retrieve, demonstrations=6, shared_sets=1, nearest=0))
    graph = linking_graph(own, workspace)
    first = graph.segment(["detect", "encode", "retrieve", "assemble"], workspace)
    rows = asyncio.run(first.run(next(documents(str(TEST), batch=12))))
    first.close()
    segment = graph.segment(["generate"], workspace, {"generate": generating})

    def run(table: pa.Table) -> tuple[pa.Table, int]:
        before = generating.usage.asked - generating.usage.cached
        found = asyncio.run(segment.run(table))
        return found, generating.usage.asked - generating.usage.cached - before

    alone = []
    for i in range(len(rows)):
        generating.engine.forget()
        alone.append(run(rows.slice(i, 1)))
    generating.engine.forget()
    together, computed = run(rows)
    beginning = len(generating.prompts(rows["prompt"][0].as_py()[: rows["beginning"][0].as_py()], None))
    assert beginning > 100
    prompts = [generating.prompts(r["prompt"], np.asarray(r["image_vector"])) for r in rows.to_pylist()]
    own = sum(len(prompt) - beginning for prompt in prompts)
    assert computed - own < 2 * beginning  # what beams begin with is a few tokens each
    for i, (one, _) in enumerate(alone):
        assert together["entity"][i] == one["entity"][0]
        assert together["score"][i].as_py() == pytest.approx(one["score"][0].as_py(), abs=1e-3)
