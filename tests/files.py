"""Where the tests' data lies, and JSON Lines as they write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HOUSE = Path(__file__).parents[1]
DATA = HOUSE / "gemel_ray" / "starter" / "data"
TEST = DATA / "test.parquet"
SHARED = HOUSE.parent / "shared" / "data"  # real captions, where the machine has them


def lines(file: Path, rows: list[dict[str, Any]]) -> str:
    file.write_text("\n".join(map(json.dumps, rows)))
    return str(file)
