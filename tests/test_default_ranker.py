"""The default ranker: whoever brings a knowledge base and no examples gets names, aliases, descriptions,
popularity and facts judged."""

from __future__ import annotations

import contextlib
import io
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import numpy as np
import pytest
from files import lines

from gemel_ray import Linker, doctor
from gemel_ray.cli import main
from gemel_ray.errors import Mistake
from gemel_ray.ranking import default, default_maker
from gemel_ray.ranking.default import default_groups, default_ranker
from gemel_ray.ranking.features import feature_names
from gemel_ray.ranking.ranker import NETWORK, Ranker

TRADES = {
    "painter": "showed her new canvases and oil portraits in the gallery",
    "footballer": "scored twice before the match went to extra time",
    "astronomer": "discovered a comet with the telescope of the observatory",
    "senator": "voted against the bill in parliament after the debate",
}
SURNAMES = ("Almeida", "Brandt", "Castellan", "Dvorsky", "Eriksen", "Fontaine", "Grimaldi", "Hollander")
FIRST = ("Ana", "Ben", "Cleo", "Dirk")


def people() -> list[dict[str, Any]]:
    """Of each surname four, whose descriptions alone tell them apart; and a city with a by-name."""
    named = [
        {"id": f"Q{s}{t}", "name": f"{FIRST[t]} {surname}", "description": f"{trade} from Utrecht"}
        for s, surname in enumerate(SURNAMES)
        for t, trade in enumerate(TRADES)
    ]
    city = {"id": "Q99", "name": "New York City", "aliases": ["Big Apple"], "description": "city in the USA"}
    return [*named, city, {"id": "Q98", "name": "Apple Records", "description": "British record label"}]


def documents() -> list[dict[str, Any]]:
    asked = [
        {"id": f"{s}{t}", "text": f"{surname} {act}.", "mention": surname, "target": f"{FIRST[t]} {surname}"}
        for s, surname in enumerate(SURNAMES)
        for t, act in enumerate(TRADES.values())
    ]
    by_name = {"id": "99", "text": "She moved to the Big Apple.", "mention": "Big Apple"}
    return [*asked, by_name | {"target": "New York City"}]


def linked(workspace: Path, asked: Sequence[dict[str, Any]], **settings: Any) -> list[dict[str, Any]]:
    """Links without a language model."""
    chosen = {f"generate.{name}": value for name, value in settings.items()}
    with Linker(workspace, {"generate.ranking": 1} | chosen) as linker:
        return [link for document in asked for link in linker.link_many([document])]


def right(links: Sequence[dict[str, Any]]) -> float:
    pairs = zip(links, documents(), strict=True)
    return float(np.mean([link["entity"] == document["target"] for link, document in pairs]))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A workspace that was built without examples, and what the build said."""
    folder, said = tmp_path_factory.mktemp("default"), io.StringIO()
    with contextlib.redirect_stderr(said):
        asked = ["build", "--entities", lines(folder / "kb.jsonl", people()), "--output", str(folder / "kb")]
        assert main(asked) == 0
    return folder / "kb", said.getvalue()


def test_without_examples_descriptions_and_aliases_decide(
    built: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace, said = built
    assert "the default ranker: 0 examples are fewer than bank.ranker" in said
    links = linked(workspace, documents())
    assert right(links) >= 0.9
    assert links[-1]["entity"] == "New York City"
    assert "description +" in links[0]["why"]
    kb, bare = lines(tmp_path / "kb.jsonl", people()), tmp_path / "bare"
    assert main(["build", "--entities", kb, "--output", str(bare), "--set", "bank.ranker=0"]) == 0
    assert "ranker" not in capsys.readouterr().err
    assert right(linked(bare, documents(), neighbour_weight=1)) < 0.5  # one in four of a surname


def test_facts_and_popularity_decide_where_names_do_not(tmp_path: Path) -> None:
    towns = [
        {"id": f"Q{t}{c}", "name": f"{town} ({country})", "popularity": popularity if t else None}
        for t, town in enumerate(("Springfield", "Newport", "Georgetown"))
        for c, (country, popularity) in enumerate((("Alba", 90), ("Brion", 9_000), ("Corvia", 5)))
    ]
    mayors = {"Q00": "Peter Falk", "Q01": "Ann Lee", "Q02": "Mo Dee"}
    facts = [{"head": town, "relation": "mayor", "tail_label": who} for town, who in mayors.items()]
    kb, graph = lines(tmp_path / "kb.jsonl", towns), lines(tmp_path / "graph.jsonl", facts)
    asked = ["build", "--entities", kb, "--triples", graph, "--output", str(tmp_path / "kb")]
    assert main(asked) == 0
    meant = {"Peter Falk is in Springfield.": "Q00", "A street in Newport.": "Q11"}
    texts = [{"id": text, "text": text, "mention": text.split()[-1].rstrip(".")} for text in meant]
    assert [link["entity_id"] for link in linked(tmp_path / "kb", texts)] == list(meant.values())


def test_on_a_hundred_examples_it_is_fitted_further(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of all surnames but the last. And another default can be fitted on this workspace."""
    solved = [
        document | {"id": f"{document['id']}-{year}", "text": f"In {year}, {document['text']}"}
        for document in documents()[:-5]
        for year in range(2001, 2005)
    ]
    kb, train = lines(tmp_path / "kb.jsonl", people()), lines(tmp_path / "train.jsonl", solved)
    graph = lines(tmp_path / "graph.jsonl", [{"head": "Q00", "relation": "born in", "tail_label": "Utrecht"}])
    asked = ["build", "--entities", kb, "--triples", graph, "--demonstrations", train]
    assert main([*asked, "--output", str(tmp_path / "kb")]) == 0
    said = "the default ranker, fitted further on 112 examples: 112 examples are fewer than bank.ranker"
    assert said in capsys.readouterr().err
    further, shipped = map(Ranker.load, (tmp_path / "kb" / "ranking" / "ranker.safetensors", default.FILE))
    moved = [np.abs(further.weights[name] - shipped.weights[name]).max() for name in NETWORK]
    assert 0 < min(moved) < max(moved) < 1  # from where they were
    assert further.about["right"] > 0.9
    assert right(linked(tmp_path / "kb", documents())) > 0.9
    default_maker.main([tmp_path / "kb"], [tmp_path / "kb"], tmp_path / "another.safetensors", 60)
    sample = np.array(shipped.about["sample"], np.float32)
    other = default_ranker(
        lambda texts: np.tile(sample, (len(texts), 1)), 34, tmp_path / "another.safetensors"
    )
    assert other.encoded
    assert other.features == shipped.features


