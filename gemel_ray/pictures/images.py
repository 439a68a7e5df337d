"""From outside bytes, or an address, to a decoded picture: the only place that decodes pictures.

Whatever the input, the result is an RGB picture or an `ImageError` that says in
one sentence which image and why: missing, too large, not a picture, cut short,
a decompression bomb. What a picture declares is checked before anything is
decoded. Knows nothing of models, batches or rows, and accepts any host in an
address.
"""

from __future__ import annotations

import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib import request

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError

from gemel_ray.pictures.limits import LIMITS, Filtered, ImageError, ImageLimits, reason, shown
from gemel_ray.pictures.web import Web, is_public_or_private

# A text or colour profile of a PNG, unpacked: many programs write more than Pillow's default of 1 MiB. Pillow
# allows 64 MiB for all texts of one picture.
_METADATA = 32 * 2**20
PngImagePlugin.MAX_TEXT_CHUNK = _METADATA
_PLAIN = 8  # bytes of memory a pixel, while it is decoded
_COSTLY = {"AVIF": 16, "HEIF": 16, "WEBP": 16}  # bytes per pixel: decoded beside Pillow's copy
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*")


def read_image(
    data: bytes | None, address: str | None, limits: ImageLimits = LIMITS, target: int | None = None
) -> Image.Image:
    """The picture in `data`, else the one at `address`: RGB, upright, on white, its first frame.

    address: a local path, file://, http(s):// or one of `limits.stores` (s3://...).
    target: the model's input side; a JPEG far larger is decoded at a reduced scale,
    never to less than twice the target on either side.
    Raises ImageError, whatever is wrong with the image.
    """
    data = image_bytes(data, address, limits)
    with naming_image(address):
        return decode(data, limits, target)


def image_bytes(data: bytes | None, address: str | None, limits: ImageLimits = LIMITS) -> bytes:
    """The encoded picture that `read_image` would decode. Raises ImageError as it does."""
    with naming_image(address):
        if data is None:
            data = fetch(address, limits)
        if not data:
            raise ImageError("it is empty")
        if len(data) > limits.bytes:
            raise ImageError(f"it is larger than {limits.bytes:,} bytes")
        return data


def fetch(address: str | None, limits: ImageLimits) -> bytes:
    """The bytes at the address; one byte more than the limit means that there are too many."""
    if not address:
        raise ImageError("there are neither bytes nor an address")
    if "://" not in address:
        return read_file(Path(address), limits)
    scheme = address.partition("://")[0].strip().lower()
    if "::" in address and scheme not in ("http", "https"):  # in those it is part of an IPv6 address
        raise ImageError("chained addresses are not read")
    if not _SCHEME.fullmatch(scheme):
        raise ImageError("an address begins with https://, s3:// or another scheme, or is a path")
    if scheme == "file":
        host, slash, path = address[len("file://") :].partition("/")
        if host not in ("", "localhost"):
            raise ImageError("a file:// address names a file of this machine")
        return read_file(Path(request.url2pathname(slash + path)), limits)
    if scheme in ("http", "https"):
        return _web(limits).fetch(address)
    if scheme not in limits.stores:  # fsspec knows many more, and some reach any host
        raise ImageError(f"pictures are not read by {scheme}:// (encode.stores)")
    return read_remote(address, limits)


@cache
def _web(limits: ImageLimits) -> Web:
    """A client for any host, since the user chose the address."""
    return Web(limits, allowed=is_public_or_private, proxies=True)


def is_web(address: str) -> bool:
    """Whether it is fetched over http."""
    return address.lstrip().lower().startswith(("http://", "https://"))


def read_file(path: Path, limits: ImageLimits) -> bytes:
    try:
        if not path.is_file():  # a folder, or a pipe, which might never end
            raise ImageError("it is not a file" if path.exists() else "there is no such file")
        with path.open("rb") as file:
            return file.read(limits.bytes + 1)
    except OSError as error:
        raise ImageError(reason(error)) from error


def read_remote(address: str, limits: ImageLimits) -> bytes:
    import fsspec

    try:
        with fsspec.open(address, "rb") as file:
            return bytes(file.read(limits.bytes + 1))
    except Exception as error:  # every store has different errors
        raise ImageError(reason(error)) from error


def decode(data: bytes, limits: ImageLimits, target: int | None) -> Image.Image:
    """The picture in the bytes as RGB; raises ImageError with the bare reason."""
    too_large = f"it declares more than {limits.pixels:,} pixels"
    try:
        with silenced_warnings:
            image: Image.Image = Image.open(BytesIO(data), formats=formats(data))
            if image.width * image.height > limits.pixels:
                raise ImageError(too_large)
            most = _PLAIN * limits.pixels  # costlier kinds may have fewer pixels
            if image.width * image.height * _decoding_bytes(image) > most:
                raise ImageError(f"it would take more than {most:,} bytes to decode")
            _check_size(image.size, limits)
            if target is not None:
                image.draft(None, (2 * target, 2 * target))
            image.load()
            return rgb(upright(image))
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(not_a_picture(data)) from error
    except Image.DecompressionBombError as error:
        raise ImageError(too_large) from error
    except Exception as error:  # Pillow raises half of Python's exceptions for damage
        if "MAX_TEXT" in str(error):
            raise ImageError(f"its metadata is larger than {_METADATA:,} bytes: write it without") from error
        cut = isinstance(error, EOFError) or "truncated" in str(error).lower()
        raise ImageError("it is cut short" if cut else f"it is damaged ({reason(error)})") from error


