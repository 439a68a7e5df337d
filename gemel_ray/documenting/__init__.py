"""Pages of docs/ that are made of the code, so that they cannot differ from it: `make docs` writes them."""

from __future__ import annotations

from pathlib import Path

from gemel_ray.documenting.commands import commands
from gemel_ray.documenting.configuration import configuration, settings_file


def pages(repository: Path) -> dict[Path, str]:
    """Each file and its text. `repository` has docs/."""
    docs = repository / "docs"
    return {
        repository / "ray_config.yaml": settings_file(),
        docs / "configuration.md": configuration(),
        docs / "commands.md": commands(),
    }
