"""Vectors of the bank: both homes against brute force, the same answers through heavy ties."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qdrant_server import Imitation, serving

from gemel_ray.knowledge.qdrant import EdgeStore, ServerStore
from gemel_ray.knowledge.server import SHORT_WAIT, Server
from gemel_ray.knowledge.vectors import Matrix, Ranked, Vectors, VectorStore, fused
from gemel_ray.settings import Vectors as Options

WIDTHS = {"mention": 16, "image": 8}
HOMES = ["edge", "imitation", "http"]
Home = Callable[..., Vectors]


def unit(matrix: Matrix) -> Matrix:
    return (matrix / np.linalg.norm(matrix, axis=1, keepdims=True)).astype(np.float32)


def random(n: int, width: int, seed: int = 0) -> Matrix:
    return np.random.default_rng(seed).normal(size=(n, width)).astype(np.float32)


def brute(bank: Matrix, query: Matrix, limit: int, without: set[int] | None = None) -> list[int]:
    """Rows by cosine, ties (equal to 1e-6) by row; a row of NaN is not there."""
    score = (unit(bank).astype(np.float64) @ unit(query[None])[0]).round(6)
    score[[row for row in without or () if row < len(bank)]] = np.nan
    best = np.lexsort((np.arange(len(bank)), -score))
    return best[~np.isnan(score[best])][:limit].tolist()


@pytest.fixture
def server() -> Iterator[tuple[str, type[Imitation]]]:
    with serving() as served:
        yield served


def of_server(address: str, wait: float = SHORT_WAIT) -> Server:
    return Server(Options(address=address), wait)


@pytest.fixture(params=HOMES)
def home(request: pytest.FixtureRequest, tmp_path: Path, server: tuple[str, Any]) -> Iterator[Home]:
    """Makes a store of the given matrices, rows inserted in a shuffled order, and opens it anew."""
    opened: list[Vectors] = []

    def make(
        matrices: dict[str, Matrix], multiplicity: dict[str, int] | None = None, **options: Any
    ) -> Vectors:
        widths = {n: x.shape[1] for n, x in matrices.items()}
        name = f"{request.param}{len(opened)}"
        at = f"{server[0]}/bank" if request.param == "http" else ":memory:"
        if request.param == "edge":
            store: VectorStore = EdgeStore.create(tmp_path / name, widths)
        else:
            store = ServerStore.create(of_server(at), name, widths)
        written = Vectors(store, {}, **options)
        n = len(next(iter(matrices.values())))
        for rows in np.array_split(np.random.default_rng(7).permutation(n), 3):
            written.add(rows, {name: matrix[rows] for name, matrix in matrices.items()})
        written.finish()
        if request.param != "imitation":  # whose memory goes with it
            written.close()
            edge = request.param == "edge"
            store = EdgeStore.open(tmp_path / name) if edge else ServerStore.open(of_server(at), name)
        opened.append(Vectors(store, multiplicity or {}, **options))
        return opened[-1]

    yield make
    for vectors in opened:
        vectors.close()


def test_a_search_finds_what_brute_force_finds(home: Home) -> None:
    bank = {name: random(700, width) for name, width in WIDTHS.items()}
    bank["image"][::3] = np.nan
    vectors = home(bank)
    assert (vectors.count(), vectors.store.widths) == (700, WIDTHS)
    for name, width in WIDTHS.items():
        queries = random(150, width, seed=1)  # more than one request
        for query, hits in zip(queries, vectors.search(name, queries, 10), strict=True):
            assert hits.rows.tolist() == brute(bank[name], query, 10)
            cosines = unit(bank[name][hits.rows]) @ unit(query[None])[0]
            np.testing.assert_allclose(hits.scores, cosines, atol=2e-6)
            assert (hits.rows.dtype, hits.scores.dtype) == (np.int64, np.float32)


def test_ties_are_settled_by_row(home: Home) -> None:
    kinds = random(6, 16)
    kind = np.random.default_rng(3).integers(0, 6, 600)
    most = int(np.bincount(kind).max())
    assert most > 90
    vectors = home({"mention": kinds[kind]}, {"mention": most})
    queries = random(12, 16, seed=4)
    for limit in (1, 16, 130):
        for query, hits in zip(queries, vectors.search("mention", queries, limit), strict=True):
            assert hits.rows.tolist() == brute(kinds[kind], query, limit)
            tied = {k: {float(s) for s in hits.scores[kind[hits.rows] == k]} for k in range(6)}
            assert all(len(scores) <= 1 for scores in tied.values())


def test_both_homes_answer_the_same(tmp_path: Path) -> None:
    mention = random(9, 16)[np.random.default_rng(0).integers(0, 9, 400)]
    image = random(400, 8)
    image[1::2] = image[::2]
    image[::5] = np.nan
    stores = [
        EdgeStore.create(tmp_path / "edge", WIDTHS),
        ServerStore.create(of_server(":memory:"), "bank", WIDTHS),
    ]
    queries = {"mention": random(50, 16, seed=5), "image": random(50, 8, seed=6)}
    queries["image"][::4] = np.nan
    without = [list(range(i, 400, 7)) for i in range(50)]
    answers = []
    for seed, store in enumerate(stores):
        vectors = Vectors(store, {"mention": 100, "image": 2})
        order = np.random.default_rng(seed).permutation(400)
        vectors.add(order, {"mention": mention[order], "image": image[order]})
        vectors.finish()
        alone = [vectors.search(name, queries[name], 16, without) for name in queries]
        answers.append([*alone, vectors.search_fused(queries, 16, without, {"image": 0.7})])
        vectors.close()
    for one, other in zip(*answers, strict=True):
        assert [h.rows.tolist() for h in one] == [h.rows.tolist() for h in other]
        for a, b in zip(one, other, strict=True):
            np.testing.assert_allclose(a.scores, b.scores, atol=1e-6)


def test_rows_that_are_left_out_are_not_found(home: Home) -> None:
    bank = random(300, 16)
    vectors = home({"mention": bank})
    queries = random(3, 16, seed=1)
    best = brute(bank, queries[0], 100)
    everything = list(range(300))
    hits = vectors.search("mention", queries, 5, [best, [], everything])
    assert hits[0].rows.tolist() == brute(bank, queries[0], 5, set(best))
    assert hits[1].rows.tolist() == brute(bank, queries[1], 5)
    assert len(hits[2].rows) == len(hits[2].scores) == 0


def test_rows_left_out_are_not_found_where_the_graph_answers(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gemel_ray.knowledge.qdrant.time.sleep", lambda _: None)  # until it is indexed
    bank = random(300, 16)
    vectors = home({"mention": bank}, exact_below=100)
    best = brute(bank, bank[0], 50)
    (hits,) = vectors.search("mention", bank[:1], 5, [best])
    assert len(hits.rows) == 5
    assert not {*hits.rows.tolist()} & {*best}


def test_missing_queries_and_rows_are_left_out(home: Home) -> None:
    bank = {name: random(5, width) for name, width in WIDTHS.items()}
    bank["image"][2] = bank["image"][4] = bank["mention"][4] = np.nan
    vectors = home(bank)
    assert vectors.count() == 5
    queries = {name: random(3, width, seed=1) for name, width in WIDTHS.items()}
    queries["image"][1:] = queries["mention"][2] = np.nan
    assert [len(h.rows) for h in vectors.search("image", queries["image"], 9)] == [3, 0, 0]
    fused = vectors.search_fused(queries, 9)
    assert sorted(fused[0].rows.tolist()) == [0, 1, 2, 3]
    assert fused[1].rows.tolist() == brute(bank["mention"], queries["mention"][1], 9)
    assert len(fused[2].rows) == 0


def test_the_image_decides_inside_a_tie(home: Home) -> None:
    """80 rows have the query's very mention; of them, the picture's neighbours must come first."""
    mention, image = random(400, 16), random(400, 8)
    mention[100:180] = mention[100]
    vectors = home({"mention": mention, "image": image}, {"mention": 80})
    (hits,) = vectors.search_fused({"mention": mention[100:101], "image": image[170:171]}, 5)
    by_image = [row for row in brute(image, image[170], 400) if 100 <= row < 180]
    assert hits.rows.tolist() == by_image[:5]
    (alone,) = vectors.search_fused(
        {"mention": mention[100:101], "image": image[170:171]}, 5, (), {"mention": 0}
    )
    assert alone.rows.tolist() == brute(image, image[170], 5)


def test_engines_order_ties_arbitrarily(tmp_path: Path) -> None:
    """Why ties are settled here, and why not by Fusion.Rrf: positions follow the insertion."""
    import qdrant_edge as q

    rankings = []
    for seed in (1, 2):
        order = np.random.default_rng(seed).permutation(40).tolist()
        store = EdgeStore.create(tmp_path / str(seed), {"mention": 4})
        Vectors(store).add(order, {"mention": np.ones((40, 4), np.float32)})
        nearest = q.Prefetch(limit=40, query=q.Query.Nearest([1.0] * 4, using="mention"))
        request = q.QueryRequest(limit=40, prefetches=[nearest], query=q.Fusion.Rrf(k=60))
        points = store._shard.query(request)
        assert points[0].score > 1.5 * points[-1].score  # 40 equal vectors: 1/60 to 1/99
        rankings.append([point.id for point in points])
        (hits,) = Vectors(store, {"mention": 40}).search("mention", np.ones((1, 4), np.float32), 9)
        assert hits.rows.tolist() == list(range(9))
        store.close()
    assert rankings[0] != rankings[1]


hit_lists = st.lists(
    st.dictionaries(st.integers(0, 30), st.sampled_from([0.9, 0.5, 0.25, -0.1]), max_size=12), max_size=3
)


@settings(deadline=None)
@given(hit_lists, st.integers(1, 40))
def test_fusing_is_what_its_definition_says(lists: list[dict[int, float]], limit: int) -> None:
    weights = [1.0, 0.5, 2.0]
    given, expected = [], {}
    for scores, weight in zip(lists, weights, strict=False):
        rows = sorted(scores, key=lambda row: (-scores[row], row))
        values = np.array([scores[row] for row in rows], np.float64)
        given.append((Ranked(np.array([rows], np.int64), values[None]), weight))
    for scores, weight in zip(lists, weights, strict=False):
        levels = sorted(set(scores.values()), reverse=True)
        for row in set().union(*lists) if scores else ():
            rank = levels.index(scores[row]) if row in scores else len(levels)
            expected[row] = expected.get(row, 0.0) + weight / (61 + rank)
    best = sorted(expected, key=lambda row: (-round(expected[row], 12), row))[:limit]
    for order in (given, given[::-1]):
        (rows,), (votes,) = fused(order, 1, limit)
        assert rows[np.isfinite(votes)].tolist() == best
        np.testing.assert_allclose(votes[np.isfinite(votes)], [expected[row] for row in best], rtol=1e-6)
        assert rows.dtype == np.int64


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_any_small_bank_is_searched_as_by_brute_force(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Few vectors over few directions: ties everywhere, any rows left out, any limit."""
    directions = random(4, 6, seed=8)
    which = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=25))
    limit = data.draw(st.integers(0, 30))
    without = data.draw(st.sets(st.integers(0, 30)))
    bank, query = directions[which], random(1, 6, seed=data.draw(st.integers(0, 5)))
    many = max(which.count(w) for w in which)
    for store in (
        EdgeStore.create(tmp_path_factory.mktemp("edge"), {"mention": 6}),
        ServerStore.create(of_server(":memory:"), "bank", {"mention": 6}),
    ):
        vectors = Vectors(store, {"mention": many})
        vectors.add(range(len(bank)), {"mention": bank})
        (hits,) = vectors.search("mention", query, limit, [sorted(without)])
        assert hits.rows.tolist() == brute(bank, query[0], limit, without)
        vectors.close()


