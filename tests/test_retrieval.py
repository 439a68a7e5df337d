"""The trained retrieval: towers taught by contrast, with three kinds of negatives, and what the ranker makes
of them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from files import lines

from gemel_ray.cli import main
from gemel_ray.config import load
from gemel_ray.knowledge.build import build
from gemel_ray.knowledge.versions import read_facts
from gemel_ray.knowledge.workspace import Workspace
from gemel_ray.ranking import towers
from gemel_ray.ranking.evidence import Collector
from gemel_ray.ranking.features import RETRIEVAL, Question, feature_names, groups_of
from gemel_ray.ranking.ranker import Ranker
from gemel_ray.ranking.ranking import FILE, open_collector
from gemel_ray.ranking.retrieval import Retrieval
from gemel_ray.ranking.towers import Frozen, Generator, Negatives, TowerExamples, Towers, trained
from gemel_ray.ranking.triples import Triples
from gemel_ray.study.cells import Cell
from gemel_ray.study.workspaces import Workspaces, seconds_to_make

WIDTH, ENTITIES = 16, 300


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Matrices this small take longer on several."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def drawn(vectors: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    made: np.ndarray[Any, Any] = (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(
        np.float32
    )
    return made


def world() -> tuple[Frozen, TowerExamples, TowerExamples]:
    """Entities that are told apart by one fact each. A text is its end in one half of its numbers and,
    loudly, nothing in the other; a mention says nothing."""
    dice = np.random.default_rng(0)
    heads, nodes = (drawn(dice.normal(size=(ENTITIES, WIDTH))).astype(np.float16) for _ in range(2))
    heads = np.repeat(heads[:1], ENTITIES, axis=0)
    facts = np.arange(ENTITIES, dtype=np.int32)[:, None]
    number = np.arange(ENTITIES, dtype=np.int32)
    frozen = Frozen(heads, nodes, heads[:1], facts, number, np.zeros(ENTITIES, np.int32))

    def asked(count: int) -> TowerExamples:
        right = dice.integers(ENTITIES, size=count)
        mentions = np.zeros((count, WIDTH), np.float32)
        others = [np.setdiff1d(dice.integers(ENTITIES, size=20), [r]) for r in right]
        texts = nodes[right].astype(np.float32)
        texts[:, WIDTH // 2 :] = dice.normal(0, 0.5, (count, WIDTH // 2))
        return TowerExamples(mentions, drawn(texts), right, others)

    return frozen, asked(2_000), asked(200)


def found(frozen: Frozen, made: Towers, asked: TowerExamples) -> float:
    """The share of mentions whose entity is the nearest of all."""
    entities, weights = made.all_entities(frozen).astype(np.float32), made.weights()
    pairs = zip(asked.mentions, asked.texts, asked.right, strict=True)
    return float(
        np.mean([(entities @ towers.mention_vector(weights, m, t)).argmax() == r for m, t, r in pairs])
    )


@pytest.mark.parametrize("negatives", get_args(Negatives))
def test_towers_learn_what_facts_tell(negatives: Negatives) -> None:
    frozen, examples, others = world()
    assert found(frozen, Towers(WIDTH).eval(), others) < 0.05
    assert found(frozen, trained(frozen, examples, negatives), others) > 0.3


def test_without_facts_nothing_is_taken_of_them() -> None:
    frozen, _, _ = world()
    none = Frozen(
        frozen.heads, frozen.nodes, frozen.relations, frozen.facts * 0 - 1, frozen.node, frozen.relation
    )
    assert np.allclose(Towers(WIDTH).eval().all_entities(none), frozen.heads, atol=2e-3)


def test_a_mention_has_the_same_vector_with_torch_and_without() -> None:
    torch.manual_seed(0)
    made = Towers(WIDTH)
    for weight in made.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    mention, text = drawn(np.random.default_rng(1).normal(size=(2, WIDTH)))
    with torch.no_grad():
        expected = made.mention_vectors(torch.from_numpy(mention), torch.from_numpy(text)).numpy()
    assert np.allclose(towers.mention_vector(made.weights(), mention, text), expected, atol=1e-5)


def test_the_generator_learns_to_draw_what_is_paid_for() -> None:
    """Of eight others one is taken for right: after some steps it is the likeliest."""
    torch.manual_seed(0)
    frozen, _, _ = world()
    frozen = replace(frozen, heads=frozen.nodes)
    made, others = Generator(WIDTH), np.tile(np.arange(8), (32, 1))
    optimiser = torch.optim.Adam(made.parameters(), lr=1e-2)
    asked = torch.from_numpy(drawn(np.random.default_rng(2).normal(size=(32, WIDTH))))
    for _ in range(60):
        logits = made.logits(frozen, asked, others)
        places = towers._drawn(logits.detach(), others)
        optimiser.zero_grad()
        made.loss(logits, places, (places == 5).float()).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        made.next_epoch()
    assert made.logits(frozen, asked, others).mean(0).argmax() == 5


TRADES = ("oil painter", "goalkeeper", "comet hunter", "senator", "cellist")
SETTINGS = ("bank.ranker=20", "retrieve.demonstrations=4", "generate.ranking=1", "bank.retrieval=hard")


@contextmanager
def counted_encoders() -> Iterator[list[str]]:
    """The mention encoders that are loaded inside."""
    loaded, load_one = list[str](), Workspace.mention_encoder

    def counting(self: Workspace, device: str, dtype: str) -> Any:
        loaded.append(device)
        return load_one(self, device, dtype)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Workspace, "mention_encoder", counting)
        yield loaded


def copies_leave_it_alone(folder: Path, into: Path) -> None:
    """A study's copies share the workspace's files: what is fitted in them must not be written to these."""
    own = Ranker.load(folder / "ranking" / FILE)
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    copies = Workspaces(
        folder, into, (), (), lambda carried, own: load(None, carried, [*SETTINGS, *own]), print
    )
    rankers = {
        cell.name: Ranker.load(copies.of(cell) / "ranking" / FILE)
        for cell in (
            Cell("nameless", without="name"),
            Cell("batch", retrieval="batch"),
            Cell("again", seed=1),
            Cell("unretrieved", without=RETRIEVAL),
        )
    }
    assert {file: file.read_bytes() for file in before} == before
    assert not list(into.glob("*-labels"))  # the workspace has them
    used = {name: [group.name for group in groups_of(r.features)] for name, r in rankers.items()}
    assert "name" not in used["nameless"] and RETRIEVAL in used["nameless"]
    assert used["again"] == used["batch"] == [group.name for group in groups_of(own.features)]
    assert RETRIEVAL not in used["unretrieved"]
    assert (rankers["batch"].about["retrieval"], own.about["retrieval"]) == ("batch", "hard")
    assert not np.array_equal(rankers["again"].weights["linear"], own.weights["linear"])
    made = copies.of(Cell("again", seed=1))
    assert (seconds_to_make(made) or 0) > 0
    assert seconds_to_make(folder) is None


def people() -> list[tuple[str, str, str, str]]:
    surnames = ("Almeida", "Brandt", "Castellan", "Dvorsky", "Eriksen", "Fontaine")
    return [(f"Q{s}{t}", f"{trade.title()} {who}", who, trade)
            for s, who in enumerate(surnames) for t, trade in enumerate(TRADES)]  # fmt: skip


def built(folder: Path, *settings: str) -> Path:
    """A workspace whose people have descriptions and facts."""
    kb = lines(folder / "kb.jsonl", [{"id": i, "name": n, "description": t} for i, n, _, t in people()])
    triples = folder / "triples.tsv"
    triples.write_text("".join(f"{i}\toccupation\t{trade}\n" for i, _, _, trade in people()))
    train = lines(folder / "train.jsonl", [
        {"text": f"{who}, the {trade}.", "mention": who, "target": name} for _, name, who, trade in people()
    ])  # fmt: skip
    build(load(None, {}, settings), kb, [train], folder / "ws", print, triples=str(triples))
    return folder / "ws"


def test_a_study_encodes_the_labels_of_facts_once_for_all_its_retrievals(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = built(tmp_path, *SETTINGS, "bank.retrieval=none")
    cells = [Cell(negatives, retrieval=negatives) for negatives in ("batch", "hard")]
    capsys.readouterr()
    for _ in range(2):  # the second study begins where the first was interrupted
        copies = Workspaces(
            folder, tmp_path / "copies", (), (), lambda carried, _: load(None, carried, SETTINGS), print
        )
        made = [copies.of(cell) for cell in cells]
        shutil.rmtree(made.pop())
    assert capsys.readouterr().err.count(f"{len(TRADES)}/{len(TRADES)} labels, ") == 1
    labels = [np.load(copy / "ranking" / "retrieval.ends.npy") for copy in made]
    assert labels[0].any(axis=1).all()
    assert all(np.array_equal(labels[0], others) for others in labels[1:])
    assert not (folder / "ranking" / "retrieval.ends.npy").exists()


def test_a_workspace_with_a_retrieval_is_built_and_goes_on_with_new_entities(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with counted_encoders() as encoders:
        folder = built(tmp_path, *SETTINGS)
    assert len(encoders) == 3  # Encode's of examples and of names, one for ranker and retrieval
    progress = capsys.readouterr().err
    assert f"{len(people())} examples to do; comparing their candidates" in progress
    assert f"{len(people())}/{len(people())} examples, " in progress
    assert f"{len(TRADES)}/{len(TRADES)} labels, " in progress
    opened = Workspace.open(folder, load(None, read_facts(folder)["settings"], SETTINGS))
    ranker = Ranker.load(opened.ranking_folder / FILE)
    assert groups_of(ranker.features)[-1].name == RETRIEVAL
    assert ranker.features[-2:] == feature_names([groups_of(ranker.features)[-1]])
    copies_leave_it_alone(folder, tmp_path / "copies")
    new = {"id": "Q999", "name": "Zora Ivanova", "description": "beekeeper"}
    more = lines(tmp_path / "new.jsonl", [new])
    facts = tmp_path / "facts.tsv"
    facts.write_text("Q999\toccupation\tbeekeeper\n")
    add = ["kb", "add", "--workspace", str(folder), "--entities", more, "--triples", str(facts)]
    assert main(add) == 0
    later = Workspace.open(folder, load(None, read_facts(folder)["settings"], SETTINGS))
    rows = np.arange(len(people()))
    vector = drawn(np.random.default_rng(0).normal(size=later.bank.mention_vectors.shape[1]))
    before, after = Retrieval(opened.ranking_folder), Retrieval(later.ranking_folder)
    assert np.allclose(before.fits(rows, vector, vector), after.fits(rows, vector, vector), atol=2e-3)
    assert after.fits(np.array([len(people())]), vector, vector).shape == (1,)
    nobody = np.empty(0, np.int64), np.empty(0, np.float32)
    asked = Question("Zora", "Zora.", vector, None, *nobody, mention_vector=vector)
    own = open_collector(later.ranking_folder, later.bank, later.entities)
    nearest = Collector(own.sources, own.groups, 7).evidence(asked).rows.tolist()
    assert set(own.evidence(asked).rows.tolist()) < set(nearest)
    every = after.fits(np.arange(len(people()) + 1), vector, vector)
    assert set(np.argsort(every)[-7:].tolist()) <= set(nearest)
    ends = np.load(later.ranking_folder / "retrieval.ends.npy")
    assert len(ends) == len(Triples(later.ranking_folder).labels()) == len(TRADES) + 1
    assert ends.any(axis=1).all()
    with counted_encoders() as encoders:
        assert main(["kb", "remove", "--workspace", str(folder), "Q999"]) == 0
    assert not encoders
