"""Files to a workspace: prefix tree, entities, demonstration bank, vectors, mapper.

Demonstrations go through the graph's Detect and Encode, so that the same code makes the bank's vectors and
those of queries. A workspace appears whole or not at all.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain, islice
from pathlib import Path

from gemel_ray.config import Config
from gemel_ray.detecting import LinkStatistics
from gemel_ray.errors import WorkspaceError
from gemel_ray.knowledge import bank as bank_file
from gemel_ray.knowledge import entities as entity_file
from gemel_ray.knowledge import entity_files, prefix_tree, thumbnails, triple_files
from gemel_ray.knowledge.entities import Targets
from gemel_ray.knowledge.workspace import Workspace, resolved, revisions
from gemel_ray.knowledge.writing import (
    BankWriter,
    Made,
    cut_message,
    encoded,
    forms,
    index,
    longest_name,
    name_examples,
    new_workspace,
    usable_demonstrations,
    write_facts,
)
from gemel_ray.models.encoders import end_token, load_tokenizer, tokenize
from gemel_ray.models.mapper import FeatureMapper
from gemel_ray.progress import Meter
from gemel_ray.readers import count, documents
from gemel_ray.readers.fields import NIL, short

_LOOKED_AT = 4  # tables of a file
Say = Callable[[str], None]
_STARTER = Path(__file__).parents[1] / "starter" / "data" / "mapper.safetensors"


def build(
    config: Config,
    entities: str,
    demonstrations: list[str],
    output: Path,
    say: Say,
    *,
    triples: str | None = None,
    replacing: bool = False,
) -> Made:
    """Make the workspace `output`. Raises ValueError, before anything is done, if something else is there, or
    a workspace and `replacing` is False. A workspace is replaced when the new one is complete."""
    with new_workspace(output, replacing, config.vectors, say) as (folder, made):
        _fill(folder, made, config, (entities, triples), demonstrations, say)
    return made


def _fill(
    folder: Path,
    made: Made,
    config: Config,
    known: tuple[str, str | None],
    demonstrations: list[str],
    say: Say,
) -> None:
    (entities, triples), names = known, resolved(config.models)
    tokenizer = load_tokenizer(names["language"])
    began = time.perf_counter()
    refusal = longest_name(partial(tokenize, tokenizer), config.bank.longest_name)
    read = entity_files.read(entities, made.rejects, refusal)
    knowledge = entity_file.write(
        read, folder / "entities.arrow", lambda reason: made.rejects(f"{entities}:{reason}")
    )
    if not len(knowledge):
        why = "; ".join(made.rejects.first[:3]) or "the file is empty"
        raise WorkspaceError(f"{entities} holds no entity: {why}")
    end = end_token(names["language"], config.models.end_of_name)
    tree = prefix_tree.build(knowledge.names(), partial(tokenize, tokenizer), end, folder / "tree")
    say(f"{len(knowledge):,} entities, {len(tree):,} names, {time.perf_counter() - began:.1f} s")
    if triples:
        say(triple_files.index(triples, knowledge, folder / "ranking", made.rejects))
    _mapper(folder, config, names, say)
    write_facts(folder, config, names, made)
    workspace = Workspace(folder, config, json.loads((folder / "workspace.json").read_text()))
    _bank(workspace, config, demonstrations, made, say)
    if config.bank.ranker:
        say(_ranking(workspace, config, made))
    write_facts(folder, config, names, made)


def _ranking(workspace: Workspace, config: Config, made: Made) -> str:
    if made.pictures and made.demonstrations < config.bank.ranker:
        return "no ranker: the default one knows no pictures, and there are fewer examples than bank.ranker"
    from gemel_ray.ranking.making import make

    return make(workspace, config)


def _mapper(folder: Path, config: Config, names: dict[str, str], say: Say) -> None:
    """Copy the configured mapper in. One that was trained for other models is refused; `auto` takes the
    starter's if it fits, else none."""
    wanted = config.models.mapper
    file = _STARTER if wanted == "auto" else Path(wanted)
    if wanted == "none" or (wanted == "auto" and not file.exists()):
        return
    made, now = FeatureMapper.load(file)[1].get("revisions", {}), revisions(names)
    before = revisions(names, whole=False)  # as older mappers record them
    compared = ("language", "clip", "clip_feature")
    strange = [k for k in compared if k in made and made[k] not in (now[k], before[k])]
    if not strange:
        shutil.copyfile(file, folder / "mapper.safetensors")
    elif wanted != "auto":
        raise WorkspaceError(
            f"{file} was trained with another models.{strange[0]} ({made[strange[0]]}): train one for "
            "these models (gemel-ray train), or set models.mapper=none"
        )
    else:
        say(f"{strange[0]} is not the starter's, nor is there another mapper: pictures serve retrieval only")


def _bank(workspace: Workspace, config: Config, inputs: list[str], made: Made, say: Say) -> None:
    """Encode the demonstrations, tokenise them, and fill the vector store. The knowledge base's names come
    after the solved examples, so that of equal mentions those are first."""
    few = len(workspace.entities) <= config.bank.names
    known = Targets(workspace.entities)
    for line in first_targets(inputs, known):
        say(line)
    began = time.perf_counter()
    fetch = config.input.fetch_official_images
    learnt = LinkStatistics()
    given = learnt.observe(t for f in inputs for t in documents(f, fetch_official_images=fetch))
    total = sum(count(f) or 0 for f in inputs) + few * len(workspace.entities)
    folder = workspace.folder / "bank"
    with Meter("documents", total) as meter, thumbnails.writing(folder) as kept:
        writer = BankWriter(workspace, config.bank.longest_example, kept)
        examples, names = (
            [
                writer.table(solved)
                for table in encoded(workspace, config, tables, meter)
                if (solved := usable_demonstrations(table, known, made))
            ]
            for tables in (given, name_examples(forms(workspace.entities.rows())) if few else ())
        )
    if writer.cut:
        say(cut_message(writer.cut, config.bank.longest_example))
    if inputs:
        learnt.write(workspace.entities.surface_forms(), workspace.folder)
    made.demonstrations, made.names = (sum(map(len, tables)) for tables in (examples, names))
    bank = bank_file.write(examples, names, writer.pictures(), writer.mentions_as_vectors(), folder)
    made.multiplicity = index(bank, workspace.new_vectors)
    made.pictures = len(writer.features)
    seconds = time.perf_counter() - began
    say(
        f"{made.demonstrations:,} demonstrations, {made.names:,} names as examples, "
        f"{made.pictures:,} pictures, {seconds:.1f} s"
    )


def first_targets(inputs: Iterable[str], known: Targets) -> Iterator[str]:
    """A warning, before the work, for each file whose first documents have no targets, or whose first targets
    are mostly unknown, with examples."""
    for file in inputs:
        given = [
            row["given"] or ()
            for table in islice(documents(file), _LOOKED_AT)
            for row in table.select(["given"]).to_pylist()
        ]
        targets = [
            (mention["target"], mention["target_id"])
            for mention in chain.from_iterable(given)
            if mention["target"] or mention["target_id"] not in (None, NIL)
        ]
        if not targets:
            yield (
                f"{file}: none of the first {len(given):,} documents has a mention with a target, and only "
                "those are solved examples"
            )
        strange = [t or i for t, i in targets if known.name(t, i) not in known]
        if 2 * len(strange) > len(targets):
            shown = ", ".join(short(name, 40) for name in dict.fromkeys(strange[:3]))
            yield (
                f"{file}: {len(strange):,} of the first {len(targets):,} targets are not "
                f"an entity's name or id: {shown}"
            )