def test_a_new_entity_is_a_candidate_at_once(built: tuple[Path, str], tmp_path: Path) -> None:
    workspace = tmp_path / "kb"
    shutil.copytree(built[0], workspace)
    new = {"id": "Q97", "name": "Zoe Almeida", "description": "violinist in an orchestra"}
    added = lines(tmp_path / "new.jsonl", [new])
    assert main(["kb", "add", "--workspace", str(workspace), "--entities", added]) == 0
    asked = {"id": "1", "text": "Almeida played the violin in the orchestra.", "mention": "Almeida"}
    (link,) = linked(workspace, [asked])
    assert (link["entity"], link["status"]) == ("Zoe Almeida", "linked")


def test_for_a_ranker_that_reads_no_vectors_kb_encodes_no_description(
    built: tuple[Path, str], tmp_path: Path
) -> None:
    workspace = Path(shutil.copytree(built[0], tmp_path / "workspace"))
    ranker = Ranker.load(workspace / "ranking" / "ranker.safetensors")
    blind = replace(ranker, about=ranker.about | {"encoded": False})
    blind.save(workspace / "ranking" / "ranker.safetensors")
    add = ["kb", "add", "--workspace", str(workspace), "--id", "Q97", "--name", "Zoe", "--description", "x"]
    assert main(add) == 0
    assert not np.load(workspace / "versions" / "1" / "ranking" / "about.npy").any()


def test_doctor_says_which_ranker_a_workspace_has(built: tuple[Path, str], tmp_path: Path) -> None:
    def found(workspace: Path) -> tuple[bool | None, str]:
        (one,) = (f for f in doctor.examine({}, workspace) if f.what == "its ranker")
        return one.ok, one.found

    assert found(built[0]) == (True, "the default ranker")
    workspace = tmp_path / "kb"
    shutil.copytree(built[0], workspace)
    ranker = workspace / "ranking" / "ranker.safetensors"
    ranker.write_bytes(b"nothing of the kind")
    assert found(workspace) == (False, ANY)
    ranker.unlink()
    assert found(workspace) == (True, "none")


def test_no_threshold_is_learned_without_examples(built: tuple[Path, str]) -> None:
    with pytest.raises(
        Mistake, match=r"generate\.precision needs a ranker fitted on the workspace's examples"
    ):
        linked(built[0], documents(), precision=0.9)


def test_the_shipped_ranker_has_the_features_of_the_code(tmp_path: Path) -> None:
    """One more, or another order, and it is to be fitted again."""
    shipped = Ranker.load(default.FILE)
    assert shipped.features == feature_names(default_groups())
    others = shipped.features[2:], (*shipped.features[:-2], *shipped.features[:-3:-1])
    for features in others:
        replace(shipped, features=features).save(tmp_path / "other.safetensors")
        with pytest.raises(Mistake, match="fitted on other features: fit the default ranker again"):
            default_ranker(encoder(384), 34, tmp_path / "other.safetensors")


def encoder(width: int) -> Any:
    """An encoder that is not the one with which the default ranker was fitted."""
    return lambda texts: np.eye(len(texts), width, dtype=np.float32)


def test_another_encoder_s_vectors_are_left_out(built: tuple[Path, str]) -> None:
    for width in (384, 768):
        found = default_ranker(encoder(width), 34)
        assert not found.encoded
        assert found.weights["bend"].shape == (width, width)
        assert not found.weights["bend"].any()
    shipped = Ranker.load(default.FILE)
    sample = np.array(shipped.about["sample"], np.float32)
    assert default_ranker(lambda texts: np.tile(sample, (len(texts), 1)), 34).encoded
    assert Ranker.load(built[0] / "ranking" / "ranker.safetensors").encoded
