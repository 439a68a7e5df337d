"""gemel-ray plan."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from gemel_ray.arguments import Parser, refuse
from gemel_ray.checked import Values
from gemel_ray.errors import Mistake
from gemel_ray.planning.figures import Model

if TYPE_CHECKING:
    from gemel_ray.planning.cost import Cost, Troubles
    from gemel_ray.planning.rates import Node


def add(verb: Parser) -> None:
    """Estimate the machines, hours and money that N pairs take, and say which segments to run.

    The figures are measured (--rates, from gemel-ray bench speed --json), and every node is a machine like
    that one. Or they are scaled from one H100 to another GPU or model, which is only a first idea. All
    assumptions are printed, and the origin of each figure.

      gemel-ray plan --pairs 10000000 --gpu a100 --gpus-per-node 8 --cpus-per-node 96
      gemel-ray plan --pairs 10000000 --gpu l4 --hours 24 --config-out segments.yaml
      gemel-ray plan --pairs 1000000 --rates bench.json --price 0.4 --simulate
    """
    verb.add_argument(
        "--pairs", type=_number, required=True, metavar="N", help="number of image-caption pairs"
    )
    verb.add_argument("--mentions", type=float, default=2.0, metavar="M", help="mentions a pair (default: 2)")
    verb.add_argument("--rates", type=Path, metavar="FILE", help="output of gemel-ray bench speed --json")
    _add_node(verb)
    _add_answer(verb)
    verb.set_defaults(run=_run, settings=False)


def _add_node(verb: Parser) -> None:
    """Add options for a node's hardware, and for what a pair needs."""
    tokens, host, part = Model.computed, Model.host_ms, Model.efficiency
    verb.add_argument(
        "--gpu", choices=("l4", "a10", "a100", "h100"), default="a100", help="kind of GPU (default: a100)"
    )
    for name, kind, usual, letter, about in (
        ("--gpus-per-node", int, 1, "G", "GPUs of a node (default: 1)"),
        ("--cpus-per-node", int, None, "C", "CPUs of a node (default: 12 for each GPU)"),
        ("--parameters", float, 7e9, "P", "parameters of the language model (default: 7e9)"),
        ("--tokens", float, tokens, "T", f"tokens to compute for a mention (default: {tokens:g})"),
        ("--host", float, host, "MS", f"milliseconds of the host a mention, for any model (default: {host})"),
        ("--efficiency", float, part, "E", f"share of a GPU's data sheet that is reached (default: {part})"),
        ("--megabytes", float, 0.1, "MB", "megabytes of a pair (default: 0.1)"),
        ("--gigabits", float, 10, "GB", "gigabits a second of a node's network (default: 10)"),
        ("--price", float, None, "USD", "price of a node and hour (default: the GPU's list price)"),
        ("--between-failures", float, 200, "H", "hours between a node's failures; 0: never (default: 200)"),
    ):
        verb.add_argument(name, type=kind, default=usual, metavar=letter, help=about)


def _add_answer(verb: Parser) -> None:
    """Add options for the question, and for the form of the answer."""
    verb.add_argument(
        "--nodes", type=int, nargs="+", metavar="N", help="numbers of nodes to compare (default: 1 to 1000)"
    )
    verb.add_argument("--hours", type=float, metavar="H", help="find the fewest nodes that finish in H hours")
    verb.add_argument("--budget", type=float, metavar="USD", help="find the most nodes that cost no more")
    verb.add_argument("--simulate", action="store_true", help="compare the hours with a simulation")
    verb.add_argument("--config-out", type=Path, metavar="FILE", help="write offline.segments, for --config")
    verb.add_argument("--json", action="store_true", help="print all figures as JSON")


# Options that describe a node, in place of --rates.
_SCALED_BY = (
    "--gpu", "--gpus-per-node", "--cpus-per-node", "--parameters", "--tokens", "--efficiency", "--megabytes",
    "--gigabits",
)  # fmt: skip


def _run(options: argparse.Namespace) -> int:
    from gemel_ray.planning.cost import NODES, Troubles, table, within

    _check(options)
    node, troubles = _node(options), Troubles(between_failures=options.between_failures)
    if options.hours is not None or options.budget is not None:
        found = within(options.pairs, node, troubles, hours=options.hours, budget=options.budget)
        if found is None:
            raise Mistake("no number of nodes from 1 to 1,000 does that: see the table without --hours")
        costs = [found]
    else:
        costs = table(options.pairs, node, troubles, options.nodes or NODES)
    if options.config_out:
        options.config_out.write_text(yaml.safe_dump(_segments(node, costs[0].nodes), sort_keys=False))
    hours = _simulated(options, node, troubles, costs) if options.simulate else {}
    print(_as_json(node, costs, hours) if options.json else _as_text(options, node, costs, hours))
    return 0


