"""The figures of the house, as a table: `make figures`; `python -m tests.figures --files`
lists each file's functions, too.

How many functions, files and lines a document passes on its way through a job, and through the endpoint: both
are run here, in this process, with the starter's models, and traced. And what the sources say of themselves.
"""

from __future__ import annotations

import ast
import asyncio
import json
import re
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import httpx
import pyarrow.parquet as pq

from tests.imports import PACKAGE, arrows, circles, modules

SETTINGS = ["generate.dtype=float32", "generate.length=1024", "generate.cache_gib=1.0", "offline.sized=false"]
DATA = PACKAGE / "starter" / "data"
_ATOMIC = re.compile(r"os\.(replace|rename|link)\(|\b(aside|temporary)\.(replace|rename)\(")


class Trace:
    """The functions of gemel_ray that any thread enters while it is `on`."""

    def __init__(self) -> None:
        self.seen: set[CodeType] = set()
        self.active = False

    def install(self) -> None:
        """Before any thread that shall be traced is started."""
        threading.setprofile(self._entered)
        sys.setprofile(self._entered)

    def _entered(self, frame: FrameType, event: str, _: Any) -> None:
        if self.active and event == "call" and frame.f_code.co_filename.startswith(str(PACKAGE)):
            self.seen.add(frame.f_code)

    @contextmanager
    def on(self) -> Iterator[set[CodeType]]:
        """What is entered inside; nested, it counts for what is around it, too."""
        before = self.seen, self.active
        self.seen, self.active = set(), True
        try:
            yield self.seen
        finally:
            inside = self.seen
            self.seen, self.active = before
            self.seen |= inside


def functions(seen: set[CodeType]) -> list[CodeType]:
    """Those with names: no lambdas, comprehensions or class bodies."""
    return [code for code in seen if not code.co_name.startswith("<") and code.co_flags & 0x2]


def lines(codes: Iterable[CodeType]) -> set[tuple[str, int]]:
    """File and number of each line, once: a function in a function has its lines in common with it."""
    return {
        (code.co_filename, line)
        for code in codes
        for line in range(code.co_firstlineno, max(n or 0 for *_, n in code.co_lines()) + 1)
    }


def counted(seen: set[CodeType]) -> str:
    """Functions, the files they are in, and their lines, and the files'."""
    files = {code.co_filename for code in functions(seen)}
    whole = sum(len(Path(file).read_text().splitlines()) for file in files)
    passed = len(lines(functions(seen)))
    return f"{len(functions(seen))} functions, {len(files)} files, {passed:,} lines ({whole:,} of the files)"


def by_file(seen: set[CodeType]) -> str:
    """The same, file by file, the most lines first, with the lines of each function."""
    files: dict[str, list[CodeType]] = {}
    for code in sorted(functions(seen), key=lambda code: code.co_firstlineno):
        files.setdefault(code.co_filename, []).append(code)
    texts = []
    for file, codes in sorted(files.items(), key=lambda item: -len(lines(item[1]))):
        each = (f"{code.co_qualname.replace('.<locals>', '')} {len(lines([code]))}" for code in codes)
        name = Path(file).relative_to(PACKAGE)
        texts.append(f"{len(lines(codes)):4} {name}: {', '.join(each)}")
    return "\n".join(texts)


def ways(trace: Trace, folder: Path) -> dict[str, set[CodeType]]:
    """A document's through a job, with the job's driver, and through the endpoint."""
    from gemel_ray.config import load
    from gemel_ray.knowledge.build import build

    train = folder / "train.parquet"
    pq.write_table(pq.read_table(DATA / "train.parquet").slice(0, 240), train)
    config = load(None, {}, SETTINGS)
    build(config, str(DATA / "entities.jsonl"), [str(train)], folder / "workspace", lambda _: None)
    trace.install()
    files = [str(folder / f"{name}.parquet") for name in ("first", "second", "third")]
    for number, file in enumerate(files):  # each a document with a picture, its mentions to be linked
        pq.write_table(pq.read_table(DATA / "test.parquet").slice(3 * number, 1), file)
    with started(folder) as (config, workspace, segment):
        worker, driver = job(trace, config, segment, files, folder)
        (row,) = pq.read_table(files[2]).to_pylist()
        asked = asyncio.run(request(trace, config, workspace, segment, row))
    return {
        "a document, in a job": worker,
        "the same with the job's driver": worker | driver,
        "a request, at the endpoint": asked,
    }


