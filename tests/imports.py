"""Who imports whom in gemel_ray, read from the sources: nothing is imported to find out."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "gemel_ray"
Arrow = tuple[str, str]  # the module that imports, and the one that is imported


def modules(package: Path = PACKAGE) -> dict[str, Path]:
    """By dotted name; a package is its __init__.py."""
    return {_name(file, package): file for file in sorted(package.rglob("*.py"))}


def _name(file: Path, package: Path) -> str:
    return ".".join(file.relative_to(package.parent).with_suffix("").parts).removesuffix(".__init__")


def arrows(package: Path = PACKAGE, *, typing: bool = True) -> set[Arrow]:
    """All imports among the modules, also those inside functions; without `typing`, not those that only a
    type checker makes."""
    known = modules(package)
    return {
        (importer, imported)
        for importer, file in known.items()
        for imported in _imported(ast.parse(file.read_text()), known, typing)
        if imported != importer
    }


def _imported(tree: ast.Module, known: Iterable[str], typing: bool) -> Iterator[str]:
    skipped = set() if typing else {id(inner) for node in _for_types(tree) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module in known:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in known else str(node.module)


def _for_types(tree: ast.Module) -> Iterator[ast.If]:
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            yield node


def circles(found: Iterable[Arrow]) -> list[list[str]]:
    """Modules that import each other, over however many others: each group once."""
    left, groups = set(found), []
    while group := _circle(left):
        groups.append(group)
        left = {(a, b) for a, b in left if a not in group and b not in group}
    return groups


def _circle(found: set[Arrow]) -> list[str]:
    """All modules that lead to one on a circle, and to which it leads; nothing where there is no circle."""
    graph: dict[str, set[str]] = {}
    for importer, imported in found:
        graph.setdefault(importer, set()).add(imported)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as fault:
        back: dict[str, set[str]] = {}
        for importer, imported in found:
            back.setdefault(imported, set()).add(importer)
        start = fault.args[1][0]
        return sorted(_reached(graph, start) & _reached(back, start))
    return []


def _reached(graph: dict[str, set[str]], start: str) -> set[str]:
    reached, left = {start}, [start]
    while left:
        new = graph.get(left.pop(), set()) - reached
        reached |= new
        left += new
    return reached
