"""All entity names as one prefix tree of language-model tokens, in flat memory-mapped arrays.

Every name is its token ids followed by one end-of-name token, so a name that begins another
name is still a separate leaf. Nodes are numbered level by level, which makes the children of
a node one contiguous range of node numbers: three arrays describe the whole tree, and any number
of processes on a machine share one copy of them. Knows nothing of language models or engines.

    tree = PrefixTree.open(folder)
    node = tree.step(tree.root, token)          # NOWHERE when no name goes on like this
    tree.entities([leaf])                       # rows of the knowledge base with each name
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from gemel_ray.errors import Mistake

NOWHERE: Final = -1
_ARRAYS: Final = ("token", "first_child", "leaf", "first_bearer", "bearer")
_CHUNK: Final = 20_000

Tokens = npt.NDArray[np.int32]
Tokenize = Callable[[list[str]], list[list[int]]]


class PrefixTree:
    """A read-only view of the arrays.

    token        int32 [nodes]        token that leads to the node (root: -1)
    first_child  int32 [nodes + 1]    children of n are nodes first_child[n] .. first_child[n + 1] - 1,
                                      in rising order of their token
    leaf         int32 [names]        rising node numbers of the leaves
    first_bearer int32 [names + 1]    entities of leaf[i] are bearer[first_bearer[i] : first_bearer[i + 1]]
    bearer       int32 [entities]     rows of the knowledge base, rising within a leaf
    """

    root: Final = 0

    def __init__(self, arrays: dict[str, Tokens], end_token: int, depth: int) -> None:
        self.token, self.first_child, self.leaf, self.first_bearer, self.bearer = (
            arrays[name] for name in _ARRAYS
        )
        self.end_token = end_token
        self.depth = depth  # tokens of the longest name, its end-of-name token included

    @classmethod
    def open(cls, folder: Path) -> PrefixTree:
        """Map the tree that `build` wrote; nothing is read until nodes are visited."""
        facts = json.loads((folder / "tree.json").read_text())
        # Copy on write: shared like a read-only map, but torch takes it without a warning. Plain arrays over
        # the mapping, since each access to numpy's class for mapped files costs microseconds.
        arrays = {name: np.asarray(np.load(folder / f"{name}.npy", mmap_mode="c")) for name in _ARRAYS}
        return cls(arrays, facts["end_token"], facts["depth"])

    def __len__(self) -> int:
        """Number of distinct names."""
        return len(self.leaf)

    def children(self, node: int) -> tuple[int, Tokens]:
        """Number of the first child, and the tokens of all children (a view, rising)."""
        first = int(self.first_child[node])
        return first, self.token[first : int(self.first_child[node + 1])]

    def step(self, node: int, token: int) -> int:
        """The child of `node` under `token`, or NOWHERE."""
        first, tokens = self.children(node)
        at = int(np.searchsorted(tokens, token))
        return first + at if at < len(tokens) and tokens[at] == token else NOWHERE

    def walk(self, tokens: Iterable[int], node: int = 0) -> int:
        """The node that `tokens` lead to from `node`, or NOWHERE."""
        for token in tokens:
            node = self.step(node, token)
            if node == NOWHERE:
                break
        return node

    def is_leaf(self, node: int) -> bool:
        """Whether a name ends at `node`."""
        return bool(self.first_child[node] == self.first_child[node + 1])

    def entities(self, leaves: Sequence[int]) -> list[list[int]]:
        """Rows of all entities with each of the names that end at `leaves`."""
        at = np.searchsorted(self.leaf, np.asarray(leaves, np.int32))  # other types copy `leaf`
        bounds = zip(self.first_bearer[at].tolist(), self.first_bearer[at + 1].tolist(), strict=True)
        return [self.bearer[first:end].tolist() for first, end in bounds]

    def leaves(self) -> Tokens:
        """The leaf of the name of every row of the knowledge base, int32 [rows]."""
        leaf = np.empty(len(self.bearer), np.int32)
        leaf[self.bearer] = np.repeat(self.leaf, np.diff(self.first_bearer))
        return leaf

    def height(self, node: int) -> int:
        """Tokens from `node` to the end of the longest name below it. The descendants of a node are one range
        of nodes in every level."""
        low, end, height = node, node + 1, -1
        while low < end:
            low, end, height = int(self.first_child[low]), int(self.first_child[end]), height + 1
        return height

    def nodes(self, node: int) -> list[int]:
        """The nodes on the way from the root, which is not among them, to `node`."""
        found: list[int] = []
        while node != self.root:
            found.append(node)
            node = int(np.searchsorted(self.first_child, np.int32(node), side="right")) - 1
        return found[::-1]

    def path(self, node: int) -> tuple[int, ...]:
        """The tokens that lead to `node`."""
        return tuple(int(self.token[n]) for n in self.nodes(node))

    def spelled(self) -> tuple[Tokens, npt.NDArray[np.int64]]:
        """Tokens of the name of every row of the knowledge base, end-of-name token included, end to end,
        int32 [tokens]; and where each begins, int64 [rows + 1]."""
        leaf = self.leaves()
        parent = np.zeros(len(self.token), np.int32)
        parent[1:] = np.repeat(np.arange(len(self.token), dtype=np.int32), np.diff(self.first_child))
        start, node = np.zeros(len(leaf) + 1, np.int64), leaf
        while (inside := node != self.root).any():
            start[1:] += inside
            node = parent[node]
        np.cumsum(start, out=start)
        tokens, node, at = np.empty(start[-1], np.int32), leaf, start[1:] - 1
        while (inside := node != self.root).any():
            tokens[at[inside]] = self.token[node[inside]]
            node, at = parent[node], at - 1
        return tokens, start

    def names(self) -> Iterator[tuple[list[int], int]]:
        """Every name as (its tokens with the end-of-name token, its leaf): for tests and export."""
        stack: list[tuple[int, list[int]]] = [(self.root, [])]
        while stack:
            node, path = stack.pop()
            first, tokens = self.children(node)
            if not len(tokens):
                yield path, node
            stack.extend((first + i, [*path, int(t)]) for i, t in enumerate(tokens))


def build(names: Iterable[str], tokenize: Tokenize, end_token: int, folder: Path) -> PrefixTree:
    """Write the tree of `names` (row i of the knowledge base is name i) into `folder` and open it.

    Works level by level on whole arrays: memory is about 40 bytes per token of all names.
    Raises ValueError, naming the entity's row, for a name without tokens or one that contains the
    end-of-name token (it could not be distinguished from the shorter name).
    """
    return _written(*_tokenized(names, tokenize, end_token), end_token, folder)


def revised(
    tree: PrefixTree, kept: npt.NDArray[np.bool_], names: Iterable[str], tokenize: Tokenize, folder: Path
) -> PrefixTree:
    """Write the tree of the rows of `tree` that are `kept`, bool [rows], with the same tokens, followed by
    the new `names`, into `folder` and open it. Raises as `build` does."""
    tokens, start = tree.spelled()
    length = np.diff(start)
    new, new_start = _tokenized(names, tokenize, tree.end_token)
    lengths = np.concatenate([length[kept], np.diff(new_start)])
    whole = np.concatenate([tokens[np.repeat(kept, length)], new])
    return _written(whole, np.concatenate([[0], np.cumsum(lengths)]), tree.end_token, folder)


def _written(tokens: Tokens, start: npt.NDArray[np.int64], end_token: int, folder: Path) -> PrefixTree:
    if len(start) == 1:
        raise Mistake("the knowledge base has no entities")
    arrays, depth = _levels(tokens, start)
    folder.mkdir(parents=True, exist_ok=True)
    for name in _ARRAYS:
        np.save(folder / f"{name}.npy", arrays[name])
    (folder / "tree.json").write_text(json.dumps({"end_token": end_token, "depth": depth}))
    return PrefixTree.open(folder)


def _tokenized(
    names: Iterable[str], tokenize: Tokenize, end_token: int
) -> tuple[Tokens, npt.NDArray[np.int64]]:
    """Tokens of all names end to end, int32 [tokens]; and where each name starts, int64 [names + 1]."""
    parts = [np.empty(0, np.int32)]
    lengths = [np.zeros(1, np.int64)]
    row = 0
    unread = iter(names)
    while chunk := list(islice(unread, _CHUNK)):
        rows = tokenize(chunk)
        for name, ids in zip(chunk, rows, strict=True):
            if not ids or end_token in ids:
                why = "has no tokens" if not ids else "contains the end-of-name token"
                raise Mistake(f"entity row {row}: the name {name!r} {why}")
            ids.append(end_token)
            row += 1
        parts.append(np.fromiter((t for ids in rows for t in ids), dtype=np.int32))
        lengths.append(np.fromiter(map(len, rows), dtype=np.int64))
    return np.concatenate(parts), np.cumsum(np.concatenate(lengths))


def _levels(tokens: Tokens, start: npt.NDArray[np.int64]) -> tuple[dict[str, Tokens], int]:
    """The arrays of the tree, breadth first: one sort per level instead of one node at a time."""
    length = np.diff(start)
    row = np.arange(len(length), dtype=np.int32)  # names not yet ended ...
    node = np.zeros(len(length), dtype=np.int64)  # ... and the node each has reached
    leaf_of_row = np.empty(len(length), dtype=np.int32)
    token_of, first_child = [np.array([-1], dtype=np.int32)], []
    level_start, total, depth = 0, 1, 0
    while len(row):
        key = node << 32 | tokens[start[row] + depth]
        keys, which = np.unique(key, return_inverse=True)
        parents = keys >> 32
        first_child.append((total + np.searchsorted(parents, np.arange(level_start, total))).astype(np.int32))
        token_of.append((keys & 0xFFFFFFFF).astype(np.int32))
        node = total + which
        level_start, total, depth = total, total + len(keys), depth + 1
        if total > np.iinfo(np.int32).max:
            raise Mistake(f"the tree would have more than {np.iinfo(np.int32).max:,} nodes")
        ended = length[row] == depth
        leaf_of_row[row[ended]] = node[ended]
        row, node = row[~ended], node[~ended]
    first_child.append(np.full(total - level_start + 1, total, np.int32))
    bearer = np.argsort(leaf_of_row, kind="stable").astype(np.int32)
    leaf, first_bearer = np.unique(leaf_of_row[bearer], return_index=True)
    return {
        "token": np.concatenate(token_of),
        "first_child": np.concatenate(first_child),
        "leaf": leaf,
        "first_bearer": np.append(first_bearer, len(bearer)).astype(np.int32),
        "bearer": bearer,
    }, depth
