"""gemel-ray bench."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemel_ray.arguments import Parser, folder, place, refuse
from gemel_ray.commands import configured, say
from gemel_ray.errors import Mistake

if TYPE_CHECKING:
    from gemel_ray.measuring.machine import Figures
    from gemel_ray.measuring.random_model import ShapeName


def add(verb: Parser) -> None:
    """Measure how fast this machine links, and what limits it.

    speed   the full engine alone, its raw prompt rate, and the reference loop (Hugging Face's generate,
            one mention at a time, a Python prefix tree); every stage alone; the whole offline job with
            its start-up and memory; and the bottleneck, in one line
    engine  of these, the engine alone; of all engines of a GPU, if it has several
    host    everything except the language model, which a random one of two layers replaces: the cost of
            a mention, stage by stage and in the job; takes a minute or two, on any machine
    trees   a knowledge base with --names more names: build, bytes, memory, decoding
    scale   the offline job on inputs of growing size
    flow    every stage except the language model on --pairs pairs without mentions: rows a second, memory
    resume  how long a job takes to find out which of --documents documents are done

    Without INPUT and --workspace, the starter's are measured. With --shape, a random language model of that
    shape replaces the workspace's: what would a model of 7 billion weights cost here? Use the machine for
    nothing else meanwhile. Links are not judged: gemel-ray study compares accuracy.

      gemel-ray bench speed
      gemel-ray bench speed dev.json --workspace kb --json
      gemel-ray bench engine --shape 7b
      gemel-ray bench host
      gemel-ray bench trees --names 10000000 --output bench
      gemel-ray bench scale dev.json --workspace kb --sizes 1000 10000
      gemel-ray bench flow --pairs 1000000
      gemel-ray bench resume --documents 10000000
    """
    verb.add_argument("what", choices=(*_OPTIONS_OF, "host"), help="what to measure")
    verb.add_argument("inputs", nargs="*", metavar="INPUT", help="documents with mentions")
    verb.add_argument("--workspace", type=place, help="workspace that gemel-ray build made")
    verb.add_argument(
        "--output", type=folder, default=Path("bench"), metavar="DIR", help="output folder (default: bench)"
    )
    _add_sizes(verb)
    verb.add_argument("--json", action="store_true", help="print all figures as JSON")
    verb.set_defaults(run=_run)


def _add_sizes(verb: Parser) -> None:
    """Add the sizes of the measurements."""
    verb.add_argument(
        "--mentions",
        type=int,
        help="speed, engine, host: mentions to link (default: 8 for each column, at least 1024; host: 4096)",
    )
    verb.add_argument("--rounds", type=int, default=1, help="speed, engine: rounds (default: 1)")
    verb.add_argument(
        "--shape",
        choices=("two-layers", "7b"),
        help="shape of a random language model to use (default for host: two-layers)",
    )
    verb.add_argument(
        "--names", type=int, default=1_000_000, help="trees: names to make up (default: 1000000)"
    )
    verb.add_argument(
        "--sizes",
        type=int,
        nargs="+",
        default=[1000, 10_000],
        help="scale: numbers of mentions (default: 1000 10000)",
    )
    verb.add_argument("--pairs", type=int, default=100_000, help="flow: pairs to make up (default: 100000)")
    verb.add_argument(
        "--documents", type=int, default=10_000_000, help="resume: documents to make up (default: 10000000)"
    )


# Options that not all measurements have.
_OPTIONS_OF = {
    "speed": ("--rounds",),
    "engine": ("--rounds",),
    "trees": ("--names",),
    "scale": ("--sizes",),
    "flow": ("--pairs",),
    "resume": ("--documents",),
}


def _run(options: argparse.Namespace) -> int:
    from gemel_ray.knowledge.versions import read_facts
    from gemel_ray.readers import files

    ours = _OPTIONS_OF.get(options.what, ())
    others = [name for names in _OPTIONS_OF.values() for name in names if name not in ours]
    others += ["--shape"] if options.what in ("flow", "resume") else []  # these use no language model
    refuse(options, others, f"bench {options.what} measures without it")
    if options.workspace and not options.inputs:
        raise Mistake("with --workspace, say what to measure on: gemel-ray bench ... INPUT")
    named = files(options.inputs, say)  # raises before anything is built
    options.output.mkdir(parents=True, exist_ok=True)
    if options.what == "resume":
        return _print(options, _resume(options))
    workspace: Path = options.workspace or _starter(options)
    inputs = named or [str(options.output / "documents.parquet")]
    shape: ShapeName | None = options.shape or ("two-layers" if options.what == "host" else None)
    if shape:
        workspace = _shaped(options, workspace, shape)
    settings = partial(configured, options, read_facts(workspace)["settings"])
    ways = {
        "speed": _speed,
        "engine": _engine,
        "host": _host,
        "trees": _trees,
        "scale": _scale,
        "flow": _flow,
    }
    measured = ways[options.what]
    return _print(options, measured(options, settings, workspace, inputs))


def _print(options: argparse.Namespace, found: Figures) -> int:
    print(json.dumps(found, indent=2) if options.json else "\n".join(_lines(found)))
    return 0


def _starter(options: argparse.Namespace) -> Path:
    """Make the starter's workspace and documents in the output folder."""
    import pyarrow.parquet as pq

    from gemel_ray.knowledge.build import build
    from gemel_ray.starter.demo import DATA

    workspace: Path = options.output / "workspace"
    if not (workspace / "workspace.json").exists():
        say("building the starter's workspace")
        examples = [str(DATA / "train.parquet")]
        build(configured(options, {}), str(DATA / "entities.jsonl"), examples, workspace, say)
    test = pq.read_table(DATA / "test.parquet")
    pq.write_table(test, options.output / "documents.parquet")
    return workspace


