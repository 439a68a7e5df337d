"""Links a file several ways with one engine, in a process of its own, and prints the rows as JSON.

python tests/link_cases.py WORKSPACE FILE CASES, where CASES is a JSON list of [beams, demonstrations]
"""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from gemel_ray.config import load
from gemel_ray.knowledge.versions import read_facts
from gemel_ray.knowledge.workspace import Workspace
from gemel_ray.linking import linking_graph
from gemel_ray.readers import documents

SMALL = ["generate.dtype=float32", "generate.cache_gib=1.0", "generate.length=1024"]


def main(folder: Path, file: str, cases: list[list[int]]) -> None:
    config = load(None, read_facts(folder)["settings"], SMALL)
    workspace = Workspace.open(folder, config)
    generating: Any = config.generate.start(workspace, config.line.stages)
    rows = []
    for beams, demonstrations in cases:
        generating.stage = replace(config.generate, beams=beams)
        own = replace(
            config,
            generate=generating.stage,
            retrieve=replace(config.retrieve, demonstrations=demonstrations),
        )
        graph = linking_graph(own, workspace)
        before = graph.segment(graph.names[:-1], workspace)
        for table in documents(file):
            prompts = asyncio.run(before.run(table))
            generate = graph.segment(["generate"], workspace, {"generate": generating})
            links = asyncio.run(generate.run(prompts))
            for row, prompt in zip(links.to_pylist(), prompts["prompt"].to_pylist(), strict=True):
                rows.append(row | {"prompt": prompt, "case": [beams, demonstrations]})
        before.close()
    generating.close()
    print(json.dumps(rows))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3]))