def _number(text: str) -> int:
    """A whole number, also as 50,000,000 and 5e7."""
    written = text.replace(",", "")
    try:
        return int(written) if written.isdecimal() else int(float(written))
    except (ValueError, OverflowError) as fault:
        raise argparse.ArgumentTypeError(f"takes a number such as 50000000 or 5e7, not {text}") from fault


def _check(options: argparse.Namespace) -> None:
    names = ("pairs", "mentions", "gpus_per_node", "cpus_per_node", "parameters", "tokens", "host",
             "megabytes", "gigabits")  # fmt: skip
    for name in names:
        if (value := getattr(options, name)) is not None and value <= 0:
            raise Mistake(f"--{name.replace('_', '-')} must be more than 0")
    if not 0 < options.efficiency <= 1:
        raise Mistake("--efficiency is a share above 0, and at most 1")
    if options.rates:
        refuse(options, _SCALED_BY, "--rates says what a node does")
    if options.hours is not None or options.budget is not None:
        refuse(options, ("--nodes",), "--hours and --budget look for the number of nodes")
    if options.rates and options.budget is not None and options.price is None:
        raise Mistake("--budget with --rates needs --price: what a node like that costs an hour")
    if any(n < 1 for n in options.nodes or ()):
        raise Mistake("--nodes are at least 1")


def _node(options: argparse.Namespace) -> Node:
    from dataclasses import replace

    from gemel_ray.planning.rates import measured, scaled

    if options.rates:
        return measured(options.rates, options.mentions, options.price or 0.0)
    model = Model(
        parameters=options.parameters, computed=options.tokens, host_ms=options.host,
        efficiency=options.efficiency,
    )  # fmt: skip
    cpus = options.cpus_per_node or 12 * options.gpus_per_node
    node = scaled(
        options.gpu, model, options.mentions, options.gpus_per_node, cpus, options.megabytes, options.gigabits
    )
    if options.price is None:
        return node
    assumptions = (*node.assumptions[:-1], f"{options.price:g} dollars a node and hour")
    return replace(node, price=options.price, assumptions=assumptions)


def _simulated(
    options: argparse.Namespace, node: Node, troubles: Troubles, costs: list[Cost]
) -> dict[int, float]:
    from gemel_ray.planning.simulation import simulated

    return {c.nodes: simulated(options.pairs, node, c.nodes, troubles) for c in costs}


def _segments(node: Node, nodes: int) -> Values:
    """The configuration's segments for all nodes together, with the settings that they need."""
    segments = [{**s, "workers": s["workers"] * nodes} for s in node.segments]
    found: Values = {"offline": {"address": "auto" if nodes > 1 else "local", "segments": segments}}
    return found | ({"generate": node.generate} if node.generate else {})


def _as_json(node: Node, costs: list[Cost], hours: dict[int, float]) -> str:
    rows = [asdict(c) | ({"simulated_hours": hours[c.nodes]} if hours else {}) for c in costs]
    return json.dumps({"node": asdict(node) | {"bottleneck": node.bottleneck}, "costs": rows}, indent=2)


def _as_text(options: argparse.Namespace, node: Node, costs: list[Cost], hours: dict[int, float]) -> str:
    kind = "measured" if node.measured else "a first idea: measure on one before renting more"
    lines = [f"{options.pairs:,} pairs; one node ({kind}):"]
    for name, rate in node.stations.items():
        origin = f" ({node.origins[name]})" if name in node.origins else ""
        lines.append(f"  {name:<34} {rate:>10,.1f} pairs a second{origin}")
    lines += [f"  bottleneck: {node.bottleneck}", "assuming"]
    lines += [f"  - {assumption}" for assumption in node.assumptions]
    lines.append(f"  - a node fails every {options.between_failures:g} hours, and is replaced in 5 minutes"
                 if options.between_failures else "  - no node ever fails")  # fmt: skip
    head = f"\n{'nodes':>6} {'GPUs':>6} {'pairs/s':>10} {'hours':>9} {'dollars':>10} {'lost':>6}"
    lines.append(head + (f" {'simulated':>10}" if hours else ""))
    for c in costs:
        line = (f"{c.nodes:>6} {c.nodes * node.gpus:>6} {c.pairs_per_second:>10,.1f} {c.hours:>9,.2f} "
                f"{c.money:>10,.0f} {c.lost:>6.2%}")  # fmt: skip
        lines.append(line + (f" {hours[c.nodes]:>9,.2f}h" if hours else ""))
    cut = yaml.safe_dump(_segments(node, costs[0].nodes), sort_keys=False, default_flow_style=None)
    return "\n".join([*lines, f"\nfor {costs[0].nodes:,} node{'s' * (costs[0].nodes > 1)}:", cut.rstrip()])
