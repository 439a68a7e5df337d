"""Pages of docs/ that are made of the code, so that they cannot differ from it: `make docs` writes them."""

from __future__ import annotations

from pathlib import Path

from gemel_ray.documenting.commands import commands
from gemel_ray.documenting.configuration import configuration


def pages(repository: Path) -> dict[Path, str]:
    """Each page's file and text. `repository` has ray_config.yaml and docs/."""
    settings = (repository / "ray_config.yaml").read_text()
    docs = repository / "docs"
    return {docs / "configuration.md": configuration(settings), docs / "commands.md": commands()}
