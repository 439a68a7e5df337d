"""GEMEL's files to a workspace that `link` uses directly, with the paper's settings.

Nothing is computed again: names are the tree's tokens, demonstrations' vectors the released ones, the mapper
the checkpoint. Only texts are tokenised. Settings it carries: the paper's (section 4.1), and the order of
demonstrations to the last tie.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from gemel_ray.config import Config
from gemel_ray.errors import Mistake
from gemel_ray.gemel import artefacts
from gemel_ray.gemel.artefacts import Checkpoint
from gemel_ray.knowledge import bank as bank_file
from gemel_ray.knowledge import entities as entity_file
from gemel_ray.knowledge import prefix_tree
from gemel_ray.knowledge import workspace as feature_file
from gemel_ray.knowledge.workspace import Features, Workspace, revisions
from gemel_ray.knowledge.writing import BankWriter, Made, index, new_workspace, write_facts
from gemel_ray.models.encoders import load_tokenizer
from gemel_ray.models.mapper import FeatureMapper
from gemel_ray.records import Row

Say = Callable[[str], None]
_ROWS = 512
_CLIP = "ViT-L-14/openai"  # made the released features; for pictures without one


def import_gemel(
    config: Config,
    data: Path,
    checkpoint: Path,
    language: str,
    encoder: str,
    output: Path,
    say: Say,
    *,
    replacing: bool = False,
) -> None:
    """Make the workspace `output` from the files in `data` and a checkpoint; an existing one is refused, or,
    with `replacing`, replaced.

    Raises ValueError, naming the file, if one is missing, damaged, or does not fit the others.
    """
    configured = config.models.clip
    models = replace(
        config.models,
        language=_local(language),
        mention_encoder=_local(encoder),
        clip=_CLIP if configured == "starter" else configured,
        clip_feature="hidden",
        mention_pooling="pooler",
        mapper="none",
        end_of_name="eos",
    )
    config = replace(config, models=models)
    names: dict[str, str] = dict(config.plain()["models"])
    mapper = artefacts.read_checkpoint(checkpoint)
    with new_workspace(output, replacing, config.vectors, say) as (folder, made):
        _entities(folder, data, language, say)
        features = _features(folder, data, mapper)
        say(f"{len(features):,} pictures' features of {features.vectors.shape[1]} numbers")
        _mapper(folder, mapper, _width(language), checkpoint, revisions(names))
        carried = _settings(mapper.demonstrations)
        write_facts(folder, config, names, made, **carried)
        workspace = Workspace(folder, config, json.loads((folder / "workspace.json").read_text()))
        _bank(workspace, config, data, features, made)
        write_facts(folder, config, names, made, **carried)
        say(f"{made.demonstrations:,} demonstrations; {mapper.demonstrations} stand in a prompt")


def _local(model: str) -> str:
    """A folder's absolute path: the workspace will be opened from elsewhere."""
    return str(Path(model).resolve()) if Path(model).is_dir() else model


def _settings(demonstrations: int) -> dict[str, dict[str, Any]]:
    """The paper's settings, as sections of ray_config.yaml."""
    return {
        "retrieve": {
            "demonstrations": demonstrations,
            "shared_sets": 0,
            "by": "mention",
            "word_bonus": 0.0,
            "names": False,
            "allow_itself": True,
            "official_order": True,
        },
        "generate": {"beams": 5, "score": "paper", "length_penalty": 1.0, "neighbour_weight": 0.0},
    }


def _width(language: str) -> int:
    """The width of the language model's embeddings."""
    from transformers import AutoConfig

    settings = AutoConfig.from_pretrained(language)
    return int(getattr(settings, "word_embed_proj_dim", settings.hidden_size))


def _mapper(folder: Path, made: Checkpoint, width: int, source: Path, now: dict[str, str]) -> None:
    if len(made.weight) != made.prefix * width:
        raise Mistake(
            f"{source} writes {made.prefix} vectors of {len(made.weight) / made.prefix:g} numbers, but the "
            f"language model's embeddings have {width}: it was trained for another model"
        )
    mapper = FeatureMapper(made.weight.shape[1], made.prefix, width)
    state = {"weight": torch.from_numpy(made.weight), "bias": torch.from_numpy(made.bias)}
    mapper.linear.load_state_dict(state)
    mapper.save(folder / "mapper.safetensors", revisions=now, source=source.name)


