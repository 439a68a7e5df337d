"""Makes the ranking of a workspace: writes indexes, and fits the ranker on what Retrieve finds for the
examples."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from gemel_ray.config import Config
from gemel_ray.knowledge.bank import Bank
from gemel_ray.knowledge.entities import Entities, EntityChanges
from gemel_ray.knowledge.workspace import Workspace
from gemel_ray.progress import Meter, Progress
from gemel_ray.ranking import retrieval
from gemel_ray.ranking.default import default_groups, default_ranker
from gemel_ray.ranking.evidence import Collector
from gemel_ray.ranking.examples import Encode
from gemel_ray.ranking.features import RETRIEVAL, available
from gemel_ray.ranking.fitting import Prepared, fitted, prepared
from gemel_ray.ranking.ranker import Ranker
from gemel_ray.ranking.ranking import FILE, Former, open_collector, train_retrieval, write
from gemel_ray.ranking.towers import Negatives
from gemel_ray.ranking.triples import Triple

_ENOUGH = 100  # examples on which the default ranker is fitted further
_ENCODED = 1_024  # texts between two reports of progress
_BATCH = 256  # examples whose neighbours are looked for at once


def make(workspace: Workspace, config: Config) -> str:
    """Write the ranking of a workspace that has its bank, by the configured stages: with a ranker fitted on
    its examples, or with the default one if they are fewer than bank.ranker. Returns a summary."""
    began, folder = time.perf_counter(), workspace.ranking_folder
    encode = workspace.mention_encoder(config.encode.device, config.encode.dtype)
    few = workspace.bank.examples < config.bank.ranker
    default = default_ranker(encode, len(workspace.entities)) if few else None
    described = _described(config, default)
    with Meter("texts", texts := _texts(workspace, described)) as meter:
        write(folder, workspace.bank, workspace.entities, _metered(encode, meter), described=described)
    indexed = f"{texts:,} texts of examples and descriptions indexed, {time.perf_counter() - began:.1f} s"
    if default is None:
        return f"{indexed}\n{_fit(workspace, config, config.bank.retrieval, encode=encode)}"
    return f"{indexed}\n{_adapt(workspace, config, default)}"


def _adapt(workspace: Workspace, config: Config, default: Ranker) -> str:
    """Write the default ranker, fitted further on the examples if there are enough. Returns a summary."""
    bank, folder, ranker = workspace.bank, workspace.ranking_folder, None
    if bank.examples >= _ENOUGH and default.encoded:
        collector = open_collector(folder, bank, workspace.entities, groups=default_groups())
        given = prepared(collector, lambda rows: neighbours(workspace, config, rows), bends=False)
        ranker = fitted(given, start=default)
    ranker = replace(ranker, about=default.about | ranker.about) if ranker else default
    ranker.save(folder / FILE)
    lines = [f"{ranker.origin}: {bank.examples:,} examples are fewer than bank.ranker"]
    if not default.encoded:
        encoder = workspace.sections.models.mention_encoder
        lines.append(f"without vectors of texts: it was not fitted with models.mention_encoder={encoder}")
    if config.bank.retrieval != "none":
        lines.append("no retrieval: it is trained on more examples")
    return "\n".join(lines)


def prepare(workspace: Workspace, config: Config, seed: int = 0) -> Prepared:
    """Prepare the examples on which rankers of a workspace are fitted. Another `seed` gives another order of
    the examples."""
    collector = open_collector(workspace.ranking_folder, workspace.bank, workspace.entities)
    collector = Collector(collector.sources, available(collector.sources, {RETRIEVAL}))
    return prepared(collector, lambda rows: neighbours(workspace, config, rows), seed)


def refit(
    workspace: Workspace,
    config: Config,
    given: Prepared,
    without: Collection[str] = (),
    negatives: Negatives | None = None,
) -> str:
    """Fit a new ranker for a workspace that has one, without these groups of features; its retrieval is
    trained as before, or with these negatives."""
    former = Ranker.load(workspace.ranking_folder / FILE)
    taught: Literal["none"] | Negatives = negatives or former.about.get("retrieval", "none")
    if RETRIEVAL in without:
        taught = "none"
    return _fit(workspace, config, taught, given.without(without))


def encode_labels(workspace: Workspace, config: Config, folder: Path, encode: Encode | None = None) -> None:
    """Encode the labels of the workspace's knowledge graph into `folder`, for retrievals."""
    encode = encode or workspace.mention_encoder(config.encode.device, config.encode.dtype)
    width = workspace.bank.mention_vectors.shape[1]
    retrieval.prepare(workspace.ranking_folder, encode, width, folder)


