"""What gemel_ray uses of other libraries' insides, read from the sources: docs/insides.md lists the same."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from tests.imports import PACKAGE

# Modules that their libraries do not document for others: names in them move without a notice.
INNER = (
    "vllm.config", "vllm.distributed", "vllm.engine", "vllm.forward_context", "vllm.model_executor",
    "vllm.v1",
    "transformers.integrations", "transformers.masking_utils",
    "open_clip.modified_resnet", "open_clip.timm_model", "open_clip.transformer",
)  # fmt: skip
_PUBLIC = {"_exit", "_replace", "_asdict", "_fields"}  # documented, whatever they begin with
_SWITCH = re.compile(r"(VLLM|RAY)_[A-Z0-9_]+")  # of the environment


def insides(package: Path = PACKAGE) -> dict[str, set[str]]:
    """By name, the files that use it."""
    found: dict[str, set[str]] = {}
    trees = {file: ast.parse(file.read_text()) for file in sorted(package.rglob("*.py"))}
    own = {name for tree in trees.values() for name in _own(tree)}
    for file, tree in trees.items():
        if "deploying" in file.parts:  # it looks at manifests of others, and sets nothing
            continue
        for name in (*_imports(tree), *_attributes(tree, own), *_switches(tree)):
            found.setdefault(name, set()).add(str(file.relative_to(package.parent)))
    return found


def _imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and not node.module.startswith("gemel_ray"):
            for alias in node.names:
                inner = f"{node.module}.".startswith(tuple(f"{name}." for name in INNER))
                name = f"{node.module}.{alias.name}"
                if inner or any(part.startswith("_") for part in name.split(".") if part != "__future__"):
                    yield name


def _attributes(tree: ast.Module, own: set[str]) -> Iterator[str]:
    for node in ast.walk(tree):
        private = isinstance(node, ast.Attribute) and re.match(r"_[a-zA-Z]|\w+_internal$", node.attr)
        if private and node.attr not in own | _PUBLIC:
            yield node.attr


def _switches(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and _SWITCH.fullmatch(node.value):
            yield node.value


def _own(tree: ast.Module) -> Iterator[str]:
    """Private names that the package itself gives."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr
        elif isinstance(node, ast.AnnAssign | ast.Assign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (target.id for target in targets if isinstance(target, ast.Name))


def is_there(name: str) -> bool:
    """Whether the installed library still has an imported name; it is read, not imported."""
    library, *parts = name.split(".")
    spec = find_spec(library)
    if spec is None or spec.origin is None:
        return False
    place = Path(spec.origin).parent
    for part in parts[:-1]:
        place = place / part
    file = place.with_suffix(".py") if place.with_suffix(".py").exists() else place / "__init__.py"
    if not file.exists():
        return False
    return re.search(rf"\b{re.escape(parts[-1])}\b", file.read_text()) is not None
