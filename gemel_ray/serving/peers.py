"""The API processes of one endpoint: each has its share of what is let in, and tells the counts of all.

Serve sends a request to any of them. Within each callers take turns, and the rate of work is measured by
each for itself, so that only `online.queue` and the workers' places have to be shared out, by how many
processes there are. Counts stand in /metrics once for each process, under its name: one that ends takes its
own with it, and no sum of rates goes back. Knows nothing of Ray: `ask` calls a method of all processes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.registry import Collector

from gemel_ray.serving.desk import Desk
from gemel_ray.serving.meters import told

_EVERY = 2.0  # seconds between two counts of the processes

Ask = Callable[[str], Awaitable[list[object]]]  # a method's name; what those that answer say
Counts = tuple[str, list[Metric]]  # of the process of that name


@dataclass
class Peers:
    """This process is `name`, whose desk is `desk`."""

    name: str
    desk: Desk
    ask: Ask
    _counting: asyncio.Task[None] | None = field(default=None)

    async def start(self) -> None:
        """Before the first request comes: with a share, and, where links can be had, ready. A process that
        joins others takes requests at once; the first one's models are still being loaded."""
        await self.desk.readiness.first(self.desk.wait)
        self._counting = asyncio.create_task(self._count())

    async def _count(self) -> None:
        while True:
            try:
                self.desk.share(sum(answer is True for answer in await self.ask("alive")))
            except Exception as fault:  # else nobody would count any more
                told(logging.WARNING, "the other API processes do not answer", reason=repr(fault))
            await asyncio.sleep(_EVERY)

    def counts(self) -> Counts:
        """Of this process."""
        return self.name, list(self.desk.meters.registry.collect())

    async def text(self) -> bytes:
        """Of all processes that answer, as Prometheus reads it."""
        try:
            others = [counts for counts in await self.ask("counts") if isinstance(counts, tuple)]
        except Exception as fault:
            told(logging.WARNING, "the other API processes do not report their counts", reason=repr(fault))
            others = []
        return merged({name: families for name, families in [*others, self.counts()]}.items())


class _All(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self.families = families

    def collect(self) -> Iterable[Metric]:
        return self.families


def merged(counts: Iterable[Counts]) -> bytes:
    """Every sample, with the process it is of."""
    families: dict[str, Metric] = {}
    for name, said in counts:
        for family in said:
            known = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            known.samples += [s._replace(labels=s.labels | {"process": name}) for s in family.samples]
    registry = CollectorRegistry()
    registry.register(_All(families.values()))
    return generate_latest(registry)