READER = """
import sys
from pathlib import Path
import numpy as np
from gemel_ray.knowledge.qdrant import EdgeStore
from gemel_ray.knowledge.vectors import Vectors
vectors = Vectors(EdgeStore.open(Path(sys.argv[1])))
print("open", flush=True)
sys.stdin.readline()
for _ in range(20):
    hits = vectors.search("mention", np.load(sys.argv[2]), 5)
print([h.rows.tolist() for h in hits], flush=True)
sys.stdin.readline()
vectors.close()
"""


@pytest.mark.parametrize("exact_below", [50_000, 100])
def test_many_processes_search_one_folder(tmp_path: Path, exact_below: int) -> None:
    bank, queries = random(500, 16), random(8, 16, seed=1)
    np.save(tmp_path / "queries.npy", queries)
    built = Vectors(EdgeStore.create(tmp_path / "edge", {"mention": 16}), {}, exact_below)
    built.add(range(500), {"mention": bank})
    built.finish()
    built.close()
    command = [sys.executable, "-c", READER, str(tmp_path / "edge"), str(tmp_path / "queries.npy")]
    readers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    assert [r.stdout.readline() for r in readers] == ["open\n"] * 2  # both hold it ...
    for reader in readers:
        reader.stdin.write("\n")
        reader.stdin.flush()
    expected = [brute(bank, query, 5) for query in queries]
    assert [json.loads(r.stdout.readline()) for r in readers] == [expected] * 2  # ... while both search
    for reader in readers:
        reader.communicate("\n")
        assert reader.returncode == 0
    again = Vectors(EdgeStore.open(tmp_path / "edge"))
    assert again.count() == 500
    again.close()


