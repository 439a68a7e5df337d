"""The weights that join the language model's probabilities with the ranker's. They are learned on solved
documents that are not examples of the workspace, and stored in its settings.

Only mentions of which the ranker is not sure (generate.sure) are used: the language model is not asked about
the others.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gemel_ray import storage
from gemel_ray.config import Config
from gemel_ray.errors import Mistake
from gemel_ray.knowledge import versions
from gemel_ray.knowledge.workspace import Workspace
from gemel_ray.records import Row
from gemel_ray.sizing import fitted
from gemel_ray.stages.answering import joined
from gemel_ray.stages.generating import Generating, ModelAnswer
from gemel_ray.training.examples import Say, through_graph

_LEAST, _MOST = 30, 1_000  # mentions that weights are learned on
_FOLDS = 5
_RANKING = [round(0.02 * i, 2) for i in range(50)]  # not 1: then the language model is not asked
_CHOICE = [round(0.1 * i, 1) for i in range(11)]
_UNLIKELY = 15.0  # nats: the loss of a right name that is not a candidate, whatever the weights
_ALL = 1_000  # names: more than there are candidates


class Weights(NamedTuple):
    """`ranking`: the ranker's weight beside the names that the language model writes; `choice_weight`: the
    weight of the model's choice among the ranker's best. Both are settings of generate."""

    ranking: float
    choice_weight: float


class _Unsure(NamedTuple):
    """A mention of which the ranker is not sure, and its target."""

    row: Row
    target: str


def learn(config: Config, files: Sequence[str], folder: Path, say: Say) -> Weights:
    """Learn the weights on the documents of `files` and store them in the workspace. Raises ValueError if
    there is no ranker, nothing to join, or too few mentions."""
    config = fitted(config, "offline")
    workspace = Workspace.open(folder, config)
    if not workspace.ranks:
        raise Mistake(f"{folder} has no ranker: build it again, with bank.ranker above 0")
    if not 0 < config.generate.ranking < 1:
        raise Mistake(f"generate.ranking={config.generate.ranking:g} joins nothing: set it between 0 and 1")
    left_out: Counter[str] = Counter()
    mentions = list(islice(_unsure(config, workspace, files, left_out), _MOST))
    if left_out:
        say("left out " + ", ".join(f"{n:,} mentions {why}" for why, n in left_out.items()))
    if len(mentions) < _LEAST:
        raise Mistake(
            f"the ranker is not sure of {len(mentions)} mentions of {', '.join(files)}, and weights are "
            f"learned on {_LEAST} or more: give more documents, or raise generate.sure"
        )
    work = config.generate.start(workspace, config.line.stages)
    assert isinstance(work, Generating)
    try:
        say(f"asking the language model about {len(mentions):,} mentions of which the ranker is not sure")
        answers = asyncio.run(_answers(work, mentions))
        weights = _best_weights(work, mentions, answers, say)
    finally:
        work.close()
    chooses = any(one.choice is not None for one in answers)
    _store(folder, weights._asdict() if chooses else {"ranking": weights.ranking}, say)
    return weights


def _unsure(
    config: Config, workspace: Workspace, files: Sequence[str], left_out: Counter[str]
) -> Iterator[_Unsure]:
    """Rows as Generate reads them, of mentions that are not examples of the workspace."""

    def wanted(row: Row, name: str | None) -> bool:
        if not name or row["error"]:
            left_out["without a target" if not name else "with an error"] += 1
            return False
        if workspace.bank.same([row["text"]], [row["mention"]], [None])[0]:
            left_out["that are examples of the workspace"] += 1
            return False
        return True

    for batch in through_graph(config, workspace, files, wanted):
        for row in batch:
            target, chances = row["target"], row["chances"]
            if target and not row["error"] and chances and math.exp(chances[0]) <= config.generate.sure:
                yield _Unsure(row, target)


async def _answers(work: Generating, mentions: Sequence[_Unsure]) -> list[ModelAnswer]:
    return list(await asyncio.gather(*(work.model_answer(work.stage, one.row) for one in mentions)))


def _best_weights(
    work: Generating, mentions: Sequence[_Unsure], answers: Sequence[ModelAnswer], say: Say
) -> Weights:
    """The weights with the lowest loss of the targets. The reported accuracy is by cross-validation: of
    mentions on which the weights were not learned."""
    chooses = any(one.choice is not None for one in answers)
    given = work.stage.ranking, work.stage.choice_weight
    grid = [Weights(*pair) for pair in (given, *product(_RANKING, _CHOICE if chooses else [given[1]]))]
    results = [_results(work, *pair, grid) for pair in zip(mentions, answers, strict=True)]
    losses, right = (np.stack(part, axis=1) for part in zip(*results, strict=True))
    folds = np.arange(len(mentions)) % _FOLDS
    crossed = [right[losses[:, folds != fold].mean(axis=1).argmin(), folds == fold] for fold in range(_FOLDS)]
    best = grid[int(losses.mean(axis=1).argmin())]
    firsts = work.names.entities.of(one.row["likely"][0] for one in mentions)
    alone = np.mean([name == one.target for (_, name), one in zip(firsts, mentions, strict=True)])
    say(
        f"right in {np.concatenate(crossed).mean():.1%} with weights learned on the others, in "
        f"{right[0].mean():.1%} with {_as_settings(grid[0], chooses)}, in {alone:.1%} by the ranker alone; "
        f"learned on all: {_as_settings(best, chooses)}"
    )
    return best


def _results(
    work: Generating, one: _Unsure, answer: ModelAnswer, grid: Sequence[Weights]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """For each weights of `grid`: the loss of the target in nats, and whether it is ranked first."""
    leaf = work.names.leaf(one.target)
    choices = {weights.choice_weight for weights in grid}
    names = {c: work.names.chances(work.chances(one.row, answer.choice, c)) for c in choices}
    losses, right = np.full(len(grid), _UNLIKELY), np.zeros(len(grid), bool)
    for i, weights in enumerate(grid):
        found = joined(answer.names, names[weights.choice_weight], weights.ranking, _ALL)
        losses[i] = min(_UNLIKELY, next((-c.score for c in found if c.leaf == leaf), _UNLIKELY))
        right[i] = found[0].leaf == leaf
    return losses, right


def _as_settings(weights: Weights, chooses: bool) -> str:
    choice = f", generate.choice_weight={weights.choice_weight:g}" if chooses else ""
    return f"generate.ranking={weights.ranking:g}{choice}"


def _store(folder: Path, weights: Mapping[str, float], say: Say) -> None:
    """Store the weights in the settings of the current version, which its successors take over."""
    with versions.locked(folder, say):
        facts = versions.read_facts(folder)
        generate = facts["settings"].get("generate", {}) | weights
        facts["settings"] = facts["settings"] | {"generate": generate}
        storage.write(versions.current_folder(folder) / "workspace.json", json.dumps(facts, indent=2))
    say(f"the weights are stored in {folder}: links use them unless --set says otherwise")
