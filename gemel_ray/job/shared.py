"""Files that must be the same on every node: workspace, output, the input's files and their pictures, models
that are folders. A job checks them at its start. Knows nothing of Ray."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

from gemel_ray.config import Config
from gemel_ray.job.inputs import head
from gemel_ray.job.results import MARK
from gemel_ray.knowledge import versions
from gemel_ray.knowledge.remote import Shared, not_visible
from gemel_ray.readers import documents
from gemel_ray.storage import Folder, LocalFolder
from gemel_ray.stores import scheme

_AGAIN: Final = (0.0, 1.0, 3.0)  # seconds: a network's file system may show a new file a little later
_INPUTS, _PICTURES = 3, 3  # files of the input that are opened, and pictures taken from each


@dataclass(frozen=True)
class SharedPath:
    """A file or folder as this machine sees it: what it is to the job, and a digest of its content."""

    what: str
    path: str
    content: str

    @classmethod
    def here(cls, what: str, path: Path) -> SharedPath:
        return cls(what, str(path.absolute()), _content(path))

    def fault(self) -> str:
        """What differs on this machine; empty where nothing does."""
        for pause in _AGAIN:
            time.sleep(pause)
            found = _content(Path(self.path))
            if found == self.content:
                return ""
        return not_visible(self.path, self.what, "has another" if found else "does not see")


def faults(seen: Sequence[SharedPath]) -> list[str]:
    """What differs here from what another machine saw."""
    return [fault for each in seen if (fault := each.fault())]


def refusal(by_node: Mapping[str, Sequence[str]]) -> str:
    """One sentence on what `faults` found on the nodes; empty where it found nothing."""
    wrong = {node: found for node, found in by_node.items() if found}
    if not wrong:
        return ""
    node, found = next(iter(wrong.items()))
    others = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
    return f"node {node}{others} {found[0]}"


def of_workspace(workspace: Shared, knowledge: str) -> tuple[SharedPath, ...]:
    """The workspace's file to check; none where it lies in a store, from which each node copies it."""
    inside = versions.folder(workspace.folder, knowledge)
    return () if workspace.address else (SharedPath.here("the workspace", inside / "workspace.json"),)


def of_worker(workspace: Shared, knowledge: str, output: Folder) -> tuple[SharedPath, ...]:
    """The files that every worker of a job reads and writes."""
    seen = of_workspace(workspace, knowledge)
    if isinstance(output, LocalFolder):
        seen += (SharedPath.here("the output", output.path / MARK),)
    return seen


def of_job(config: Config, inputs: Sequence[str]) -> Iterator[SharedPath]:
    """The input's files, pictures of the first ones, and files and folders that the configuration names."""
    files = [Path(address.removeprefix("file://")) for address in inputs if not scheme(address)]
    named = {f"models.{n}": str(v) for n, v in config.plain()["models"].items() if os.sep in str(v)}
    named["vectors.ca"] = config.vectors.ca
    yield from (
        SharedPath.here(what, Path(path)) for what, path in named.items() if path and Path(path).exists()
    )
    yield from (SharedPath.here("the input", file) for file in files if file.exists())
    for file in files[:_INPUTS]:
        yield from (SharedPath.here("a picture of the input", picture) for picture in _pictures(file, config))


def check_here(seen: Sequence[SharedPath]) -> None:
    """Check in a worker, which may be on a node that joined later. Raises OSError for what differs."""
    if sentence := refusal({socket.gethostname(): faults(seen)}):
        raise OSError(sentence)


def _pictures(file: Path, config: Config) -> list[Path]:
    """The first pictures that are files near the input."""
    try:
        table = next(iter(documents(str(file), fetch_official_images=config.input.fetch_official_images)))
    except Exception:  # what cannot be read becomes error rows
        return []
    named = (a for a in table["image_address"].to_pylist() if a and not scheme(a))
    return list(islice((path for a in named if (path := Path(a)).is_file()), _PICTURES))


def _content(path: Path) -> str:
    """A digest of size and first bytes; empty where it does not exist or cannot be read."""
    try:
        if path.is_dir():
            return "folder"
        with path.open("rb") as file:
            return f"{path.stat().st_size}-{head(file)}"
    except OSError:
        return ""
