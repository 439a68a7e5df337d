"""Pages of docs/ that are generated from the code, so that they always agree: `make docs` writes them."""

from __future__ import annotations

from pathlib import Path

from gemel_ray.documenting.commands import commands
from gemel_ray.documenting.configuration import configuration, settings_file


def pages(repository: Path) -> dict[Path, str]:
    """The generated files and their texts. `repository` has docs/."""
    docs = repository / "docs"
    return {
        repository / "ray_config.yaml": settings_file(),
        docs / "configuration.md": configuration(),
        docs / "commands.md": commands(),
    }
