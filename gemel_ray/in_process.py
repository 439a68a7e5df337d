"""Link documents in this process: load the models once, then link any number of documents.

    from gemel_ray import Linker

    with Linker("my-workspace") as linker:
        links = linker.link("A flag with the mark of AWS.", image="flag.jpg", mentions=["AWS"])

The graph is that of `gemel-ray link` and of the endpoint, without Ray: one process, one engine. For
millions of documents use the job, which resumes and distributes the work.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from gemel_ray.client import Image, Link, Mention, Table, mention_fields, table_field
from gemel_ray.config import load, refuse_built
from gemel_ray.graph import run_in_process
from gemel_ray.knowledge.versions import read_facts
from gemel_ray.knowledge.workspace import Workspace
from gemel_ray.linking import linking_graph
from gemel_ray.readers.pictures import SourceFile
from gemel_ray.readers.reading import table
from gemel_ray.records import Row
from gemel_ray.sizing import fitted

_BATCH = 64


class Linker:
    """The started graph of a workspace: a folder that `gemel-ray build` made.

    `settings`: as `--set` takes them, {"generate.beams": 1}. `config`: a configuration file. Not thread-safe.
    Raises WorkspaceError, ConfigError.
    """

    def __init__(
        self,
        workspace: str | Path,
        settings: Mapping[str, Any] | None = None,
        config: str | Path | None = None,
    ) -> None:
        folder, chosen = Path(workspace), [f"{name}={value}" for name, value in (settings or {}).items()]
        file = Path(config) if config is not None else None
        refuse_built(chosen)
        options = fitted(load(file, read_facts(folder)["settings"], chosen), "offline")
        opened = Workspace.open(folder, options)
        graph = linking_graph(options, opened)
        self._segment = graph.segment(graph.names, opened)

    def __enter__(self) -> Linker:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the models."""
        self._segment.close()

    def link(
        self,
        text: str,
        image: Image | None = None,
        mentions: Iterable[Mention] | None = None,
        table: Table | None = None,
    ) -> list[Link]:
        """Links of one document, one row per mention. `mentions`: strings, (start, end) in characters, or
        (row, column) of `table`; None lets Detect find them. `image` may also be a file's address. A document
        that cannot be linked is a row of status `error`."""
        row: Row = {"text": text}
        if image is not None:
            row["image"] = str(image) if isinstance(image, Path) else image
        if mentions is not None:
            row["mentions"] = mention_fields(mentions)
        if table is not None:
            row["table"] = table_field(table)
        return list(self.link_many([row]))

    def link_many(self, documents: Iterable[Mapping[str, Any]]) -> Iterator[Link]:
        """Links of each document, in order; rows have their `document_id`. A document has the form of a row
        of an input file (docs/inputs.md); relative paths begin in the working directory."""
        at = SourceFile(str(Path.cwd() / "documents"), fetch=False)
        numbered = enumerate(map(dict, documents), 1)
        tables = (table(some, at) for some in iter(lambda: list(islice(numbered, _BATCH)), []))
        for done in run_in_process(self._segment, tables):
            yield from done.to_pylist()
