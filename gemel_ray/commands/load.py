"""gemel-ray load."""

from __future__ import annotations

import argparse
import json
import os
from typing import TYPE_CHECKING

from gemel_ray.arguments import Parser
from gemel_ray.errors import Mistake

if TYPE_CHECKING:
    from gemel_ray.serving.load import LoadFigures


def add(verb: Parser) -> None:
    """Measure an endpoint under load: send requests at a fixed rate, without waiting for answers.

    INPUT: documents in any form that link reads; by default, the starter's test set. They are sent again and
    again. The command prints latencies of answers, refusals (503: too much work was waiting) and throughput.
    The API key, if any, is taken from the environment variable GEMEL_RAY_API_KEY.

      gemel-ray load http://localhost:8000 --rate 2 --seconds 60
    """
    verb.add_argument("address", metavar="ADDRESS", help="address of the endpoint, as serve prints it")
    verb.add_argument("inputs", nargs="*", metavar="INPUT", help="files or folders")
    verb.add_argument("--rate", type=float, default=1.0, help="requests a second (default: 1)")
    verb.add_argument("--seconds", type=float, default=30.0, help="seconds to send for (default: 30)")
    verb.add_argument(
        "--documents", type=int, default=200, metavar="N", help="documents to take from INPUT (default: 200)"
    )
    verb.add_argument("--seed", type=int, default=0, help="seed of the random arrivals (default: 0)")
    verb.add_argument("--json", action="store_true", help="print the figures as JSON")
    verb.set_defaults(run=_run, settings=False)


def _run(options: argparse.Namespace) -> int:
    import asyncio

    from gemel_ray.readers import files
    from gemel_ray.serving import load
    from gemel_ray.serving.door import keys
    from gemel_ray.starter.demo import DATA

    if options.rate <= 0 or options.seconds <= 0 or options.documents < 1:
        raise Mistake("--rate, --seconds and --documents must be more than nothing")
    sent = load.requests(files(options.inputs or [str(DATA / "test.parquet")]), options.documents)
    times = load.arrivals(options.rate, options.seconds, options.seed)
    key = next(iter(keys(os.environ)), "")
    figures = asyncio.run(load.loaded(options.address, sent, times, key)).figures()
    print(json.dumps(figures, indent=2) if options.json else _summary(figures))
    return 0


def _summary(figures: LoadFigures) -> str:
    statuses = ", ".join(
        f"{n:,} x {s}" if s != "0" else f"{n:,} none" for s, n in figures["statuses"].items()
    )
    latency = "  ".join(f"{name} {value} s" for name, value in figures["latency"].items())
    return (
        f"{figures['requests']:,} requests; answers: {statuses}\n{latency}\n"
        f"{figures['answered_per_second']} answered a second, {figures['mentions_per_second']} mentions"
    )