def test_a_search_of_an_empty_store_finds_nothing(home: Home) -> None:
    vectors = home({name: np.empty((0, width), np.float32) for name, width in WIDTHS.items()})
    queries = {name: random(2, width) for name, width in WIDTHS.items()}
    assert vectors.count() == 0
    assert [len(h.rows) for h in vectors.search("mention", queries["mention"], 5)] == [0, 0]
    assert [len(h.rows) for h in vectors.search_fused(queries, 5)] == [0, 0]
    assert vectors.search("mention", queries["mention"][:0], 5) == []
    assert vectors.search_fused({}, 5) == []


def test_wrong_input_is_named(home: Home) -> None:
    vectors = home({name: random(4, width) for name, width in WIDTHS.items()})
    bad = random(2, 16)
    bad[0, 3] = np.nan
    with pytest.raises(ValueError, match=r"mention vectors are 16 wide; these have the shape \(2, 8\)"):
        vectors.search("mention", random(2, 8), 5)
    with pytest.raises(ValueError, match="no vector is named 'sound'; there are: image, mention"):
        vectors.search("sound", random(2, 8), 5)
    with pytest.raises(ValueError, match="NaN or infinity"):
        vectors.search("mention", bad, 5)
    with pytest.raises(ValueError, match="2 queries, but 1 lists"):
        vectors.search("mention", random(2, 16), 5, [[1]])
    with pytest.raises(ValueError, match="under image, but 2 under another"):
        vectors.search_fused({"mention": random(2, 16), "image": random(1, 8)}, 5)
    with pytest.raises(ValueError, match="image vectors are 8 wide"):
        vectors.add([9], {"image": random(1, 7)})
    with pytest.raises(ValueError, match="2 mention vectors for 1 different rows"):
        vectors.add([9, 9], {"mention": random(2, 16)})


