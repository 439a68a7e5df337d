"""gemel-ray link."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from gemel_ray.arguments import Parser, place
from gemel_ray.commands import configured_for, say
from gemel_ray.errors import Mistake

if TYPE_CHECKING:
    from gemel_ray.config import Config
    from gemel_ray.job.record import Manifest
    from gemel_ray.job.selection import Selection


def add(verb: Parser) -> None:
    """Link documents in an offline job on Ray Data. Run the same command again to do what is missing.

    INPUT: paths or addresses (s3://...), with * and {00000..00099}. They may be JSON, CSV, Parquet or Arrow
    files, or folders of them, with id, text, image (path, URL or bytes) and mentions ([{start, end}]; without
    mentions, the text is searched for the knowledge base's names). They may also be rows in the form of
    GEMEL, KILT or another data set, released captions (caption, url), WebDataset shards, or what img2dataset
    wrote: docs/inputs.md lists all forms. What is skipped or not read is reported.

    Results: DIR/links/*.parquet with one row for each mention, DIR/manifest.json, and DIR/report.html. During
    the run, DIR/progress.json shows the progress. Exit status: 0, or 1 if every row is an error.

      gemel-ray link photos.jsonl --workspace my-workspace --output linked
      gemel-ray link photos.jsonl --workspace my-workspace --output linked --retry-failed --reason timeout
    """
    verb.add_argument("inputs", nargs="+", metavar="INPUT", help="files, folders or addresses")
    verb.add_argument("--workspace", required=True, type=place, help="workspace that gemel-ray build made")
    verb.add_argument("--output", required=True, type=place, metavar="DIR", help="output: folder or address")
    verb.add_argument(
        "--strict", action="store_true", help="exit with status 1 if any row failed, not only if all did"
    )
    verb.add_argument("--limit", type=int, metavar="N", help="link only the first N documents")
    verb.add_argument(
        "--sample",
        type=float,
        default=1.0,
        metavar="SHARE",
        help="link only this share of the documents, always the same (default: 1)",
    )
    verb.add_argument(
        "--retry-failed", action="store_true", help="link those documents again that have an error row in DIR"
    )
    verb.add_argument(
        "--reason",
        default="",
        metavar="TEXT",
        help="with --retry-failed: only error rows whose reason contains TEXT",
    )
    verb.add_argument(
        "--max-error-rate", type=float, default=1.0, metavar="SHARE",
        help="stop with status 1 if more than this share of rows (of at least 200) are errors (default: 1)",
    )  # fmt: skip
    verb.add_argument("--dry-run", action="store_true", help="say what would be done, but start nothing")
    verb.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from gemel_ray.job.selection import Selection
    from gemel_ray.knowledge.workspace import Workspace
    from gemel_ray.readers import files, first_look
    from gemel_ray.sizing import fitted
    from gemel_ray.storage import keeps_writers_apart
    from gemel_ray.stores import writable

    if options.reason and not options.retry_failed:
        raise Mistake("--reason says which rows --retry-failed takes: give both")
    if not 0 <= options.max_error_rate <= 1:
        raise Mistake(f"--max-error-rate is a share from 0 to 1, not {options.max_error_rate:g}")
    selection = Selection(options.limit, options.sample)
    config = configured_for(options.workspace, options)
    workspace = Workspace.open(options.workspace, config)
    workspace.ask(say)  # refuses a mismatch before anything is started
    if config.offline.address == "local":
        config.detect.check()
    writable(options.output)
    if isinstance(options.output, Path) and (options.output / "workspace.json").exists():
        raise Mistake(f"{options.output} is a workspace: give another folder as --output")
    inputs = files(options.inputs, say)
    for line in first_look(inputs):
        say(line)
    if options.dry_run:
        from gemel_ray.job.driving import preview

        print(preview(config, inputs, options.output, selection))
        return 0
    keeps_writers_apart(options.output)
    manifest = _linked(options, config, inputs, selection)
    used = fitted(config, "offline")  # as the job has it: its rows are marked with this one's fingerprint
    print(_summary(manifest, used.fingerprint(workspace.version)))
    print(f"{options.output}\nto look at: {options.output}/report.html")
    return exit_status(manifest, strict=options.strict)


def _linked(options: argparse.Namespace, config: Config, inputs: list[str], selection: Selection) -> Manifest:
    from gemel_ray.job.inputs import unchanged
    from gemel_ray.job.page import write_page
    from gemel_ray.job.results import number
    from gemel_ray.offline import link
    from gemel_ray.progress import Meter

    total = selection.total(inputs, unchanged(options.output, inputs, config.input))
    left = max(0, total - number(options.output)) if total and not options.retry_failed else None
    if left == 0:
        say("nothing is left to do, as far as the input's files show")
    with Meter("documents", left) as meter:
        manifest = link(
            config, options.workspace, inputs, options.output, meter.add,
            selection=selection, max_error_rate=options.max_error_rate,
            retry=options.reason if options.retry_failed else None,
        )  # fmt: skip
    write_page(options.output)
    return manifest


def exit_status(manifest: Manifest, *, strict: bool) -> int:
    """1 when every row failed, or, if strict, any did; filtered rows are not failures."""
    from gemel_ray.pictures.limits import FILTERED

    failed = any(not reason.startswith(FILTERED) for reason in manifest["errors"])
    if failed and set(manifest["statuses"]) == {"error"}:
        say("no row was linked: every one is an error; the reasons are above, and in each row's error")
        return 1
    return 1 if strict and failed else 0


def _summary(manifest: Manifest, fingerprint: str) -> str:
    """What is in the output, what of it this configuration did not make, and what of the input was not read,
    in words."""
    from gemel_ray.readers.pictures import unread_lines

    statuses = manifest["statuses"]
    lines = [
        f"{manifest['documents']:,} documents, {manifest['rows']:,} rows: "
        + (", ".join(f"{n:,} {status}" for status, n in sorted(statuses.items())) or "nothing")
    ]
    lines += [f"  {number:,} x {reason}" for reason, number in list(manifest["errors"].items())[:5]]
    if any(reason.startswith("cannot read the image") for reason in manifest["errors"]):
        lines.append("  (encode.unreadable=text links by its text a document whose picture cannot be read)")
    others = sum(n for made_by, n in manifest["fingerprints"].items() if made_by not in (fingerprint, None))
    if others:
        lines.append(
            f"{others:,} of these rows are from earlier runs with another workspace, knowledge or settings, "
            "and stay as they are: to link those documents again, give another --output"
        )
    return "\n".join(lines + unread_lines(manifest["measures"].get("encode", {})))
