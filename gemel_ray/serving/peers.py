"""The API processes of one endpoint: each has its share of the queue, and reports the metrics of all.

Serve sends a request to any of them. Within each callers take turns, and each measures its rate of work,
so that only `online.queue` and the workers' places have to be divided by the number of processes. /metrics
lists metrics by process: those of a process that ends disappear, and no sum of counters goes back. Knows
nothing of Ray: `ask` calls a method of all processes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.registry import Collector

from gemel_ray.serving.desk import Desk
from gemel_ray.serving.meters import log_event

_EVERY = 2.0  # seconds between two counts of the processes

Ask = Callable[[str], Awaitable[list[object]]]  # from a method's name to the answers that came
Counts = tuple[str, list[Metric]]  # a process's name and metrics


@dataclass
class Peers:
    """This process is `name`, whose desk is `desk`."""

    name: str
    desk: Desk
    ask: Ask
    _counting: asyncio.Task[None] | None = field(default=None)

    async def start(self) -> None:
        """Get ready before the first request comes, and begin to count the processes. A process that joins
        others is ready at once; the first one waits for the models at most `online.wait`."""
        await self.desk.readiness.first(self.desk.wait)
        self._counting = asyncio.create_task(self._count())

    async def _count(self) -> None:
        while True:
            try:
                self.desk.share(sum(answer is True for answer in await self.ask("alive")))
            except Exception as fault:  # else the counting would end
                log_event(logging.WARNING, "the other API processes do not answer", reason=repr(fault))
            await asyncio.sleep(_EVERY)

    def counts(self) -> Counts:
        """This process's metrics."""
        return self.name, list(self.desk.meters.registry.collect())

    async def text(self) -> bytes:
        """The metrics of all processes that answer, in Prometheus's text format."""
        try:
            others = [counts for counts in await self.ask("counts") if isinstance(counts, tuple)]
        except Exception as fault:
            log_event(
                logging.WARNING, "the other API processes do not report their counts", reason=repr(fault)
            )
            others = []
        return merged({name: families for name, families in [*others, self.counts()]}.items())


class _All(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self.families = families

    def collect(self) -> Iterable[Metric]:
        return self.families


def merged(counts: Iterable[Counts]) -> bytes:
    """Every sample, with its process as a label."""
    families: dict[str, Metric] = {}
    for name, metrics in counts:
        for family in metrics:
            known = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            known.samples += [s._replace(labels=s.labels | {"process": name}) for s in family.samples]
    registry = CollectorRegistry()
    registry.register(_All(families.values()))
    return generate_latest(registry)