def test_opening_what_is_missing_and_making_what_is_there_are_errors(
    tmp_path: Path, server: tuple[str, Any]
) -> None:
    with pytest.raises(OSError, match="nothing-here"):
        EdgeStore.open(tmp_path / "nothing-here")
    for _ in range(2):
        with pytest.raises(FileNotFoundError, match="has no collection bank-1"):
            ServerStore.open(of_server(f"{server[0]}/bank"), "bank-1")
    EdgeStore.create(tmp_path / "edge", WIDTHS).close()
    with pytest.raises(OSError, match="already"):
        EdgeStore.create(tmp_path / "edge", WIDTHS)


def test_the_server_s_imitation_keeps_a_folder(tmp_path: Path) -> None:
    written = Vectors(ServerStore.create(of_server(str(tmp_path / "bank")), "bank", WIDTHS))
    written.add([3, 1], {"mention": random(2, 16)})
    written.close()
    vectors = Vectors(ServerStore.open(of_server(str(tmp_path / "bank")), "bank"))
    assert vectors.search("mention", random(2, 16), 1)[1].rows.tolist() == [1]
    vectors.close()


def test_a_busy_server_is_asked_again(server: tuple[str, type[Imitation]]) -> None:
    address, answers = server
    answers.failures = 2
    vectors = Vectors(ServerStore.create(of_server(f"{address}/bank"), "bank", WIDTHS))
    answers.failures = 2
    vectors.add(range(300), {"mention": random(300, 16)})
    assert vectors.count() == 300
    answers.local.delete_collection("bank")
    with pytest.raises(OSError, match="refuses"):
        vectors.count()


def test_a_bonus_is_added_before_rows_are_ranked(tmp_path: Path) -> None:
    bank = random(150, 8)
    vectors = Vectors(EdgeStore.create(tmp_path / "shard", {"mention": 8}))
    vectors.add(np.arange(150), {"mention": bank})
    (plain,) = vectors.search("mention", bank[:1], 100)
    ninth = int(plain.rows[8])

    def bonus(query: int, rows: Any) -> Any:
        assert query == 0
        return np.where(rows == ninth, np.float32(2), np.float32(0))

    (hits,) = vectors.search("mention", bank[:1], 3, (), bonus)
    assert hits.rows.tolist() == [ninth, *plain.rows[:2].tolist()]
    assert hits.scores[0] == pytest.approx(plain.scores[8] + 2, abs=1e-5)
    vectors.close()


def test_joined_names_are_one_list(tmp_path: Path) -> None:
    """Rows of either name, the nearest first, equal ones by row."""
    bank = random(40, 8)
    none = np.full((20, 8), np.nan, np.float32)
    vectors = Vectors(
        EdgeStore.create(tmp_path / "shard", {"mention": 8, "name": 8}), joined={"mention": "name"}
    )
    vectors.add(np.arange(20), {"mention": bank[:20], "name": none})
    vectors.add(np.arange(20, 40), {"mention": none, "name": bank[20:]})
    (hits,) = vectors.search("mention", bank[:1], 10)
    unit = bank / np.linalg.norm(bank, axis=1, keepdims=True)
    assert hits.rows.tolist() == np.argsort(-(unit @ unit[0]), kind="stable")[:10].tolist()
    vectors.close()
