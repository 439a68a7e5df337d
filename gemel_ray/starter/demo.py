"""`gemel-ray demo`: the whole graph on the starter's models, pictures and logos, in one job.

Links the test set twice, with the right pictures and with each picture moved to another document. The
difference in accuracy is what the pictures contribute.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gemel_ray.config import Config
from gemel_ray.evaluation import Evaluation, evaluate
from gemel_ray.job.record import Manifest
from gemel_ray.knowledge.build import build
from gemel_ray.knowledge.versions import read_facts
from gemel_ray.offline import link
from gemel_ray.progress import Meter
from gemel_ray.report import thumbnail, write_report

DATA = Path(__file__).parent / "data"
_SETTINGS = {"retrieve": {"demonstrations": 4}}  # captions are short and families small: 16 help no more


def demo(configured: Callable[[Mapping[str, Any]], Config], output: Path, limit: int | None) -> int:
    """Build, link, evaluate, print, and write the page. Run again, it continues where it stopped."""
    config = configured({})
    workspace = output / "workspace"
    if not (workspace / "workspace.json").exists():
        _say("building the workspace from the starter's entities and solved examples")
        build(config, str(DATA / "entities.jsonl"), [str(DATA / "train.parquet")], workspace, _say)
    config = configured(read_facts(workspace)["settings"] | _SETTINGS)
    inputs = _inputs(output, limit)
    with Meter("documents", sum(pq.ParquetFile(f).metadata.num_rows for f in inputs)) as meter:
        manifest = link(config, workspace, inputs, output / "linked", meter.add)
    found = evaluate(output / "linked", inputs)
    _print_rows(found.part("test-seen-"))
    summary = _summary(found, manifest)
    print("\n" + "\n".join(f"{name:<58} {value}" for name, value in summary))
    page = output / "report.html"
    train = pq.read_table(DATA / "train.parquet", columns=["id", "image"])
    images = dict(zip(train["id"].to_pylist(), train["image"].to_pylist(), strict=True))
    write_report(
        found.part("test-"),
        page,
        title="gemel-ray: the starter's logos",
        summary=summary,
        picture=lambda demonstration: thumbnail(images.get(demonstration.partition("/")[0]), None),
    )
    print(f"\npictures, answers, candidates and demonstrations: {page.resolve()}")
    return 0


def _inputs(output: Path, limit: int | None) -> list[str]:
    """The test set, and the same with every picture moved to another document."""
    output.mkdir(parents=True, exist_ok=True)
    test = pq.read_table(DATA / "test.parquet")
    test = test.take(np.random.default_rng(0).permutation(len(test))[:limit])
    moved = pa.concat_tables([test.slice(1), test.slice(0, 1)])["image"]
    shuffled = test.set_column(
        test.column_names.index("id"), "id", pc.binary_join_element_wise("shuffled", test["id"], "-")
    ).set_column(test.column_names.index("image"), "image", moved)
    files = []
    for name, table in (("right-pictures", test), ("shuffled-pictures", shuffled)):
        path = output / f"{name}.parquet"
        pq.write_table(table, path)
        files.append(str(path))
    return files


def _summary(found: Evaluation, manifest: Manifest) -> list[tuple[str, str]]:
    named = {
        "right pictures, entities pictured in the examples": "test-seen-",
        "shuffled pictures, the same mentions": "shuffled-test-seen-",
        "right pictures, entities never pictured in the examples": "test-unseen-",
        "shuffled pictures, the same mentions as those": "shuffled-test-unseen-",
    }
    parts = {name: found.part(prefix) for name, prefix in named.items()}
    rows = [(n, f"{p.accuracy:.1%} of {len(p.judged):,}") for n, p in parts.items() if p.judged]
    families = [
        family_size(found, j.gold["mention"])
        for j in parts["right pictures, entities pictured in the examples"].judged
    ]
    known = [1 / size for size in families if size > 1]
    if known:
        rows.append(
            ("guessing within the family, where the mention names one", f"{sum(known) / len(known):.1%}")
        )
    usage = manifest["measures"].get("generate", {})
    rows.append(
        (
            "this run",
            f"{usage.get('mentions', 0):,} mentions in {manifest['seconds']:.0f} s, start-up included",
        )
    )
    return rows


def family_size(found: Evaluation, mention: str) -> int:
    """The number of targets that have the mention as their first word."""
    return len({j.gold["target"] for j in found.judged if j.gold["target"].split()[0] == mention})


def _print_rows(found: Evaluation) -> None:
    print(f"\n{'document':<16} {'mention':<14} {'answer':<24} {'p':>5}  {'should be':<24} candidates")
    for j in found.judged[:12]:
        row = j.link or {}
        others = ", ".join(row.get("ranked", ())[1:4])
        print(
            f"{j.gold['document_id']:<16} {j.gold['mention'][:14]:<14} "
            f"{(row.get('entity') or j.status)[:24]:<24} "
            f"{row.get('probability') or 0:5.2f}  {j.gold['target'][:24]:<24} {others[:60]}"
        )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
