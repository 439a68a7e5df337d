"""Small files that would be gigabytes when they are read: what they take is bounded before it is taken."""

from __future__ import annotations

import gzip
import io
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from gemel_ray.gemel.pickles import read_pickle
from gemel_ray.pictures.images import read_image
from gemel_ray.pictures.limits import ImageError, ImageLimits
from gemel_ray.readers import columnar, documents, opening

MIB = 2**20
_MEASURED = """
import resource, sys
{imports}
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
before = peak()
try:
    {work}
except ValueError as fault:
    print(str(fault)[:200], file=sys.stderr)
print(peak() - before)
"""
PICTURE = (
    "from gemel_ray.pictures.images import read_image",
    "read_image(open(sys.argv[1], 'rb').read(), None)",
)
READ = ("from gemel_ray.readers import documents", "for table in documents(sys.argv[1]): del table")
PICKLE = (
    "from pathlib import Path\nfrom gemel_ray.gemel.pickles import read_pickle",
    "read_pickle(Path(sys.argv[1]))",
)


def picture(kind: str, mode: str, **options: Any) -> Callable[[Path], None]:
    def write(file: Path) -> None:
        Image.new(mode, (7900, 7900)).save(file, kind, **options)

    return write


def one_value_in_all_rows(file: Path) -> None:
    text = "a" * (28 * MIB)
    column = pa.DictionaryArray.from_arrays(pa.array(np.zeros(72, np.int32)), pa.array([text]))
    pq.write_table(pa.table({"id": column, "text": column}), file, compression="zstd")


def one_row_of_a_list(file: Path) -> None:
    values = pa.array(np.zeros(68_000_000, np.int8))
    column = pa.ListArray.from_arrays(pa.array([0, len(values)], pa.int32()), values)
    pq.write_table(pa.table({"text": ["a"], "mentions": column}), file, compression="zstd")


def one_line(file: Path) -> None:
    with gzip.open(file, "wb", 1) as packed:
        for _ in range(400):
            packed.write(bytes(MIB))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "write", "read", "most"),
    [
        ("float.tiff", picture("TIFF", "F", compression="tiff_deflate"), PICTURE, 600),
        ("whole.tiff", picture("TIFF", "I", compression="tiff_deflate"), PICTURE, 600),
        ("picture.avif", picture("AVIF", "RGB", speed=10), PICTURE, 600),
        ("picture.webp", picture("WEBP", "RGBA"), PICTURE, 600),
        ("dictionary.parquet", one_value_in_all_rows, READ, 1500),
        ("list.parquet", one_row_of_a_list, READ, 300),
        ("line.jsonl.gz", one_line, READ, 300),
        ("memo.pkl", lambda f: f.write_bytes(b"\x80\x02Nr\xff\xff\xff\x0f."), PICKLE, 50),
        ("bytes.pkl", lambda f: f.write_bytes(b"\x80\x05\x96" + (2**32).to_bytes(8, "little")), PICKLE, 50),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_small_file_takes_no_gigabytes(
    name: str, write: Callable[[Path], None], read: tuple[str, str], most: int, tmp_path: Path
) -> None:
    write(tmp_path / name)
    assert (tmp_path / name).stat().st_size < 2 * MIB
    program = _MEASURED.format(imports=read[0], work=read[1])
    command = [sys.executable, "-c", program, str(tmp_path / name)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(ran.stdout) < most, ran.stderr


def test_costly_kinds_of_pictures_may_have_fewer_pixels() -> None:
    for kind, mode, most in (("PNG", "RGB", 10_000), ("TIFF", "F", 6_600), ("WEBP", "RGB", 5_000)):
        for side, fits in ((int(most**0.5), True), (int(most**0.5) + 2, False)):
            packed = io.BytesIO()
            Image.new(mode, (side, side)).save(packed, kind)
            if fits:
                assert read_image(packed.getvalue(), None, ImageLimits(pixels=10_000)).mode == "RGB"
            else:
                with pytest.raises(ImageError, match=r"more than [\d,]+ (bytes to decode|pixels)"):
                    read_image(packed.getvalue(), None, ImageLimits(pixels=10_000))


def test_a_line_that_is_too_long_costs_its_row_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "LINE", 100)
    file = tmp_path / "long.jsonl"
    file.write_text(
        '{"id": "a", "text": "A"}\n' + '{"text": "' + "b" * 1000 + '"}\n{"id": "c", "text": "C"}\n'
    )
    rows = [row for table in documents(str(file)) for row in table.to_pylist()]
    assert [(r["text"], r["error"]) for r in rows] == [
        ("A", None), (None, "line 2 has more than 100 bytes"), ("C", None),
    ]  # fmt: skip


@pytest.mark.parametrize("encoding", ["dictionary", "plain", "DELTA_BYTE_ARRAY"])
def test_rows_of_parquet_come_whole_and_in_order(
    encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columnar, "_DECODED", 1000)
    texts = [f"{n % 7} {'x' * 50}" for n in range(900)]
    named = {"use_dictionary": encoding == "dictionary"}
    if encoding == "DELTA_BYTE_ARRAY":
        named["column_encoding"] = {"text": encoding}  # type: ignore[assignment]
    pq.write_table(pa.table({"text": texts}), tmp_path / "file.parquet", row_group_size=400, **named)
    found = [row["text"] for table in documents(str(tmp_path / "file.parquet")) for row in table.to_pylist()]
    assert found == texts


def test_a_pickle_that_claims_more_than_its_file_has_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "claims.pkl"
    file.write_bytes(b"\x80\x04\x8d" + (2**31).to_bytes(8, "little") + b"a")
    with pytest.raises(ValueError, match="claims to hold"):
        read_pickle(file)
    value = {"a": [1.5, "b", b"c" * 1000], "d": np.arange(3000)}
    file.write_bytes(pickle.dumps(value))
    assert read_pickle(file)["d"].tolist() == list(range(3000))
