"""The files of a GEMEL data folder and its checkpoint, each checked.

    train.json, dev.json, test.json          JSON lines; see readers
    clip_vit_large_patch14_1024.hdf5         img_url or img_name -> feature (any one *.hdf5)
    prefix_tree_opt.pkl                      nested dict of token ids: BOS -> name -> EOS -> {}
    SimCSE_train_mention_embeddings.pkl      row i: training mention i, mentions that are NIL left out
    LM_DATASET_linear_4token_16examples.pkl  the one Linear's state_dict
(Shapes as the official code reads and writes them: utils.py, trie.py, model.py.) Every error is a ValueError
that names the file. Knows nothing of workspaces.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gemel_ray.errors import Mistake
from gemel_ray.gemel.pickles import read_pickle, read_state
from gemel_ray.records import Row

_LONGEST = 1024  # tokens of a name: more means a dictionary that contains itself
_WIDEST = 1 << 16  # numbers of a feature
_NUMBERED = re.compile(r"linear_(\d+)token_(\d+)examples")


@dataclass(frozen=True)
class Checkpoint:
    """The linear mapper: weight float32 [prefix * width, feature], bias float32 [prefix * width]."""

    weight: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]
    prefix: int
    demonstrations: int


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint. Prefix length and number of demonstrations are only in the file's name."""
    match = _NUMBERED.search(path.name)
    if match is None:
        raise Mistake(
            f"{path.name}: a checkpoint's name says how it was trained: ..._linear_4token_16examples....pkl"
        )
    state = read_state(path)
    if state.keys() != {"weight", "bias"} or state["weight"].ndim != 2:
        raise Mistake(f"{path} is not a linear mapper: it holds {', '.join(map(str, state)) or 'nothing'}")
    weight, bias = (state[name].float().numpy() for name in ("weight", "bias"))
    prefix, demonstrations = int(match[1]), int(match[2])
    if bias.shape != weight.shape[:1] or not prefix or len(weight) % prefix:
        raise Mistake(
            f"{path}: a weight of {weight.shape} and a bias of {bias.shape} make no {prefix} visual vectors"
        )
    if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
        raise Mistake(f"{path} holds NaN or infinity")
    return Checkpoint(weight, bias, prefix, demonstrations)


def only(folder: Path, pattern: str, what: str, hint: str = "") -> Path:
    """The one file of `folder` that matches; of several, the one whose name contains `hint`."""
    found = sorted(folder.glob(pattern))
    if len(found) > 1 and hint:
        found = [f for f in found if hint in f.name] or found
    if len(found) != 1:
        names = ", ".join(f.name for f in found) or "none"
        raise Mistake(f"{folder} must hold one {pattern} ({what}); there are: {names}")
    return found[0]


def read_names(path: Path) -> tuple[list[list[int]], int, int]:
    """Token ids of every name in the tree, and the tokens that begin and end all of them."""
    root = read_pickle(path)
    if not isinstance(root, dict) or len(root) != 1:
        raise Mistake(f"{path} is not a prefix tree: its root has not one key (BOS)")
    ((begin, tree),) = root.items()
    names = list(_paths(tree, path))
    ends = {name[-1] for name in names if name}
    if not _token(begin) or len(ends) != 1 or not all(names):
        raise Mistake(f"{path} is not a prefix tree of names: they end in {len(ends)} different tokens")
    return [name[:-1] for name in names], int(begin), ends.pop()


def _paths(tree: Any, path: Path) -> Iterator[list[int]]:
    """Every path from the root to an empty dictionary. A dictionary that occurs twice is refused: a small
    pickle could spell an astronomical number of names."""
    stack: list[tuple[Any, list[int]]] = [(tree, [])]
    seen: set[int] = set()
    while stack:
        node, ids = stack.pop()
        if not isinstance(node, dict) or not all(map(_token, node)) or len(ids) > _LONGEST:
            raise Mistake(f"{path} is not a prefix tree: there is no dictionary of token ids after {ids[:8]}")
        if not node:
            yield ids
            continue
        if id(node) in seen:
            raise Mistake(f"{path} is refused: it has one dictionary in two places")
        seen.add(id(node))
        stack.extend((child, [*ids, int(token)]) for token, child in node.items())


def _token(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and 0 <= int(value) < 2**31


def read_embeddings(path: Path) -> npt.NDArray[np.float32]:
    """The training mentions' vectors, float32 [mentions, width], as they are (not of unit length)."""
    matrix = np.asarray(read_pickle(path))
    if matrix.ndim != 2 or matrix.dtype.kind != "f" or not np.isfinite(matrix).all():
        raise Mistake(f"{path} is not a matrix of finite numbers: {matrix.dtype} {matrix.shape}")
    return matrix.astype(np.float32, copy=False)


def read_features(path: Path) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    """Keys in HDF5's spelling (see `Features` in knowledge/workspace.py), and features, float32 [feature]."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            found: list[str] = []
            file.visititems(lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None)
            for name in found:
                data = file[name]
                if data.size > _WIDEST or data.external:  # external: its bytes are in another file
                    raise Mistake(f"{name} is not in this file itself, or too large: {data.shape}")
                yield name, np.asarray(data[()], np.float32).reshape(-1)
    except (OSError, ValueError, TypeError) as fault:
        raise Mistake(f"cannot read {path}: {fault}") from fault


def solved_lines(path: Path) -> Iterator[tuple[int, Row]]:
    """Number and fields of the lines that are not NIL: those of the embeddings' rows."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                raw = json.loads(line)
                text, mention, target = (str(raw[name]) for name in ("text", "mention", "target"))
            except (ValueError, KeyError, TypeError) as fault:
                raise Mistake(f"{path}:{number} is not a line of GEMEL's: {fault!r}") from fault
            if raw.get("golden") != "NIL":
                picture = raw.get("img_name") if "img_name" in raw else raw.get("img_url")
                yield (
                    number,
                    {"text": text, "mention": mention, "target": target}
                    | {
                        "golden": raw.get("golden"),
                        "image_key": picture,
                        "id": raw.get("id"),
                        "start": raw.get("start"),
                        "end": raw.get("end"),
                    },
                )