def _shaped(options: argparse.Namespace, workspace: Path, shape: ShapeName) -> Path:
    """A workspace with the same knowledge and a random language model of this shape."""
    from gemel_ray.knowledge.versions import read_facts
    from gemel_ray.knowledge.workspace import Workspace
    from gemel_ray.measuring.random_model import with_random_model

    say(f"making a random language model: {shape}")
    config = configured(options, read_facts(workspace)["settings"])
    return with_random_model(Workspace.open(workspace, config), options.output, shape)


def _speed(options: argparse.Namespace, settings: Any, workspace: Path, inputs: list[str]) -> Figures:
    from gemel_ray.measuring.speed import speed

    return speed(settings(), workspace, inputs, options.output, options.mentions, options.rounds, say)


def _engine(options: argparse.Namespace, settings: Any, workspace: Path, inputs: list[str]) -> Figures:
    from gemel_ray.measuring.speed import engine_speed

    return engine_speed(settings(), workspace, inputs, options.output, options.mentions, options.rounds, say)


def _host(options: argparse.Namespace, settings: Any, workspace: Path, inputs: list[str]) -> Figures:
    from gemel_ray.measuring.engine import Sizes
    from gemel_ray.measuring.host import host

    sizes = Sizes(mentions=options.mentions or 4096, reference=0, raw=0)
    return host(settings(), workspace, inputs, options.output, sizes, say)


def _trees(options: argparse.Namespace, settings: Any, workspace: Path, inputs: list[str]) -> Figures:
    from gemel_ray.measuring.trees import trees

    return trees(settings, workspace, inputs, options.output, options.names, 480, say)


def _scale(options: argparse.Namespace, settings: Any, workspace: Path, inputs: list[str]) -> Figures:
    from gemel_ray.measuring.scale import scale

    return scale(settings(), workspace, inputs, options.output, options.sizes, say)


def _flow(options: argparse.Namespace, settings: Any, workspace: Path, inputs: list[str]) -> Figures:
    from gemel_ray.measuring.flow import flow

    return flow(settings(), workspace, inputs, options.output, options.pairs, say)


def _resume(options: argparse.Namespace) -> Figures:
    from gemel_ray.measuring.resume import resume

    return resume(options.output, options.documents, say)


def _lines(found: Any, before: str = "") -> Iterator[str]:
    """One figure a line, below the names of its groups."""
    for name, value in found.items():
        if isinstance(value, dict) and set(value) == {"median", "min", "max"}:
            spread = f"({value['min']:,.4g} to {value['max']:,.4g})"
            yield f"{before}{name:<44} {value['median']:>12,.4g}   {spread}"
        elif isinstance(value, dict):
            yield f"{before}{name}"
            yield from _lines(value, f"{before}  ")
        else:
            text = f"{value:,.4g}" if isinstance(value, float) else f"{value}"
            yield f"{before}{name:<44} {text:>12}"
