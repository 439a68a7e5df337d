"""The bank's files are read where they lie: opening them costs the same however many rows they have."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from gemel_ray.knowledge import bank as bank_file
from gemel_ray.knowledge.bank import Bank

WORDS = ("New York", "the new York Times", "York", "", "Times Square, New York", "newyork")


def written(folder: Path, rows: int) -> Bank:
    table = pa.Table.from_pylist(
        [
            {
                "id": f"{row}", "text": f"text {row}", "mention": WORDS[row % len(WORDS)], "target": "T",
                "tokens": list(range(row, row + row % 9)), "image_row": row % 3 - 1,
            }
            for row in range(rows)
        ],
        bank_file.SCHEMA,
    )  # fmt: skip
    parts = [table.slice(start, 70) for start in range(0, rows, 70)]
    pictures, mentions = np.ones((2, 4), np.float32), np.ones((rows, 4), np.float32)
    return bank_file.write(parts[:-1], parts[-1:], pictures, mentions, folder)


def test_rows_are_found_in_all_batches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bank_file, "_BATCH", 100)
    bank = written(tmp_path, 333)
    assert [bank.tokens(row).tolist() for row in range(333)] == [[*range(r, r + r % 9)] for r in range(333)]
    assert [bank.image_row(row) for row in range(333)] == [row % 3 - 1 for row in range(333)]
    rows = np.arange(330, 333)
    assert bank.words().with_all("york NEW", rows).tolist() == [True, True, False]


def test_a_bank_of_an_earlier_version_is_read_without_the_files_that_it_lacks(tmp_path: Path) -> None:
    bank, rows = written(tmp_path, 200), np.arange(200)
    expected = bank.words().with_all("york new", rows).tolist()
    for name in ("words", "word_starts", "image_rows"):
        (tmp_path / f"{name}.npy").unlink()
    earlier = Bank.open(tmp_path)
    assert earlier.words().with_all("york new", rows).tolist() == expected
    assert [earlier.image_row(row) for row in range(200)] == [bank.image_row(row) for row in range(200)]


def test_opening_a_bank_takes_no_memory_for_its_rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bank_file, "_BATCH", 2_000)

    def taken(rows: int) -> int:
        written(tmp_path / f"{rows}", rows)
        tracemalloc.start()
        before = pa.total_allocated_bytes()
        bank = Bank.open(tmp_path / f"{rows}")
        words = bank.words()
        assert bank.tokens(rows - 1).tolist() and len(words.with_all("York", np.arange(5)))
        peak = tracemalloc.get_traced_memory()[1] + pa.total_allocated_bytes() - before
        tracemalloc.stop()
        return peak

    few, many = taken(2_500), taken(22_500)
    assert many - few < 20_000  # a byte a row
