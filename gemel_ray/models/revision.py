"""A model's revision as a short text: equal for equal files in any place, without loading them."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from pathlib import Path

from gemel_ray import storage
from gemel_ray.starter.models import home

_COUNTED = {".safetensors", ".bin", ".pt", ".pth", ".json", ".txt", ".model"}  # weights and configuration
_STAMPED = ("config.json", "generation_config.json")
_WHOLE = 32 << 20
_ENDS = 1 << 20


def revision(model: str, whole: bool = True) -> str:
    """The hash of a folder's weights and configuration, or of a checkpoint (also after ARCHITECTURE/); for a
    hub's repository in the local cache, its commit; else the name. With `whole` False as in workspaces of
    earlier versions: of files over 32 MiB, only size and both ends are hashed."""
    path = Path(model)
    if path.exists():
        return _hash(path, whole)
    architecture, _, checkpoint = model.partition("/")
    if Path(checkpoint).is_file():
        return f"{architecture}/{_hash(Path(checkpoint), whole)}"
    commit = _commit(model.removeprefix("hf-hub:"))
    return f"{model}@{commit}" if commit else model


def _hash(path: Path, whole: bool) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for file in [path] if path.is_file() else sorted(path.rglob("*")):
        inside = file.relative_to(path)
        hidden = any(part.startswith(".") for part in inside.parts)
        if file == path or (file.is_file() and file.suffix in _COUNTED and not hidden):
            digest.update(f"{inside.as_posix()}\0".encode() + _content(file, whole))
    return digest.hexdigest()


def _content(file: Path, whole: bool) -> bytes:
    """The part of a file that counts."""
    if file.name in _STAMPED:  # without the version of the library that wrote it
        settings = json.loads(file.read_bytes())
        settings.pop("transformers_version", None)
        return json.dumps(settings, sort_keys=True).encode()
    size = file.stat().st_size
    if size <= _WHOLE:
        return file.read_bytes()
    if whole:
        return f"{size} {_digest(file)}".encode()
    with file.open("rb") as content:
        first = content.read(_ENDS)
        content.seek(-_ENDS, 2)
        return f"{size}".encode() + first + content.read()


def _digest(file: Path) -> str:
    """The digest of a large file. Every process needs it, so it is stored in home(), under all that changes
    when the file does: its ctime is set by the kernel and cannot be forged."""
    stat = file.stat()
    identity = f"{file.resolve()} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_ino}"
    kept = home() / "revisions" / hashlib.blake2b(identity.encode(), digest_size=16).hexdigest()
    with suppress(OSError):
        return kept.read_text()
    with file.open("rb") as content:
        digest = hashlib.file_digest(content, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    with suppress(OSError):  # if it cannot be stored, it is hashed each time
        kept.parent.mkdir(parents=True, exist_ok=True)
        storage.write(kept, digest)
    return digest


def _commit(repository: str) -> str | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    for name in ("config.json", "open_clip_config.json"):
        try:
            found = try_to_load_from_cache(repository, name)
        except HFValidationError:  # not the name of a repository
            return None
        if isinstance(found, str):
            return Path(found).parent.name[:12]
    return None