@contextmanager
def started(folder: Path) -> Iterator[tuple[Any, Any, Any]]:
    """Configuration, workspace and all stages. With so few examples, and pictures, there is no ranker."""
    from gemel_ray.config import load
    from gemel_ray.job.worker import with_source_column
    from gemel_ray.knowledge.workspace import Workspace, read_facts
    from gemel_ray.linking import linking_graph

    config = load(None, read_facts(folder / "workspace")["settings"], SETTINGS)
    workspace = Workspace.open(folder / "workspace", config)
    graph = with_source_column(linking_graph(config, workspace))
    segment = graph.segment(graph.names, workspace)
    try:
        yield config, workspace, segment
    finally:
        segment.close()


def job(trace: Trace, config: Any, segment: Any, files: list[str], folder: Path) -> list[set[CodeType]]:
    """What a job does with the second of two files: a worker, and the driver; but for Ray."""
    from gemel_ray.job.driving import Job, Run, drive
    from gemel_ray.job.record import write_manifest
    from gemel_ray.job.selection import Filters
    from gemel_ray.job.worker import Attempts, Worker, batch_counts, write_measures
    from gemel_ray.storage import folder_at

    found: list[set[CodeType]] = []
    for file in files[:2]:
        output = folder / f"linked-{Path(file).stem}"

        def worked(run: Run, output: Path = output) -> dict[str, Any]:
            folder = folder_at(output)
            work = Worker(segment, Attempts(folder, "all"), run.name, folder)
            with trace.on() as seen:
                (table,) = (t for s in run.shares for t in s.tables(run.done, Filters(config.input)))
                rows = asyncio.run(work(table))
                write_measures(folder, "worker", "node", segment.measures())
                counts = batch_counts(rows, run.name)
            assert rows["status"].to_pylist() == ["linked"], rows.to_pylist()
            found.append(seen)
            return counts

        @contextmanager
        def computing(_: Any, worked: Any = worked) -> Iterator[Any]:
            yield lambda run: iter([worked(run)])

        with trace.on() as driven:
            told = drive(Job([file], output, config.input), computing, lambda _: None)
            write_manifest(config, folder / "workspace", [file], told, "0")
        found.append(driven)
    return found[-2:]


async def request(
    trace: Trace, config: Any, workspace: Any, segment: Any, row: dict[str, Any]
) -> set[CodeType]:
    """What the endpoint does with a document, but for Ray Serve: the second time it is asked."""
    from gemel_ray.serving.app import create, endpoint
    from gemel_ray.serving.running import VersionedSegment

    following = VersionedSegment(segment, 16, workspace, config)
    made = endpoint(config, workspace, lambda table: following.link(table, None))
    made.desk.readiness.succeeded()
    client = httpx.AsyncClient(transport=httpx.ASGITransport(create(made)), base_url="http://localhost")
    mentions = [{"start": m["start"], "end": m["end"]} for m in row["mentions"]]
    form = {"text": row["text"], "mentions": json.dumps(mentions)}
    for _ in range(2):
        with trace.on() as seen:
            answer = await client.post("/v1/link", data=form, files={"image": row["image"]})
        assert answer.json()["links"][0]["status"] == "linked", answer.text
    return seen


def sources() -> dict[str, object]:
    """What stands in the files."""
    known, texts = modules(), {name: file.read_text() for name, file in modules().items()}
    importers = Counter(imported for _, imported in arrows())
    names = Counter(file.name for file in known.values() if file.name != "__init__.py")
    functions = sorted(
        ((node.end_lineno or 0) - node.lineno + 1, f"{name}.{node.name}")
        for name, text in texts.items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    return {
        "modules": len(known),
        "lines": f"{sum(len(text.splitlines()) for text in texts.values()):,}",
        "circles of imports": _sizes(circles(arrows())),
        "but for what type checkers import": _sizes(circles(arrows(typing=False))),
        "modules with one importer": sum(number == 1 for number in importers.values()),
        "file names that occur again": sum(number > 1 for number in names.values()),
        "`dict[str, Any]`": sum(text.count("dict[str, Any]") for text in texts.values()),
        "places that write files atomically": sum(len(_ATOMIC.findall(text)) for text in texts.values()),
        "functions": f"{len(functions):,}",
        "longest": ", ".join(f"{name} ({length})" for length, name in functions[:-4:-1]),
    }


def _sizes(groups: list[list[str]]) -> str:
    return ", ".join(f"{len(group)} modules" for group in groups) or "none"


def main() -> None:
    passed: dict[str, set[CodeType]] = {}
    if "--sources" not in sys.argv:
        with tempfile.TemporaryDirectory() as folder:
            passed = ways(Trace(), Path(folder))
    print("| | |\n|---|---|")
    for what, figure in ({what: counted(seen) for what, seen in passed.items()} | sources()).items():
        print(f"| {what} | {figure} |")
    if "--files" in sys.argv:
        for what, seen in passed.items():
            print(f"\n{what}:\n{by_file(seen)}")


if __name__ == "__main__":
    main()