def _features(folder: Path, data: Path, made: Checkpoint) -> Features:
    """The feature file's vectors, which must have the mapper's input width."""
    source = artefacts.only(data, "*.hdf5", "pictures' features")
    keys, vectors = [], []
    for key, vector in artefacts.read_features(source):
        if len(vector) != made.weight.shape[1]:
            raise Mistake(
                f"{source}: the feature of {key} has {len(vector)} numbers, but the checkpoint reads "
                f"{made.weight.shape[1]}: they were made with another CLIP"
            )
        keys.append(key)
        vectors.append(vector)
    if not keys:
        raise Mistake(f"{source} holds no features")
    return feature_file.write(keys, np.stack(vectors), folder / "features")


def _entities(folder: Path, data: Path, language: str, say: Say) -> None:
    """The tree's names with the tree's tokens; identifiers from the data files' `golden`."""
    from transformers import AutoConfig

    kind = str(AutoConfig.from_pretrained(language).model_type)
    source = artefacts.only(data, "prefix_tree*.pkl", "names", hint=kind)
    tokenised, begin, end = artefacts.read_names(source)
    tokenizer = load_tokenizer(language)
    most = max(begin, end, *(max(ids, default=0) for ids in tokenised))
    if most >= tokenizer.get_vocab_size():
        raise Mistake(f"{source} has token {most}, which {language} has not: it is another model's tree")
    spelled = [name.strip(" ") for name in tokenizer.decode_batch(tokenised)]
    ids = _golden(data)
    rows: list[tuple[str | None, str, list[int]]] = []
    for name, tokens in zip(spelled, tokenised, strict=True):
        rows += [(identity, name, tokens) for identity in (*sorted(ids.get(name, ())),) or (None,)]
    blank: Row = {"description": None, "aliases": [], "popularity": None, "image": None}
    entities = ({"id": identity, "name": name, **blank} for identity, name, _ in rows)  # some have no id
    knowledge = entity_file.write(entities, folder / "entities.arrow")
    as_released = (list(tokens) for _, _, tokens in rows)
    tree = prefix_tree.build(
        knowledge.names(), lambda chunk: list(islice(as_released, len(chunk))), end, folder / "tree"
    )
    known = sum(i is not None for i, _, _ in rows)
    say(f"{len(tree):,} names, {known:,} identifiers from the data files; {source.name}")


def _golden(data: Path) -> dict[str, set[str]]:
    """Identifiers of the targets' names, as far as the data files have them."""
    found: dict[str, set[str]] = defaultdict(set)
    for file in sorted(data.glob("*.json")):
        for _, line in artefacts.solved_lines(file):
            if isinstance(line["golden"], str) and line["golden"]:
                found[line["target"]].add(line["golden"])
    return found


def _bank(workspace: Workspace, config: Config, data: Path, features: Features, made: Made) -> None:
    """The training mentions as demonstrations, in the rows of the embeddings."""
    train = data / "train.json"
    if not train.is_file():
        raise Mistake(f"{data} holds no train.json: the demonstrations are its mentions")
    source = artefacts.only(data, "*mention_embeddings*.pkl", "the training mentions' vectors")
    vectors = artefacts.read_embeddings(source)
    lines = list(artefacts.solved_lines(train))
    if len(lines) != len(vectors):
        raise Mistake(
            f"{source} has {len(vectors):,} rows, but {train} has {len(lines):,} mentions that are not NIL: "
            "they do not belong together"
        )
    writer = BankWriter(workspace, config.bank.longest_example)
    tables = [writer.table(rows) for rows in _solved(lines, train, features, vectors)]
    folder = workspace.folder / "bank"
    bank = bank_file.write(tables, (), writer.pictures(), vectors, folder)
    made.demonstrations, made.pictures = len(lines), len(writer.features)
    made.multiplicity = index(bank, workspace.new_vectors)


def _solved(
    lines: Sequence[tuple[int, Row]],
    train: Path,
    features: Features,
    vectors: npt.NDArray[np.float32],
) -> Iterator[list[Row]]:
    """Rows for writing a bank, in batches."""
    from gemel_ray.models.encoders import unit

    scaled = unit(vectors)
    for start in range(0, len(lines), _ROWS):
        rows = []
        for row, (number, line) in enumerate(lines[start : start + _ROWS], start):
            feature = features.of(str(line["image_key"]))
            if feature is None:
                raise Mistake(f"{train}:{number}: there is no feature of its picture {line['image_key']!r}")
            known = isinstance(line["start"], int) and isinstance(line["end"], int)
            rows.append(
                {
                    "document_id": str(line["id"] or f"{train.name}:{number}"),
                    "mention_id": f"{line['start']}-{line['end']}" if known else line["mention"],
                    "mention_vector": scaled[row],
                    "image_vector": feature,
                    **{name: line[name] for name in ("text", "mention", "target")},
                }
            )
        yield rows
