"""python -m gemel_ray.documenting, run in the repository: writes the generated pages."""

from __future__ import annotations

from pathlib import Path

from gemel_ray.documenting import pages

for file, text in pages(Path()).items():
    file.write_text(text)
    print(file)
