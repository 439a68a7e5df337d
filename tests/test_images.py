"""Outside bytes to pictures: what is read, what is refused, and how the refusal is worded."""

import base64
import http.server
import io
import os
import re
import struct
import time
import tracemalloc
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from live import answering
from PIL import Image, ImageFile

from gemel_ray.pictures.images import read_image
from gemel_ray.pictures.limits import STORES, ImageError, ImageLimits

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def picture(width: int = 40, height: int = 30) -> Image.Image:
    """Noise on a slope: every part differs, so a lost or turned part shows."""
    rng = np.random.default_rng(1)
    slope = np.linspace(0, 200, width * height).reshape(height, width, 1)
    return Image.fromarray((slope + rng.integers(0, 55, (height, width, 3))).astype(np.uint8))


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_that_declares(width: int, height: int) -> bytes:
    """A few hundred bytes, whole and valid as far as a reader looks before it decodes."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(b"\0" * 100_000)
    return (
        b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", data) + png_chunk(b"IEND", b"")
    )


def refusal(data: bytes | None, address: str | None = None, **options: object) -> str:
    with pytest.raises(ImageError) as caught:
        read_image(data, address, **options)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 300
    return message


# What is read


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_lossless_kinds_come_back_pixel_for_pixel(kind: str) -> None:
    read = read_image(encoded(picture(), kind), None)
    assert (read.mode, read.size) == ("RGB", (40, 30))
    assert np.array_equal(read, picture())


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "AVIF"])
def test_lossy_kinds_come_back_alike(kind: str) -> None:
    read = read_image(encoded(Image.new("RGB", (64, 64), (200, 40, 90)), kind, quality=95), None)
    assert np.abs(np.asarray(read, int) - (200, 40, 90)).max() <= 6


def test_animated_gif_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (20, 10), colour) for colour in (RED, GREEN, BLUE)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert Image.open(io.BytesIO(data)).n_frames == 3
    assert read_image(data, None).getcolors() == [(200, RED)]


def test_cmyk_jpeg_keeps_its_colours() -> None:
    data = encoded(Image.new("CMYK", (32, 32), (0, 255, 255, 0)), "JPEG", quality=95)
    assert Image.open(io.BytesIO(data)).mode == "CMYK"
    red, green, blue = read_image(data, None).getpixel((16, 16))
    assert red > 245 and green < 10 and blue < 10


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_exif_orientation_is_applied_once(orientation: int, kind: str) -> None:
    # numpy states what each orientation means, apart from Pillow's names for the turns.
    undo: dict[int, Callable[[np.ndarray], np.ndarray]] = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, 1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    read = read_image(encoded(picture(), kind, exif=exif), None)
    assert np.array_equal(read, undo[orientation](np.asarray(picture())))


def test_jpeg_from_a_phone_held_upright_stands_upright() -> None:
    sky_left = Image.new("RGB", (64, 32), GREEN)
    sky_left.paste(BLUE, (0, 0, 32, 32))
    exif = Image.Exif()
    exif[0x0112] = 6
    read = read_image(encoded(sky_left, "JPEG", quality=95, exif=exif), None)
    assert read.size == (32, 64)
    assert read.getpixel((16, 8))[2] > 200 and read.getpixel((16, 56))[1] > 200


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("exif", [b"Exif\0\0XX nonsense", b"Exif\0\0MM\0*", b"Exif\0\0MM\0*\xff\xff\xff\xff"])
def test_damaged_exif_does_not_refuse_the_picture(kind: str, exif: bytes) -> None:
    assert read_image(encoded(picture(), kind, exif=exif), None).size == (40, 30)


def transparent(mode: str) -> Image.Image:
    clear_left = Image.new("RGBA", (4, 2), (*RED, 255))
    clear_left.paste((0, 0, 0, 0), (0, 0, 2, 2))
    return clear_left.convert(mode)


@pytest.mark.parametrize("kind", ["PNG", "GIF", "WEBP"])
def test_transparency_becomes_white(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    read = read_image(encoded(transparent("RGBA"), kind, **options), None)
    assert read.getpixel((0, 0)) == WHITE and read.getpixel((3, 0)) == RED


def test_half_transparency_mixes_with_white() -> None:
    read = read_image(encoded(Image.new("RGBA", (2, 2), (0, 0, 0, 128))), None)
    assert read.getpixel((0, 0)) == (127, 127, 127)


def test_transparent_grey_palette_and_colour_key_become_white() -> None:
    grey = read_image(encoded(transparent("LA")), None)
    assert grey.getpixel((0, 0)) == WHITE and grey.getpixel((3, 0)) != WHITE
    keyed = read_image(encoded(Image.new("RGB", (2, 2), BLUE), transparency=BLUE), None)
    assert keyed.getpixel((0, 0)) == WHITE
    palette = Image.new("P", (2, 1))
    palette.putpalette([*RED, *GREEN])
    palette.putpixel((1, 0), 1)
    read = read_image(encoded(palette, transparency=b"\x00\xff"), None)
    assert (read.getpixel((0, 0)), read.getpixel((1, 0))) == (WHITE, GREEN)


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    ramp = np.array([[0, 256, 32768, 65535]], np.uint16)
    read = read_image(encoded(Image.fromarray(ramp)), None)
    assert [read.getpixel((x, 0))[0] for x in range(4)] == [0, 1, 128, 255]


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_open_ranges_are_stretched(dtype: type) -> None:
    data = encoded(Image.fromarray(np.array([[-10, 0, 10]], dtype)), "TIFF")
    read = read_image(data, None)
    assert [read.getpixel((x, 0))[0] for x in range(3)] == [0, 127, 255]


def test_not_a_number_is_no_reason_to_fail() -> None:
    data = encoded(Image.fromarray(np.array([[np.nan, 1.0]], np.float32)), "TIFF")
    assert read_image(data, None).size == (2, 1)


def test_a_large_jpeg_is_decoded_at_a_reduced_scale() -> None:
    smooth = picture().resize((1600, 1200), Image.Resampling.BICUBIC)
    data = encoded(smooth, "JPEG", quality=90)
    reduced = read_image(data, None, target=64)
    assert reduced.size == (200, 150)  # an eighth, and still twice the target
    whole = read_image(data, None).resize((64, 64), Image.Resampling.BICUBIC)
    small = reduced.resize((64, 64), Image.Resampling.BICUBIC)
    assert np.abs(np.asarray(whole, int) - np.asarray(small, int)).mean() < 2


def test_a_reduced_scale_never_falls_below_the_target() -> None:
    strip = encoded(picture(2000, 130), "JPEG")
    assert read_image(strip, None, target=100).size == (2000, 130)
    assert read_image(encoded(picture(300, 300)), None, target=10).size == (300, 300)  # PNG: no scales


# What is refused


@pytest.mark.parametrize("data", [b"not a picture", b"\xff\xd8"])
def test_what_is_no_image_is_refused_by_name(data: bytes) -> None:
    assert "cannot read the image a.jpg: it is not a complete picture" in refusal(data, "a.jpg")


def test_postscript_is_not_run() -> None:
    data = encoded(picture(), "EPS")
    assert "it is PostScript, which is not read" in refusal(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP"])
def test_a_truncated_picture_is_refused(kind: str) -> None:
    data = encoded(picture(200, 200), kind)
    message = refusal(data[: len(data) // 2], "half." + kind.lower())
    assert message == f"cannot read the image half.{kind.lower()}: it is cut short"
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


def test_a_decompression_bomb_is_refused_before_it_is_decoded() -> None:
    bomb = png_that_declares(30_000, 30_000)
    assert len(bomb) < 1000
    tracemalloc.start()
    message = refusal(bomb, "bomb.png")
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()
    assert message == "cannot read the image bomb.png: it declares more than 64,000,000 pixels"


def test_the_pixel_limit_is_exact_and_counts_what_is_declared() -> None:
    assert read_image(encoded(picture(40, 30)), None, ImageLimits(pixels=1200)).size == (40, 30)
    assert "more than 1,199 pixels" in refusal(encoded(picture(40, 30)), limits=ImageLimits(pixels=1199))
    # ... also where a JPEG would be decoded to fewer.
    large = encoded(picture(400, 400), "JPEG")
    assert "more than" in refusal(large, limits=ImageLimits(pixels=100_000), target=10)


@pytest.mark.parametrize("size", [(0, 0), (0, 5), (5, 0)])
def test_a_picture_without_pixels_is_refused(size: tuple[int, int]) -> None:
    assert "not a complete picture" in refusal(png_that_declares(*size))


def test_nothing_at_all_is_refused() -> None:
    assert refusal(b"") == "cannot read the image (bytes): it is empty"
    assert "neither bytes nor an address" in refusal(None)
    assert "neither bytes nor an address" in refusal(None, "")


def test_pillow_warns_nobody() -> None:
    bomb = png_that_declares(10_000, 10_000)
    exif = encoded(picture(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x09\x01\x12")
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        Image.open(io.BytesIO(bomb))
        Image.open(io.BytesIO(exif)).getexif()
        assert len(heard) == 2, "Pillow alone warns of both"
        refusal(bomb)
        read_image(exif, None)
        assert len(heard) == 2
        warnings.warn("others are still heard", stacklevel=1)
        assert len(heard) == 3


def test_many_threads_leave_the_warning_filters_as_they_were() -> None:
    data = encoded(picture(300, 300), "JPEG")
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as threads:
        sizes = {image.size for image in threads.map(lambda _: read_image(data, None), range(200))}
    assert sizes == {(300, 300)} and list(warnings.filters) == before


# Addresses


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    path = tmp_path / "a b é.png"
    path.write_bytes(encoded(picture()))
    return path


def test_a_path_a_file_address_and_another_store_give_the_same(stored: Path) -> None:
    with fsspec.open("memory://images/a.png", "wb") as file:
        file.write(stored.read_bytes())
    limits = ImageLimits(stores=("memory",))
    for address in (str(stored), stored.as_uri(), "memory://images/a.png"):
        assert np.array_equal(read_image(None, address, limits), picture())


@pytest.mark.parametrize(
    "scheme", sorted({*fsspec.available_protocols(), "nothing"} - {*STORES, "file", "http", "https"})
)
def test_of_all_that_fsspec_knows_pictures_are_read_from_object_stores_alone(scheme: str) -> None:
    """webhdfs, ftp, sftp and others lead to any host, or to what this machine alone may read."""
    for spelled in (scheme, scheme.upper()):
        said = refusal(None, f"{spelled}://127.0.0.1/a.png")
        assert "(encode.stores)" in said or "another scheme" in said


def test_bytes_are_taken_before_the_address(stored: Path) -> None:
    assert read_image(encoded(Image.new("RGB", (1, 1))), str(stored)).size == (1, 1)


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    missing, folder = str(tmp_path / "absent.png"), str(tmp_path)
    assert refusal(None, missing).endswith("there is no such file")
    assert "absent.png" in refusal(None, missing)
    assert refusal(None, folder).endswith("it is not a file")
    assert refusal(None, "a\0b").endswith("there is no such file")
    assert "too long" in refusal(None, "a" * 5000)
    assert "of this machine" in refusal(None, "file://elsewhere/a.png")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    assert refusal(None, str(tmp_path / "pipe.png")).endswith("it is not a file")


def test_unknown_and_chained_schemes_are_refused() -> None:
    assert "nosuchscheme" in refusal(None, "nosuchscheme://a/b.png").partition(": ")[2]
    # Chains would go round the limits of read_http, or unpack an archive.
    assert "chained" in refusal(None, "simplecache::http://127.0.0.1/a.png")
    assert refusal(None, "http://[::1]:1/a.png").endswith("Connection refused")  # no chain


@pytest.mark.parametrize("address", ["http:///a.png", "https://u:p@example.org/a.png"])
def test_an_address_without_a_host_or_with_a_user_is_named(address: str) -> None:
    assert refusal(None, address).endswith("its address has no host, or a user in it")


def test_too_many_bytes_are_not_read_to_their_end(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    with path.open("wb") as file:
        file.truncate(2**30)  # sparse: a gigabyte that would show in memory
    tracemalloc.start()
    message = refusal(None, str(path), limits=ImageLimits(bytes=1000))
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
    assert message.endswith("it is larger than 1,000 bytes")
    assert refusal(b"x" * 1001, limits=ImageLimits(bytes=1000)).endswith("larger than 1,000 bytes")
    png = encoded(picture())
    assert read_image(png, None, ImageLimits(bytes=len(png))).size == (40, 30)


def test_long_and_secret_addresses_are_shortened() -> None:
    message = refusal(b"x", "https://user:password@host/" + "long/" * 100 + "end.png?token=secret")
    assert "https://host/" in message and "end.png" in message
    assert "password" not in message and "secret" not in message


class Site(http.server.BaseHTTPRequestHandler):
    """What the tests ask of the web."""

    def do_GET(self) -> None:
        path = self.path
        if path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", path.removeprefix("/to/"))
            self.end_headers()
        elif path == "/missing":
            self.send_error(404)
        else:
            self.send_response(200)
            self.send_header("X-Asked-By", self.headers["User-Agent"])
            self.end_headers()
            self.body(path)

    def body(self, path: str) -> None:
        if path == "/a%20b%C3%A9.png":
            self.wfile.write(encoded(picture()))
        try:
            while path == "/endless":
                self.wfile.write(b"x" * 65536)
            while path == "/drip":
                self.wfile.write(b"x")
                time.sleep(0.05)
        except OSError:
            pass
        if path == "/silent":
            time.sleep(1.5)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def site():
    with answering(Site) as at:
        yield at


@pytest.fixture(autouse=True)
def without_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")


def test_http_gives_the_picture_also_behind_a_redirection(site: str) -> None:
    assert np.array_equal(read_image(None, f"{site}/a bé.png"), picture())
    assert np.array_equal(read_image(None, f"{site}/to/{site}/a%20b%C3%A9.png"), picture())


def test_http_errors_are_told(site: str) -> None:
    assert refusal(None, f"{site}/missing").endswith("the server answered 404")
    assert "refused" in refusal(None, "http://127.0.0.1:1/a.png").lower()
    assert refusal(None, f"{site}/empty").endswith("it is empty")


def test_a_redirection_leads_to_no_file(site: str, stored: Path) -> None:
    for elsewhere in (stored.as_uri(), "ftp://127.0.0.1/a.png", "data:image/png;base64,AAAA"):
        message = refusal(None, f"{site}/to/{elsewhere}")
        assert re.search(r"start with http", message), message


def test_http_stops_at_the_byte_limit(site: str) -> None:
    assert "larger than 100,000 bytes" in refusal(None, f"{site}/endless", limits=ImageLimits(bytes=100_000))


@pytest.mark.parametrize("page", ["silent", "drip"])
def test_http_stops_at_the_deadline(site: str, page: str) -> None:
    message = refusal(None, f"{site}/{page}", limits=ImageLimits(seconds=0.3))
    assert message.endswith("it did not arrive in time")


# Never anything but a picture or an ImageError


def picture_or_refusal(data: bytes) -> None:
    try:
        read = read_image(data, "x", ImageLimits(pixels=1_000_000), 8)
    except ImageError as error:
        assert str(error).startswith("cannot read the image x: ")
    else:
        assert read.mode == "RGB" and read.width * read.height > 0


STARTS = [b"", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"II*\0", b"RIFF\0\0\0\0WEBPVP8 "]


@settings(deadline=None, max_examples=300)
@given(start=st.sampled_from(STARTS), rest=st.binary(max_size=300))
def test_any_bytes_are_a_picture_or_refused(start: bytes, rest: bytes) -> None:
    picture_or_refusal(start + rest)


SAMPLES = [
    *(encoded(picture(), kind) for kind in ("JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP", "AVIF")),
    encoded(picture(), "JPEG", progressive=True, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0"),
    encoded(transparent("P")),
    encoded(picture(), "TIFF", compression="tiff_lzw"),
    encoded(picture(), "GIF", save_all=True, append_images=[picture().rotate(90)]),
]


@settings(deadline=None, max_examples=500)
@given(
    sample=st.sampled_from(SAMPLES),
    cut=st.floats(0, 1),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=8),
)
def test_truncated_and_changed_pictures_are_read_or_refused(
    sample: bytes, cut: float, changes: list[tuple[float, int]]
) -> None:
    data = bytearray(sample[: round(cut * len(sample))] if cut < 0.9 else sample)
    for where, value in changes:
        if data:
            data[int(where * len(data))] = value
    picture_or_refusal(bytes(data))


@settings(deadline=None, max_examples=200)
@given(address=st.text(max_size=40), scheme=st.sampled_from(["", "file://", "http://127.0.0.1:1/", "x://"]))
def test_any_address_without_a_picture_is_an_image_error(address: str, scheme: str) -> None:
    with pytest.raises(ImageError):
        read_image(None, f"{scheme}{address}/absent.png")


def test_pictures_that_are_too_small_or_too_narrow_are_filtered() -> None:
    def picture(width: int, height: int) -> bytes:
        data = io.BytesIO()
        Image.new("RGB", (width, height)).save(data, "PNG")
        return data.getvalue()

    limits = ImageLimits(smallest=10, aspect=3.0)
    assert read_image(picture(10, 30), None, limits).size == (10, 30)
    with pytest.raises(ImageError, match=r"^filtered: a side of 9 pixels, less than encode.min_side 10"):
        read_image(picture(9, 20), None, limits)
    with pytest.raises(ImageError, match=r"^filtered: 31 by 10 pixels, narrower than encode.max_aspect 3"):
        read_image(picture(31, 10), None, limits)


# Kinds that are asked for, and kinds that are refused by name

# 32 by 16 pixels of (200, 40, 90), written by libheif.
HEIC = base64.b64decode(
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAXxtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAAACJpbG9j"
    "AAAAAERAAAEAAQAAAAABoAABAAAAAAAAADEAAAAjaWluZgAAAAAAAQAAABVpbmZlAgAAAAABAABodmMxAAAAAA5waXRtAAAAAAABAAAA/Glw"
    "cnAAAADcaXBjbwAAAHVodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMAAAMAHroCQGEAAQApQgEBA3AA"
    "AAMAkAAAAwAAAwAeoCCBBZbqrprm4CGgwIAAAAyAAAADAIRiAAEABkQBwXPBiQAAABNjb2xybmNseAABAA0ABoAAAAAUaXNwZQAAAAAAAABA"
    "AAAAQAAAAChjbGFwAAAAIAAAAAEAAAAQAAAAAf///+AAAAAC////0AAAAAIAAAAQcGl4aQAAAAADCAgIAAAAGGlwbWEAAAAAAAAAAQABBYEC"
    "AwWEAAAAOW1kYXQAAAAtKAGvEyFgY0D1JyL//xsKfeuf9V9lhZ3K6MFb8vrA9mSbwPOqkZ6Ah2mnMBV4"
)


def test_a_phone_s_heic_is_read() -> None:
    read = read_image(HEIC, None)
    assert read.size == (32, 16)
    assert np.abs(np.asarray(read, int) - (200, 40, 90)).max() <= 6


def test_a_heic_is_held_to_the_limits() -> None:
    assert "declares more than 500 pixels" in refusal(HEIC, limits=ImageLimits(pixels=500))
    assert "cannot read the image (bytes)" in refusal(HEIC[:-20])
    assert "cannot read the image (bytes)" in refusal(HEIC[:60])


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"<svg xmlns='x'/>", "it is an SVG drawing, which is not read: make a PNG of it"),
        (b"\xef\xbb\xbf<?xml version='1.0'?>\n<!-- a --><svg/>", "it is an SVG drawing"),
        (b"<!DOCTYPE html><p>hot-link protection", "it is a web page and no picture"),
        (b"\0\0\0\x0cjP  \r\n", "it is JPEG 2000, which is not read: make a JPEG or PNG of it"),
        (b"\0\0\1\0\1\0", "it is an icon (ICO)"), (b"%PDF-1.7", "it is a PDF"),
        (b"no picture", "it is not a complete picture of a known kind (JPEG, PNG"),
    ],
)  # fmt: skip
def test_a_kind_that_is_not_read_is_named(data: bytes, says: str) -> None:
    assert says in refusal(data)


@pytest.mark.parametrize("chunk", ["text", "profile"])
def test_a_png_with_much_metadata_is_read(chunk: str) -> None:
    """More than the 1 MiB that Pillow would take."""
    more = zlib.compress(b"x" * 3_000_000)
    body = b"note\0\0" + more if chunk == "text" else b"profile\0\0" + more
    whole = encoded(picture())
    at = whole.index(b"IDAT") - 4
    data = whole[:at] + png_chunk(b"zTXt" if chunk == "text" else b"iCCP", body) + whole[at:]
    assert np.array_equal(read_image(data, None), picture())


def test_a_png_with_endless_metadata_is_refused() -> None:
    whole = encoded(picture())
    at = whole.index(b"IDAT") - 4
    bomb = png_chunk(b"zTXt", b"note\0\0" + zlib.compress(bytes(100 * 2**20)))
    assert "its metadata is larger than 33,554,432 bytes: write it without" in refusal(
        whole[:at] + bomb + whole[at:]
    )


def test_what_is_no_address_says_how_one_begins() -> None:
    assert "an address begins with https://" in refusal(None, '"http://example.org/a.jpg"')
