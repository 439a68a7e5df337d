"""An entity as MIMIC's kb_entity.json has it.

    {"id": a row number, "qid": "Q42", "entity_name": "a name", "desc", "attr": "Sex: ...", "image_list"}

Source: pengfei-luo/MIMIC, codes/utils/dataset.py: entity_name percent-decoded, attr as its text, image_list.
That `answer` means `qid` is seen from its qid2id. Read from code, not from data.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote


def fits(raw: Any) -> bool:
    """`entity_name` is its word for the name."""
    return isinstance(raw, dict) and "entity_name" in raw


def renamed(raw: dict[str, Any]) -> dict[str, Any]:
    """The same entity in our words; of its pictures the first."""
    name, pictures = raw["entity_name"], raw.get("image_list")
    return {
        "id": raw.get("qid"),
        "name": unquote(name).replace("_", " ") if isinstance(name, str) else name,
        "description": raw.get("desc") or raw.get("attr"),
        "image": pictures[0] if isinstance(pictures, list) and pictures else None,
    }
