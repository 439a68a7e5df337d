"""What a model is, as a short hash: equal for equal files wherever they lie, without loading them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

_WHOLE = 32 << 20
_ENDS = 1 << 20
_STAMPED = ("config.json", "generation_config.json")


def revision(model: str) -> str:
    """Hash of a folder's (or file's) contents; of files over 32 MiB, their size and both ends. A name that
    is no local path stands for itself: the hub keeps what it means."""
    path = Path(model)
    if not path.exists():
        return model
    files = [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.is_file())
    digest = hashlib.blake2b(digest_size=8)
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.relative_to(path)}\0".encode())
        if file.name in _STAMPED:
            digest.update(_unstamped(file))
            continue
        with file.open("rb") as content:
            if size <= _WHOLE:
                digest.update(content.read())
            else:
                digest.update(f"{size}".encode() + content.read(_ENDS))
                content.seek(-_ENDS, 2)
                digest.update(content.read())
    return digest.hexdigest()


def _unstamped(file: Path) -> bytes:
    """A configuration without the version of the library that wrote it."""
    settings = json.loads(file.read_bytes())
    settings.pop("transformers_version", None)
    return json.dumps(settings, sort_keys=True).encode()
