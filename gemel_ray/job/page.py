"""DIR/report.html: what a job did, as a page in one self-contained file. It only counts over the links."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from gemel_ray.job import index, inputs, results
from gemel_ray.job.record import Manifest, ProgressFile
from gemel_ray.plots import Axis, Series, bars, lines
from gemel_ray.readers import documents
from gemel_ray.records import Row
from gemel_ray.report.cards import NIL, candidates, marked, thumbnail
from gemel_ray.report.page import page
from gemel_ray.storage import Place, folder_at

_TOP = 25  # entities shown
_SAMPLES = 24
_NEAR = 1000  # samples come from a file's first rows, since text and picture are read again


def write_page(output: Place) -> None:
    """Write the page of a finished job's folder."""
    folder = folder_at(output)
    manifest, progress = (json.loads(folder.read(name)) for name in ("manifest.json", "progress.json"))
    entities = Counter[str]()
    for links in results.tables(output, ["entity"]):
        entities.update(e for e in links["entity"].to_pylist() if e)
    text = page(
        "job.html",
        title=f"gemel-ray link: {Path(str(folder)).absolute().name}",
        subtitle=_subtitle(manifest),
        tiles=_tiles(manifest, progress),
        plots=list(_plots(progress)),
        slowest=_slowest(progress),
        errors=manifest["errors"],
        examples={entry["kind"]: entry["examples"] for entry in progress["errors"]},
        different=len(entities),
        entities=_most(entities),
        samples=list(_samples(output)),
    )
    folder.write("report.html", text.encode())


def _subtitle(manifest: Manifest) -> str:
    knowledge = manifest["workspace"]
    return (
        f"{', '.join(Path(i).name for i in manifest['inputs'][:5])}; knowledge {knowledge['knowledge']} of "
        f"{Path(knowledge['path']).name}; fingerprint {', '.join(map(str, manifest['fingerprints']))}"
    )


def _tiles(manifest: Manifest, progress: ProgressFile) -> list[tuple[str, str, str]]:
    rows, statuses = manifest["rows"] or 1, manifest["statuses"]
    return [
        ("documents", f"{manifest['documents']:,}", f"{progress['documents']['done']:,} in this run"),
        ("mentions", f"{manifest['rows']:,}", f"{progress['rows_per_second'] or 0:.1f} a second"),
        *(
            (name, f"{statuses.get(name, 0) / rows:.1%}", f"{statuses.get(name, 0):,}")
            for name in ("linked", "nil", "error")
        ),
        ("seconds", f"{progress['seconds']:,.0f}", "start-up included"),
    ]


def _plots(progress: ProgressFile) -> Iterator[str]:
    moments = [(a, b) for a, b in pairwise(progress["timeline"]) if b[0] > a[0]]
    if moments:
        rate = Series("mentions", [(b[1] - a[1]) / (b[0] - a[0]) for a, b in moments],
                      x=[b[0] for _, b in moments])  # fmt: skip
        wrong = Series("errors", [(b[2] - a[2]) / (b[0] - a[0]) for a, b in moments], x=rate.x)
        yield lines([rate, wrong], title="A second, over time", x=Axis("seconds"), y=Axis(), dots=True)
    if shares := progress["stage_shares"]:
        series = Series("share", list(shares.values()))
        yield bars(
            list(shares), [series], title="Share of a document's time in each stage", y=Axis(percent=True)
        )


def _slowest(progress: ProgressFile) -> dict[str, str | float] | None:
    """The stage that takes the most time."""
    shares = progress["stage_shares"]
    if not shares:
        return None
    stage = max(shares, key=shares.__getitem__)
    memory = max((w["peak_mib"] for w in progress["workers"].values()), default=0)
    workers = len(progress["workers"])
    return {"stage": stage, "share": shares[stage], "workers": workers, "mebibytes": memory}


def _most(entities: Counter[str]) -> list[tuple[str, str, str]]:
    """The entities that are linked most often."""
    whole = sum(entities.values())
    return [(name, f"{number:,}", f"{number / whole:.1%}") for name, number in entities.most_common(_TOP)]


def _samples(output: Place) -> Iterator[Row]:
    """Mentions from the whole output, with their texts and pictures, which are read again from the input."""
    chosen: dict[str, Row] = {}
    written, known = results.files(output), inputs.addresses(output)
    for file in written[:: max(1, len(written) // _SAMPLES)]:
        rows = _with_sources(output, file, known).to_pylist()
        good = {row["source"]: row for row in rows if row["status"] != "error" and _is_near(row["source"])}
        some = list(good)[:: max(1, len(good) * len(written) // _SAMPLES)]
        chosen |= {source: good[source] for source in some[: _SAMPLES - len(chosen)]}
    for source, document in _read_again(chosen):
        link = chosen[source]
        yield {
            "text": marked({**link, "text": document["text"]}),
            "picture": thumbnail(document["image"], document["image_address"]),
            "answer": link["entity"] or NIL,
            "probability": link["probability"],
            "document_id": link["document_id"],
            "candidates": candidates(link),
            "why": link.get("why"),
        }


def _with_sources(output: Place, file: str, known: Mapping[int, str]) -> pa.Table:
    """A file's rows, with the source of each row's document when it was read."""
    folder = folder_at(output)
    records = index.of_any(folder, file)
    sources = [f"{known.get(int(r['file']), '')}:{r['row']}" for r in np.repeat(records, records["rows"])]
    return results.read(folder, file).append_column("source", [pa.array(sources, pa.string())])


def _read_again(sources: Mapping[str, Any]) -> Iterator[tuple[str, Row]]:
    """Read the documents of these sources, which are near the beginning of their files."""
    rows: dict[str, set[str]] = {}
    for source in sources:
        rows.setdefault(source.rpartition(":")[0], set()).add(source)
    for address, wanted in rows.items():
        left = set(wanted)
        for batch in documents(address):
            for document in batch.to_pylist():
                if document["source"] in left and document["text"] is not None:
                    left.discard(document["source"])
                    yield document["source"], document
            if not left:
                break


def _is_near(source: str) -> bool:
    number = source.rpartition(":")[2]
    return number.isdigit() and int(number) <= _NEAR
