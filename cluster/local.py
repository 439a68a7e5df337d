"""A Ray cluster of many nodes on one machine: real Ray nodes, which can be killed and added.

    python -m cluster.local --nodes 3 --cpus 2 --gpus 1

prints its address, for offline.address, and stays until Ctrl-C. Joining takes the token in ~/.ray. GPUs are
made up: Ray places as if they existed, and CUDA finds none. So a configuration's placement can be tried, not
its computation.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gemel_ray.environment import LOOPBACK, ensure_private_token

_LONGEST = 120.0  # seconds that nodes take to join
_STORE = 200 * 2**20  # bytes of a node's object store: many nodes share the machine's memory


@dataclass
class LocalCluster:
    """A head that takes no work, and nodes that can be added, killed, and replaced while jobs run."""

    cluster: Any
    nodes: list[Any] = field(default_factory=list)
    isolated: list[subprocess.Popen[bytes]] = field(default_factory=list)  # nodes with a separate disk

    @property
    def address(self) -> str:
        """The address for ray.init and offline.address."""
        return str(self.cluster.address)

    def add(self, cpus: float = 1, gpus: float = 0) -> str:
        """Start a node, with made-up GPUs; its id."""
        node = self.cluster.add_node(num_cpus=cpus, num_gpus=gpus, object_store_memory=_STORE)
        self.nodes.append(node)
        return str(node.node_id)

    def add_isolated(self, folder: Path, cpus: float = 1) -> None:
        """Start a node that has an empty disk where others have `folder`, like a machine that does not share
        it. Needs the right to mount. Raises TimeoutError where it does not join."""
        options = [
            f"--num-cpus={cpus:g}",
            f"--object-store-memory={_STORE}",
            "--dashboard-agent-listen-port=0",
        ]
        start = [sys.executable, "-m", "ray.scripts.scripts", "start", f"--address={self.address}", *options]
        ray = shlex.join([*start, "--min-worker-port=0", "--max-worker-port=0", "--block"])
        command = f"mount -t tmpfs tmpfs {shlex.quote(str(folder))} && exec {ray}"
        before, until = self._alive(), time.monotonic() + _LONGEST
        # A Ray that this process started for itself has set this; with it no node would join.
        environment = {n: v for n, v in os.environ.items() if n != LOOPBACK}
        opened = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", command],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.isolated.append(opened)
        while self._alive() == before:
            if time.monotonic() > until:
                raise TimeoutError(f"the node has not joined in {_LONGEST:.0f} s")
            time.sleep(0.2)

    def _alive(self) -> int:
        return sum(node["Alive"] for node in self.cluster.global_state.node_table())

    def kill(self, number: int) -> None:
        """Send SIGKILL to a node's processes, as if its machine were gone."""
        self.cluster.remove_node(self.nodes.pop(number), allow_graceful=False)


@contextmanager
def local_cluster(nodes: int, cpus: float = 1, gpus: float = 0) -> Iterator[LocalCluster]:
    """A cluster of a head and `nodes` nodes, ended with the block."""
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    ensure_private_token()
    from ray._private.authentication.authentication_token_setup import enable_token_auth_by_default
    from ray.cluster_utils import Cluster

    enable_token_auth_by_default()  # as Ray does for a cluster of one node

    head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": _STORE}
    made = LocalCluster(Cluster(initialize_head=True, head_node_args=head))
    try:
        for _ in range(nodes):
            made.add(cpus, gpus)
        yield made
    finally:
        for node in made.isolated:
            node.terminate()
        for node in made.isolated:
            node.wait()
        made.cluster.shutdown()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m cluster.local", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--nodes", type=int, default=2, help="beside the head (2)")
    parser.add_argument("--cpus", type=float, default=1, help="of a node (1)")
    parser.add_argument("--gpus", type=float, default=0, help="of a node, made up (0)")
    options = parser.parse_args(arguments)
    with local_cluster(options.nodes, options.cpus, options.gpus) as cluster:
        print(f"RAY_AUTH_MODE=token gemel-ray link ... --set offline.address={cluster.address}", flush=True)
        signal.sigwait({signal.SIGINT, signal.SIGTERM})


if __name__ == "__main__":
    main()
