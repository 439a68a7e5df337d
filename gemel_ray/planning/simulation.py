"""Simulates the job on nodes, block by block, to check the closed form.

A node takes blocks from a common queue, at most `overlap` at a time, through its stations in turn. A station
serves one block after the other, at its rate, with random times. A node fails at random times; what it had
under way goes back to the queue, and after a while another replaces it.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from dataclasses import dataclass, field
from itertools import count
from math import exp

from gemel_ray.planning.cost import Troubles
from gemel_ray.planning.rates import Node

_BLOCKS = 20_000  # simulated at most: larger jobs get larger blocks


@dataclass
class _Running:
    """One node. `number` changes when it fails, so that events from before are ignored."""

    number: int = 0
    lines: list[deque[int]] = field(default_factory=list)  # before each station: blocks, as their sizes
    busy: list[int] = field(default_factory=list)  # the block at each station; 0: none

    def under_way(self) -> list[int]:
        return [size for line in self.lines for size in line] + [size for size in self.busy if size]


def simulated(pairs: int, node: Node, nodes: int, troubles: Troubles, seed: int = 0) -> float:
    """Hours until the last pair is done."""
    return _Simulation(pairs, node, nodes, troubles, seed).run() / 3600


class _Simulation:
    def __init__(self, pairs: int, node: Node, nodes: int, troubles: Troubles, seed: int) -> None:
        self.node, self.troubles, self.dice = node, troubles, random.Random(seed)
        self.rates = list(node.stations.values())
        size = max(node.block, -(-pairs // _BLOCKS))
        self.queue = deque([size] * (pairs // size) + ([pairs % size] if pairs % size else []))
        self.left = pairs
        self.running = [_Running() for _ in range(nodes)]
        self.events: list[tuple[float, int, str, int, int, int]] = []
        self.order = count()

    def run(self) -> float:
        for i in range(len(self.running)):
            self._at(self.node.started, "start", i)
        now = 0.0
        while self.left:
            now, _, what, i, life, station = heapq.heappop(self.events)
            running = self.running[i]
            if life != running.number:
                continue
            if what == "start":
                running.lines = [deque() for _ in self.rates]
                running.busy = [0] * len(self.rates)
                if self.troubles.between_failures:
                    lives = self.dice.expovariate(1 / (self.troubles.between_failures * 3600))
                    self._at(now + lives, "fail", i)
            elif what == "fail":
                self.queue.extendleft(running.under_way())
                running.number += 1
                running.lines, running.busy = [], []
                self._at(now + self.troubles.away, "start", i)
                for other in range(len(self.running)):  # those without work take what came back
                    self._take(other, now)
                continue
            else:
                size, running.busy[station] = running.busy[station], 0
                if station + 1 < len(self.rates):
                    running.lines[station + 1].append(size)
                else:
                    self.left -= size
            self._take(i, now)
        return now

    def _take(self, i: int, now: float) -> None:
        """Give the node new blocks, as many as may be under way, and every idle station its next one."""
        running = self.running[i]
        if not running.lines:
            return
        while self.queue and len(running.under_way()) < self.node.overlap:
            running.lines[0].append(self.queue.popleft())
        for station, rate in enumerate(self.rates):
            if not running.busy[station] and running.lines[station]:
                size = running.busy[station] = running.lines[station].popleft()
                spread = self.troubles.spread
                took = size / rate * exp(self.dice.gauss(-spread * spread / 2, spread))  # of mean 1
                self._at(now + took, "done", i, station)

    def _at(self, when: float, what: str, i: int, station: int = 0) -> None:
        event = (when, next(self.order), what, i, self.running[i].number, station)
        heapq.heappush(self.events, event)
