"""What only a GPU can show, in one run: the same links as a CPU's, the engine's tests, rates, a profile.

    python tests/on_gpu.py cpu --output cpu          # on a machine without a GPU, before
    python tests/on_gpu.py gpu --output out --cpu cpu

Either side links the same mentions in float32: the starter's, or those of --input under --workspace. Carry
the folder `cpu`, links and the workspace that they were made with, to the GPU machine. There each step writes
a log in `out`, a step that fails does not stop the others, and `out/summary.txt` says what came of each. The
steps that matter most come first.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, "-m", "gemel_ray.cli"]
MENTIONS, FAR = 200, 1e-3
ALL = ("retrieve.ranking=0",)  # the language model is asked about every mention, and not a ranker
# A small model has two engines by default.
ONE = ("offline.engines_per_gpu=1",)
TESTS = ["engine", "search", "constraint", "rounds", "lockstep", "lockstep_toy", "shared_prefix", "sizing"]


def main() -> int:
    options = parsed()
    options.output.mkdir(parents=True, exist_ok=True)
    workspace, given = prepared(options)
    if options.where == "cpu":
        return run(options.output / "links.log", link(workspace, given, options.output / "links"), 3600)
    common = [given, "--workspace", str(workspace), "--json", *sets(*ALL), "--output"]
    engine, job = ["bench", "engine", *common], ["bench", "scale", *common, str(options.output / "job")]
    large = ["--shape", "7b", "--mentions", "1536"]
    steps: dict[str, Callable[[Path], int]] = {
        "doctor": lambda log: run(log, ["doctor"], 120),
        # Enough for both engines, of which the second starts 20 seconds after the first.
        "job": lambda log: run(log, [*job, "--sizes", "120000"], 240),
        "links": lambda log: run(log, link(workspace, given, options.output / "links"), 200),
        "same": lambda log: same(log, options.cpu, options.output / "links"),
        "engine": lambda log: run(log, [*engine, str(options.output / "engine")], 240),
        "engine-7b-shared": lambda log: run(
            log,
            [
                *engine,
                str(options.output / "7b-shared"),
                *large,
                *sets("generate.shared_attention=always"),
            ],
            200,
        ),
        "tests": lambda log: run(log, tests(), 400, [sys.executable, "-m", "pytest"]),
        "engine-one": lambda log: run(log, [*engine, str(options.output / "one"), *sets(*ONE)], 200),
        "engine-7b": lambda log: run(log, [*engine, str(options.output / "7b"), *large], 200),
        "profile": lambda log: run(log, profiled(options.output, engine), 300, ["py-spy", "record"]),
    }
    summary = options.output / "summary.txt"
    for name in options.only or steps:
        began = time.monotonic()
        code = steps[name](options.output / f"{name}.log")
        with summary.open("a") as file:
            print(
                f"{name:16} {'ok' if code == 0 else f'failed ({code})':12} {time.monotonic() - began:.0f} s",
                file=file,
            )
        print(summary.read_text().splitlines()[-1], flush=True)
    return 0 if " failed " not in summary.read_text() else 1


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("where", choices=("cpu", "gpu"))
    parser.add_argument("--output", type=place, required=True, metavar="DIR")
    parser.add_argument("--workspace", type=place, help="made by gemel-ray build (the starter's)")
    parser.add_argument("--input", help="documents with mentions (the starter's)")
    parser.add_argument("--cpu", type=place, metavar="DIR", help="gpu: what the CPU's run wrote")
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="STEP",
        help="gpu: doctor job links same engine engine-7b-shared tests engine-one engine-7b profile",
    )
    options = parser.parse_args()
    if (options.workspace is None) != (options.input is None):
        parser.error("--workspace and --input go together")
    return options


def place(path: str) -> Path:
    return Path(path).resolve()  # every step runs in the project's folder


def prepared(options: argparse.Namespace) -> tuple[Path, str]:
    """A workspace and its input."""
    if options.workspace:
        return options.workspace, options.input
    data, made = ROOT / "gemel_ray" / "starter" / "data", (options.cpu or options.output) / "workspace"
    if not made.exists():
        build = [
            "build",
            "--entities",
            str(data / "entities.jsonl"),
            "--demonstrations",
            str(data / "train.parquet"),
        ]
        if code := run(options.output / "build.log", [*build, "--output", str(made)], 600):
            sys.exit(f"the starter's workspace was not built ({code}): see {options.output / 'build.log'}")
    return made, str(data / "test.parquet")


def link(workspace: Path, given: str, output: Path) -> list[str]:
    exact = sets("generate.dtype=float32", *ALL)
    return [
        "link",
        given,
        "--workspace",
        str(workspace),
        "--output",
        str(output),
        "--limit",
        str(MENTIONS),
        *exact,
    ]


def sets(*settings: str) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]


def tests() -> list[str]:
    return ["-q", *(str(ROOT / "tests" / f"test_{name}.py") for name in TESTS)]


def profiled(output: Path, engine: list[str]) -> list[str]:
    """Where the interpreter's lock goes while the engine alone is full."""
    spy = [
        "--gil",
        "--threads",
        "--subprocesses",
        "--format",
        "raw",
        "--output",
        str(output / "profile.txt"),
        "--",
    ]
    return [*spy, *COMMAND, *engine, str(output / "profiled")]


def run(log: Path, arguments: list[str], seconds: float, command: list[str] = COMMAND) -> int:
    """The exit code; 124 when it took longer. What it prints is in `log`."""
    with log.open("w") as file:
        try:
            return subprocess.call(
                [*command, *arguments], stdout=file, stderr=subprocess.STDOUT, timeout=seconds, cwd=ROOT
            )
        except subprocess.TimeoutExpired:
            return 124


def same(log: Path, cpu: Path | None, ours: Path) -> int:
    """Whether both machines give the same names, with scores within FAR."""
    theirs = cpu / "links" if cpu else None
    for folder in (theirs, ours):
        if folder is None or not list(folder.glob("links/*.parquet")):
            log.write_text(f"no links in {folder}: --cpu takes the folder that the CPU's run wrote\n")
            return 2
    before, gpu = links(theirs), links(ours)
    names = [key for key in before if [n for n, _ in before[key]] == [n for n, _ in gpu.get(key, [])]]
    best = [[found[key][0][0] if found.get(key) else None for key in before] for found in (before, gpu)]
    first = sum(a == b for a, b in zip(*best, strict=True))
    far = max((abs(a[1] - b[1]) for k in names for a, b in zip(before[k], gpu[k], strict=True)), default=0.0)
    log.write_text(
        f"{len(before)} mentions: {first} first names equal, all names in order for {len(names)}; "
        f"scores of these at most {far:.2g} apart\n"
    )
    return 0 if len(names) == len(before) == len(gpu) and far <= FAR else 1


def links(output: Path) -> dict[tuple[str, str], list[tuple[str, float]]]:
    """Names and scores of every mention that was answered, best first."""
    rows = pa.concat_tables(
        pq.read_table(file) for file in sorted(output.glob("links/*.parquet"))
    ).to_pylist()
    return {
        (row["document_id"], row["mention_id"]): [(c["entity"], c["score"]) for c in row["candidates"]]
        for row in rows
        if row["status"] != "error"
    }


if __name__ == "__main__":
    sys.exit(main())