def _fit(
    workspace: Workspace,
    config: Config,
    negatives: Literal["none"] | Negatives,
    given: Prepared | None = None,
    encode: Encode | None = None,
) -> str:
    began, folder = time.perf_counter(), workspace.ranking_folder
    given, teaching = given or prepare(workspace, config), None
    if negatives != "none":
        if not retrieval.prepared(folder):
            encode_labels(workspace, config, folder, encode)
        teaching = partial(train_retrieval, folder, len(workspace.entities), negatives)
    ranker = fitted(given, teaching)
    seconds = f"{time.perf_counter() - began:.1f} s"
    if ranker is None:
        return f"no ranker: hardly any example has its entity among its candidates, {seconds}"
    about = ranker.about
    about["retrieval"] = negatives
    ranker.save(folder / FILE)
    return f"{ranker.origin}, right in {about['right']:.1%} of {about['held_out']:,} others, {seconds}"


def renew(
    former: Workspace,
    config: Config,
    folder: Path,
    bank: Bank,
    entities: Entities,
    changes: EntityChanges,
    facts: Sequence[Triple] = (),
) -> None:
    """Write the ranking of the version that follows `former`: new indexes, with new `facts`, and the same
    ranker. One that was fitted with vectors of descriptions keeps them, however large the knowledge base
    becomes."""
    ranker = Ranker.load(former.ranking_folder / FILE)
    before = Former(former.ranking_folder, former.bank, former.entities, changes)
    keeps = ranker.encoded and before.described
    described = len(entities) if keeps else _described(config, ranker)
    loaded = cache(partial(former.mention_encoder, config.encode.device, config.encode.dtype))

    def encode(texts: list[str]) -> npt.NDArray[np.float32]:
        """Loads the encoder for the first text: often there is none."""
        return loaded()(texts)

    with Meter("texts", None, "encoding what is new") as meter:
        metered = _metered(encode, meter)
        write(folder, bank, entities, metered, before, described=described, facts=facts)


def _described(config: Config, ranker: Ranker | None) -> int:
    """The largest knowledge base whose descriptions are encoded; 0: the ranker reads no vectors."""
    return config.bank.descriptions if ranker is None or ranker.encoded else 0


def _texts(workspace: Workspace, described: int) -> int:
    """The number of texts that are encoded: those of examples, without repetitions, and the descriptions of
    at most `described` entities."""
    texts = pc.count_distinct(workspace.bank.table["text"].slice(0, workspace.bank.examples)).as_py()
    descriptions = workspace.entities.table["description"]
    return int(texts) + (len(descriptions) <= described) * (len(descriptions) - int(descriptions.null_count))


def _metered(encode: Encode, meter: Meter) -> Encode:
    """The encoder in batches, which reports progress."""

    def encoded(texts: list[str]) -> npt.NDArray[np.float32]:
        parts = []
        for start in range(0, len(texts), _ENCODED):
            some = texts[start : start + _ENCODED]
            parts.append(encode(some))
            meter.add(Progress(len(some), {}))
        return np.concatenate(parts)

    return encoded


def neighbours(
    workspace: Workspace, config: Config, rows: npt.NDArray[np.int64]
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]]:
    """The nearest other rows of the bank, and their votes, by the configured Retrieve."""
    bank = workspace.bank
    pictures = bank.image_rows
    retrieving = replace(config.retrieve, ranking=0).start(workspace)
    with closing(retrieving), Meter("examples", len(rows), "comparing their candidates") as meter:
        for start in range(0, len(rows), _BATCH):
            some = rows[start : start + _BATCH]
            features = [bank.image_vectors[p] if p >= 0 else None for p in pictures[some]]
            asked = bank.table.take(pa.array(some)).select(["text", "mention"])
            columns = {
                "image_vector": pa.array(features, pa.list_(pa.float32())),
                "mention_vector": pa.array(list(bank.mention_vectors[some]), pa.list_(pa.float32())),
                "options": pa.nulls(len(some)),
            }
            for name, column in columns.items():
                asked = asked.append_column(name, column)
            found = retrieving(asked)
            assert isinstance(found, pa.Table)
            pairs = zip(found["nearest"].to_pylist(), found["votes"].to_pylist(), strict=True)
            yield from ((np.array(n, np.int64), np.array(s, np.float32)) for n, s in pairs)
            meter.add(Progress(len(some), {}))
