"""The prefix tree: every name is there, nothing else is, and what cannot be a name is refused."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from files import SHARED
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from gemel_ray.knowledge.prefix_tree import NOWHERE, PrefixTree, build

KNOWLEDGE_BASE = SHARED / "kb" / "entities.jsonl"
ARRAYS = ("token", "first_child", "leaf", "first_bearer", "bearer")
END = 10  # a line break's byte, so that a name can hold the end token itself
Bearers = dict[tuple[int, ...], list[int]]

# Combining marks, scripts, things of no width, astral planes, letters whose case has another length.
PIECES = [
    "a",
    "ab",
    "abc",
    "A",
    " ",
    "é",
    "e\u0301",
    "ß",
    "İ",
    "𝄞",
    "한",
    "ہ",
    "\u200d",
    "\ufeff",
    "\x00",
    "👩‍🚀",
]
piece = st.sampled_from(PIECES)
names = st.lists(
    st.one_of(
        st.lists(piece, min_size=1, max_size=4).map("".join),  # many prefixes of one another, many duplicates
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8),
    ),
    min_size=1,
    max_size=30,
)
relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])


def by_byte(texts: list[str]) -> list[list[int]]:
    return [list(text.encode()) for text in texts]


def without_case(texts: list[str]) -> list[list[int]]:
    """Different names, the same tokens."""
    return by_byte([text.casefold() for text in texts])


@cache
def starter_tokenizer() -> tuple[Any, int]:
    from gemel_ray.models.encoders import end_token, load_tokenizer
    from gemel_ray.starter.models import MissingModel, language_model

    try:
        tokenizer = load_tokenizer(str(language_model()))
    except MissingModel as reason:
        pytest.skip(f"the starter's language model is not installed: {reason}")
    return tokenizer, end_token(str(language_model()), "newline")


def by_starter(texts: list[str]) -> list[list[int]]:
    from gemel_ray.models.encoders import tokenize

    return tokenize(starter_tokenizer()[0], texts)


def bearers(rows: list[list[int]], end: int) -> Bearers:
    """Rows of the knowledge base by their whole token sequence: what the tree must hold."""
    expected: Bearers = defaultdict(list)
    for row, ids in enumerate(rows):
        expected[(*ids, end)].append(row)
    return dict(expected)


def held(tree: PrefixTree) -> Bearers:
    """What the tree holds, by enumerating it."""
    found = [(tuple(path), tree.entities([leaf])[0]) for path, leaf in tree.names()]
    assert len({path for path, _ in found}) == len(found)
    return dict(found)


def check(tree: PrefixTree, expected: Bearers) -> None:
    assert held(tree) == expected
    assert len(tree) == len(expected)
    assert tree.depth == max(map(len, expected))
    height: dict[tuple[int, ...], int] = defaultdict(int)
    for path in expected:
        for depth in range(len(path) + 1):
            height[path[:depth]] = max(height[path[:depth]], len(path) - depth)
    for path, rows in expected.items():
        node = tree.root
        for depth, token in enumerate(path):
            assert not tree.is_leaf(node)
            assert tree.height(node) == height[path[:depth]]
            node = tree.step(node, token)
        assert node == tree.walk(path) != NOWHERE
        assert (tree.path(node), tree.height(node)) == (path, 0)
        assert tree.is_leaf(node)
        assert tree.entities([node]) == [rows]


def nodes(tree: PrefixTree) -> Iterator[tuple[int, list[int]]]:
    """All nodes and the paths to them, by `children` alone."""
    under_way: list[tuple[int, list[int]]] = [(tree.root, [])]
    while under_way:
        node, path = under_way.pop()
        yield node, path
        first, tokens = tree.children(node)
        assert (np.diff(tokens) > 0).all()
        under_way += [(first + i, [*path, int(t)]) for i, t in enumerate(tokens)]


def check_steps(tree: PrefixTree) -> None:
    """`step`, `walk` and `children` agree at every node, under its tokens and those beside them."""
    seen = set()
    for node, path in nodes(tree):
        seen.add(node)
        first, tokens = tree.children(node)
        child = {int(t): first + i for i, t in enumerate(tokens)}
        for token in {0, tree.end_token, 2**31 - 1} | {t + d for t in child for d in (-1, 0, 1)}:
            step = tree.step(node, token)
            assert step == child.get(token, NOWHERE)
            assert tree.walk([*path, token]) == step
        assert tree.walk(path) == node
        assert tree.is_leaf(node) == (not child)
    assert seen == set(range(len(tree.token)))  # no node is out of reach


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as made:
        yield Path(made)


@relaxed
@pytest.mark.parametrize("tokenize", [by_byte, without_case])
@given(names=names)
@example(names=["a", "ab", "abc", "ab", "a", "A"])
@example(names=["x"])
@example(names=["x"] * 5)
def test_the_tree_has_the_names_and_nothing_else(tokenize: Any, names: list[str]) -> None:
    rows = tokenize(names)
    assume(not any(END in ids for ids in rows))
    with tempfile.TemporaryDirectory() as made:
        tree = build(names, tokenize, END, Path(made))
        check(tree, bearers(rows, END))
        check_steps(tree)


@pytest.mark.slow
@settings(relaxed, max_examples=25)
@given(names=names)
def test_the_tree_has_the_names_in_the_starter_s_tokens(names: list[str]) -> None:
    _, end = starter_tokenizer()
    rows = by_starter(names)
    assume(all(ids and end not in ids for ids in rows))
    with tempfile.TemporaryDirectory() as made:
        tree = build(names, by_starter, end, Path(made))
        check(tree, bearers(rows, end))
        check_steps(tree)


@relaxed
@given(names=names, strangers=st.lists(st.lists(st.integers(0, 256), max_size=12), max_size=10))
def test_other_tokens_lead_to_no_name(names: list[str], strangers: list[list[int]]) -> None:
    rows = by_byte(names)
    assume(not any(END in ids for ids in rows))
    expected = bearers(rows, END)
    # Also sequences that leave a name at its last token, stop before it, or go on behind it.
    strangers += [list(path[:-1]) for path in expected] + [[*path, 97] for path in expected]
    strangers += [[*path[:-1], 255] for path in expected]
    with tempfile.TemporaryDirectory() as made:
        tree = build(names, by_byte, END, Path(made))
        for path in strangers:
            if tuple(path) not in expected:
                node = tree.walk(path)
                assert node == NOWHERE or not tree.is_leaf(node)


@relaxed
@given(names=names)
def test_a_tree_that_is_opened_again_is_equal(names: list[str]) -> None:
    assume(not any(END in ids for ids in by_byte(names)))
    with tempfile.TemporaryDirectory() as made:
        tree = build(names, by_byte, END, Path(made))
        again = PrefixTree.open(Path(made))
        for name in ARRAYS:
            assert np.array_equal(getattr(tree, name), getattr(again, name)), name
        assert (again.end_token, again.depth, len(again)) == (END, tree.depth, len(tree))
        assert held(again) == held(tree)


def test_a_copied_folder_opens_elsewhere_and_is_mapped(folder: Path) -> None:
    tree = build(["one", "two"], by_byte, END, folder / "here")
    (folder / "here").rename(folder / "there")
    again = PrefixTree.open(folder / "there")
    assert held(again) == held(tree)
    assert all(isinstance(getattr(again, name).base, np.memmap) for name in ARRAYS)
    assert {type(getattr(again, name)) for name in ARRAYS} == {np.ndarray}  # memmap's own indexing is slow
    before = (folder / "there" / "token.npy").read_bytes()
    again.token[:] = 0  # nobody should; were it done, it must not reach the other processes
    assert (folder / "there" / "token.npy").read_bytes() == before
    assert held(PrefixTree.open(folder / "there")) == held(tree)


def test_a_name_that_begins_another_is_its_own(folder: Path) -> None:
    tree = build(["York", "York City"], by_byte, END, folder)
    inner = tree.walk(b"York")
    assert not tree.is_leaf(inner)
    assert tree.entities([tree.step(inner, END)]) == [[0]]
    assert tree.entities([tree.walk([*b"York City", END])]) == [[1]]


@pytest.mark.parametrize("row", [0, 1, 20_000, 20_003])
def test_a_name_with_the_end_token_is_refused_by_its_row(folder: Path, row: int) -> None:
    names = [f"name {i}" for i in range(20_010)]  # more than are tokenised at once
    names[row] = "two\nlines"
    with pytest.raises(ValueError, match=rf"\brow {row}: .*'two\\nlines'.*end-of-name"):
        build(names, by_byte, END, folder)


def test_a_name_without_tokens_is_refused_by_its_row(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"\brow 2: .*'' has no tokens"):
        build(["a", "b", "", "d"], by_byte, END, folder)


@pytest.mark.slow
def test_the_starter_s_end_token_is_refused_in_a_name(folder: Path) -> None:
    _, end = starter_tokenizer()
    with pytest.raises(ValueError, match=r"\brow 1: .*end-of-name"):
        build(["Boston", "Bos\nton"], by_starter, end, folder)


def test_an_empty_knowledge_base_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="no entities"):
        build([], by_byte, END, folder)
    assert not (folder / "tree.json").exists()


def test_a_refused_build_leaves_an_earlier_tree_as_it_was(folder: Path) -> None:
    before = held(build(["one", "two"], by_byte, END, folder))
    with pytest.raises(ValueError, match="row 1"):
        build(["three", "\n"], by_byte, END, folder)
    assert held(PrefixTree.open(folder)) == before


@pytest.mark.slow
def test_forty_thousand_real_names_make_a_tree(folder: Path) -> None:
    if not KNOWLEDGE_BASE.is_file():
        pytest.skip(f"there is no {KNOWLEDGE_BASE}: it is development data, outside the project")
    with KNOWLEDGE_BASE.open() as file:
        names = [json.loads(line)["name"] for line in file]
    _, end = starter_tokenizer()
    tree = build(names, by_starter, end, folder)
    assert len(tree.bearer) == len(names) == 40_350
    check(tree, bearers(by_starter(names), end))
    shared = sum(len(tree.entities([leaf])[0]) > 1 for _, leaf in tree.names())
    assert shared == 76


# Peak memory of the child itself. ru_maxrss would do, but Linux hands a child that is spawned by vfork
# its parent's peak, and this parent may have loaded models; VmHWM is of the new image alone.
BUILD = """
import resource, sys, time
from pathlib import Path
from gemel_ray.knowledge.prefix_tree import build

def tokenize(texts):
    return [list(text.encode()) for text in texts]

count, folder = int(sys.argv[1]), Path(sys.argv[2])
names = (f"{(i * 2654435761) % 2**32:08x} name {i % 977}" for i in range(count))
began = time.perf_counter()
tree = build(names, tokenize, 10, folder)
seconds = time.perf_counter() - began
assert len(tree.bearer) == count, len(tree.bearer)
try:
    lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
    peak = int(lines["VmHWM"].split()[0]) * 1024
except OSError:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
print(peak, len(tree.token), seconds)
"""


def test_a_build_of_two_hundred_thousand_names_stays_small(folder: Path) -> None:
    command = [sys.executable, "-c", BUILD, "200000", str(folder)]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    peak, made, _ = done.stdout.split()
    assert int(made) > 200_000
    assert int(peak) < 2**30
