"""What a model is, as a short text: equal for equal files wherever they lie, without loading them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

_COUNTED = {".safetensors", ".bin", ".pt", ".pth", ".json", ".txt", ".model"}  # weights and configuration
_STAMPED = ("config.json", "generation_config.json")
_WHOLE = 32 << 20
_ENDS = 1 << 20


def revision(model: str) -> str:
    """The hash of a folder's weights and configuration, or of a checkpoint (also behind ARCHITECTURE/); of a
    hub's repository in the local cache, its commit; another name stands for itself. Of files over 32 MiB,
    size and both ends are hashed."""
    path = Path(model)
    if path.exists():
        return _hash(path)
    architecture, _, checkpoint = model.partition("/")
    if Path(checkpoint).is_file():
        return f"{architecture}/{_hash(Path(checkpoint))}"
    commit = _commit(model.removeprefix("hf-hub:"))
    return f"{model}@{commit}" if commit else model


def _hash(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for file in [path] if path.is_file() else sorted(path.rglob("*")):
        inside = file.relative_to(path)
        hidden = any(part.startswith(".") for part in inside.parts)
        if file == path or (file.is_file() and file.suffix in _COUNTED and not hidden):
            digest.update(f"{inside.as_posix()}\0".encode() + _content(file))
    return digest.hexdigest()


def _content(file: Path) -> bytes:
    """What counts of a file."""
    if file.name in _STAMPED:  # without the version of the library that wrote it
        settings = json.loads(file.read_bytes())
        settings.pop("transformers_version", None)
        return json.dumps(settings, sort_keys=True).encode()
    size = file.stat().st_size
    with file.open("rb") as content:
        if size <= _WHOLE:
            return content.read()
        first = content.read(_ENDS)
        content.seek(-_ENDS, 2)
        return f"{size}".encode() + first + content.read()


def _commit(repository: str) -> str | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    for name in ("config.json", "open_clip_config.json"):
        try:
            found = try_to_load_from_cache(repository, name)
        except HFValidationError:  # no name of a repository
            return None
        if isinstance(found, str):
            return Path(found).parent.name[:12]
    return None