def _decoding_bytes(image: Image.Image) -> int:
    """Peak memory per pixel in bytes while it is converted to RGB, as measured."""
    return _COSTLY.get(image.format or "", 12 if image.mode[0] in "IF" else _PLAIN)


def _check_size(size: tuple[int, int], limits: ImageLimits) -> None:
    short, long = sorted(size)
    if short < limits.smallest:
        raise Filtered(f"filtered: a side of {short} pixels, less than encode.min_side {limits.smallest}")
    if limits.aspect and long > limits.aspect * short:
        raise Filtered(
            f"filtered: {long} by {short} pixels, narrower than encode.max_aspect {limits.aspect:g}"
        )


class SilencedWarnings:
    """Pillow's warnings ignored while any thread decodes.

    Overlapping scopes of warnings.catch_warnings in threads restore each other's
    filters, so the first thread opens one scope and the last one closes it.
    """

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._scope = warnings.catch_warnings()
                self._scope.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.")
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._scope.__exit__(None, None, None)


silenced_warnings = SilencedWarnings()


# Kinds of pictures by their first bytes: some decoders are loaded with the first such picture; messages about
# bytes that no decoder takes.


# Without formats that run other programs (EPS) or declare a second size inside (ICO, JPEG 2000).
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF")
_HEIF = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_STARTS = {
    b"\0\0\0\x0cjP": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"\0\0\1\0": "an icon (ICO)",
    b"8BPS": "a Photoshop file",
    b"%PDF": "a PDF",
    b"%!PS": "PostScript",
    b"PK\3\4": "a ZIP archive",
    b"\x1f\x8b": "packed with gzip",
    b"RIFF": "a RIFF file other than WebP",
}


def formats(data: bytes) -> tuple[str, ...]:
    """Pillow's formats that bytes may be decoded as."""
    if data[4:8] == b"ftyp" and data[8:12] in _HEIF:
        _register_heif()
        return ("HEIF",)
    return FORMATS


@cache
def _register_heif() -> None:
    import pi_heif

    pi_heif.register_heif_opener()


def not_a_picture(data: bytes) -> str:
    """The message about bytes of no known kind, with a remedy where there is one."""
    known = f"it is not a complete picture of a known kind ({', '.join(FORMATS)}, HEIC)"
    start = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if b"<svg" in start:
        return "it is an SVG drawing, which is not read: make a PNG of it"
    if start.startswith((b"<!doctype html", b"<html")):
        return "it is a web page and no picture"
    kind = next((kind for first, kind in _STARTS.items() if data.startswith(first)), None)
    return f"it is {kind}, which is not read: make a JPEG or PNG of it" if kind else known


# A decoded picture normalised: upright, RGB of 8 bits, on white. Knows nothing of files.


_AT_ONCE = 2**20  # pixels


def upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF orientation says; unreadable EXIF turns nothing."""
    with suppress(Exception):  # damaged metadata does not affect the pixels
        ImageOps.exif_transpose(image, in_place=True)
    return image


def rgb(image: Image.Image) -> Image.Image:
    """Any mode as RGB of 8 bits: 16-bit greys are scaled, not clipped; transparency becomes white."""
    if image.mode[0] in "IF":
        return eight_bits(image).convert("RGB")
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    image = image if image.mode == "RGBA" else image.convert("RGBA")
    canvas = Image.new("RGB", image.size, "white")
    canvas.paste(image, mask=image)
    return canvas


def eight_bits(image: Image.Image) -> Image.Image:
    """A grey picture of 16 bits, or of a range known only from its pixels, as mode L."""
    values = np.asarray(image)
    if image.mode.startswith("I;16"):
        return Image.fromarray((values >> 8).astype(np.uint8))
    low = min(float(_finite(rows).min()) for rows in _bands(values))
    high = max(float(_finite(rows).max()) for rows in _bands(values))
    grey = np.empty(values.shape, np.uint8)
    for rows, into in zip(_bands(values), _bands(grey), strict=True):
        into[:] = (_finite(rows) - low) * (255 / max(high - low, 1e-9))
    return Image.fromarray(grey)


def _bands(values: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    """Some rows at a time: a whole large picture in 64 bits takes gigabytes."""
    step = max(1, _AT_ONCE // values.shape[1])
    return (values[at : at + step] for at in range(0, len(values), step))


def _finite(rows: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    return np.nan_to_num(rows.astype(np.float64))


@contextmanager
def naming_image(address: str | None) -> Iterator[None]:
    """Make an ImageError from inside name the image."""
    try:
        yield
    except Filtered:
        raise
    except ImageError as error:
        raise ImageError(f"cannot read the image {shown(address)}: {error}") from error.__cause__
