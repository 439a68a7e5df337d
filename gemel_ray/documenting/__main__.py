"""python -m gemel_ray.documenting, in the repository: write the pages anew."""

from __future__ import annotations

from pathlib import Path

from gemel_ray.documenting import pages

for file, text in pages(Path()).items():
    file.write_text(text)
    print(file)
