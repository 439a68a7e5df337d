"""gemel-ray link."""

from __future__ import annotations

import argparse
from pathlib import Path

from gemel_ray.arguments import Parser
from gemel_ray.commands import configured


def add(verb: Parser) -> None:
    """Link documents: the offline job on Ray Data. Run again, it does what is missing.

    INPUT: JSON lines or Parquet files (or folders of them) with id, text, image (path, URL or bytes) and
    mentions ([{start, end}]; without them the knowledge base's names are looked for), or lines in the
    official GEMEL form. Results: OUTPUT/links/*.parquet, one row a mention, and OUTPUT/manifest.json.

      gemel-ray link photos.jsonl --workspace my-workspace --output linked
    """
    verb.add_argument("inputs", nargs="+", metavar="INPUT", help="file or folder")
    verb.add_argument("--workspace", required=True, type=Path, help="made by gemel-ray build")
    verb.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder for the results")
    verb.add_argument("--strict", action="store_true", help="exit with 1 if any row is an error")
    verb.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from gemel_ray import results
    from gemel_ray.knowledge.workspace import Workspace, read_facts
    from gemel_ray.offline import link
    from gemel_ray.progress import Meter
    from gemel_ray.readers import count, files

    config = configured(options, read_facts(options.workspace)["settings"])
    Workspace.open(options.workspace, config)  # refuses a mismatch before anything is started
    inputs = files(options.inputs)
    results.prepare(options.output)
    done = len(results.finished(options.output))
    with Meter("documents", sum(count(f) or 0 for f in inputs) - done) as meter:
        manifest = link(config, options.workspace, inputs, options.output, meter.add)
    statuses = manifest["statuses"]
    told = ", ".join(f"{n:,} {status}" for status, n in sorted(statuses.items())) or "nothing"
    print(f"{manifest['documents']:,} documents, {manifest['rows']:,} rows: {told}\n{options.output}")
    return 1 if options.strict and statuses.get("error") else 0
