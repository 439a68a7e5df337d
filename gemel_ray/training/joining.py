"""The weights by which what the language model says is joined to what the ranker says: learned on solved
documents that are no examples of the workspace, and kept in it as its settings.

Asked are only the mentions of which the ranker is not sure (generate.sure): by the others nothing is decided.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice, product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gemel_ray import storage
from gemel_ray.config import Config
from gemel_ray.errors import Mistake
from gemel_ray.knowledge import versions
from gemel_ray.knowledge.workspace import Workspace
from gemel_ray.stages.answers import joined
from gemel_ray.stages.generating import Generating, Heard
from gemel_ray.training.examples import Say, through_graph

_LEAST, _MOST = 30, 1_000  # mentions that weights are learned on
_FOLDS = 5
_RANKING = [round(0.02 * i, 2) for i in range(50)]  # never 1, at which the language model is not asked
_CHOICE = [round(0.1 * i, 1) for i in range(11)]
_UNLIKELY = 15.0  # nats of a right name that neither knows, whatever the weights
_ALL = 1_000  # names: more than there are candidates

Row = dict[str, Any]


class Weights(NamedTuple):
    """`ranking`: the ranker's, beside the names that the language model writes; `choice_weight`: that of the
    model's choice among the ranker's best. Both as settings of generate."""

    ranking: float
    choice_weight: float


class _Asked(NamedTuple):
    """A mention of which the ranker is not sure, and the name that is right."""

    row: Row
    target: str


def learn(config: Config, files: Sequence[str], folder: Path, say: Say) -> Weights:
    """Learn the weights on the documents of `files` and put them into the workspace. Raises ValueError where
    there is no ranker, nothing to join, or too few mentions to learn on."""
    workspace = Workspace.open(folder, config)
    if not workspace.ranks:
        raise Mistake(f"{folder} has no ranker: build it with bank.ranker solved examples or more")
    if not 0 < config.generate.ranking < 1:
        raise Mistake(f"generate.ranking={config.generate.ranking:g} joins nothing: set it between 0 and 1")
    left_out: Counter[str] = Counter()
    asked = list(islice(_unsure(config, workspace, files, left_out), _MOST))
    if left_out:
        say("left out " + ", ".join(f"{n:,} mentions {why}" for why, n in left_out.items()))
    if len(asked) < _LEAST:
        raise Mistake(
            f"the ranker is not sure of {len(asked)} mentions of {', '.join(files)}, and weights are "
            f"learned on {_LEAST} or more: give more documents, or raise generate.sure"
        )
    work = config.generate.start(workspace, config.line.stages)
    assert isinstance(work, Generating)
    try:
        say(f"asking the language model about {len(asked):,} mentions of which the ranker is not sure")
        heard = asyncio.run(_heard(work, asked))
        weights = _learnt(work, asked, heard, say)
    finally:
        work.close()
    chooses = any(one.chosen is not None for one in heard)
    _keep(folder, weights._asdict() if chooses else {"ranking": weights.ranking}, say)
    return weights


def _unsure(
    config: Config, workspace: Workspace, files: Sequence[str], left_out: Counter[str]
) -> Iterator[_Asked]:
    """Rows as Generate reads them, of mentions that no example of the workspace is."""

    def wanted(row: Row, name: str | None) -> bool:
        if not name or row["error"]:
            left_out["without a target" if not name else "with an error"] += 1
            return False
        if workspace.bank.same([row["text"]], [row["mention"]])[0]:
            left_out["that are examples of the workspace"] += 1
            return False
        return True

    for batch in through_graph(config, workspace, files, wanted):
        for row in batch:
            target, chances = row["target"], row["chances"]
            if target and not row["error"] and chances and math.exp(chances[0]) <= config.generate.sure:
                yield _Asked(row, target)


async def _heard(work: Generating, asked: Sequence[_Asked]) -> list[Heard]:
    return list(await asyncio.gather(*(work.heard(work.stage, one.row) for one in asked)))


def _learnt(work: Generating, asked: Sequence[_Asked], heard: Sequence[Heard], say: Say) -> Weights:
    """The weights by which the right names are likeliest. What is said of them is of mentions on which the
    weights judged were not learned."""
    chooses = any(one.chosen is not None for one in heard)
    given = work.stage.ranking, work.stage.choice_weight
    grid = [Weights(*pair) for pair in (given, *product(_RANKING, _CHOICE if chooses else [given[1]]))]
    judged = [_judged(work, *pair, grid) for pair in zip(asked, heard, strict=True)]
    losses, right = (np.stack(part, axis=1) for part in zip(*judged, strict=True))
    folds = np.arange(len(asked)) % _FOLDS
    crossed = [right[losses[:, folds != fold].mean(axis=1).argmin(), folds == fold] for fold in range(_FOLDS)]
    best = grid[int(losses.mean(axis=1).argmin())]
    firsts = work.entities.of(one.row["likely"][0] for one in asked)
    alone = np.mean([name == one.target for (_, name), one in zip(firsts, asked, strict=True)])
    say(
        f"right in {np.concatenate(crossed).mean():.1%} with weights learned on the others, in "
        f"{right[0].mean():.1%} with {_told(grid[0], chooses)}, in {alone:.1%} by the ranker alone; "
        f"learned on all: {_told(best, chooses)}"
    )
    return best


def _judged(
    work: Generating, one: _Asked, heard: Heard, grid: Sequence[Weights]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """By each of these weights: nats of the right name, and whether it is the first."""
    leaf = work.neighbours.leaf(one.target)
    choices = {weights.choice_weight for weights in grid}
    names = {c: work.by_name(work.chances(one.row, heard.chosen, c)) for c in choices}
    losses, right = np.full(len(grid), _UNLIKELY), np.zeros(len(grid), bool)
    for i, weights in enumerate(grid):
        found = joined(heard.found, names[weights.choice_weight], weights.ranking, _ALL)
        losses[i] = min(_UNLIKELY, next((-c.score for c in found if c.leaf == leaf), _UNLIKELY))
        right[i] = found[0].leaf == leaf
    return losses, right


def _told(weights: Weights, chooses: bool) -> str:
    choice = f", generate.choice_weight={weights.choice_weight:g}" if chooses else ""
    return f"generate.ranking={weights.ranking:g}{choice}"


def _keep(folder: Path, weights: dict[str, float], say: Say) -> None:
    """Among the settings that the version in use carries, and its successors."""
    with versions.locked(folder, say):
        facts = versions.read_facts(folder)
        generate = facts["settings"].get("generate", {}) | weights
        facts["settings"] = facts["settings"] | {"generate": generate}
        storage.write(versions.current_folder(folder) / "workspace.json", json.dumps(facts, indent=2))
    say(f"the weights are in {folder}: links use them unless --set says otherwise")
