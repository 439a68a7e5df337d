"""From outside bytes, or an address, to a decoded picture: the one way in.

Whatever a stranger hands over, the answer is an RGB picture or an `ImageError`
that says in one sentence which image and why: missing, too large, not a
picture, cut short, a decompression bomb. What a picture declares is checked
before anything is decoded. Knows nothing of models, batches or rows, and not
yet which hosts may be asked: `read_http` follows any http(s) address.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from io import BytesIO
from pathlib import Path
from urllib import request
from urllib.error import HTTPError, URLError
from urllib.parse import quote

from PIL import Image, UnidentifiedImageError

from gemel_ray.models.pixels import rgb, upright

# Not the formats that run other programs (EPS) or hide a second size inside (ICO, JPEG 2000).
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF")
HEADERS = {"User-Agent": "gemel-ray (image reader)"}  # Wikimedia refuses urllib's own


class ImageError(ValueError):
    """An image that cannot be had; the message names it and says why."""


@dataclass(frozen=True)
class ImageLimits:
    """What one image may cost: declared pixels, encoded bytes, seconds of fetching over http; and what is
    too little to be one: pixels of the shorter side, and how often that goes into the longer (0: any)."""

    pixels: int = 64_000_000
    bytes: int = 32 * 2**20
    seconds: float = 10.0
    smallest: int = 0
    aspect: float = 0.0


LIMITS = ImageLimits()


def read_image(
    data: bytes | None, address: str | None, limits: ImageLimits = LIMITS, target: int | None = None
) -> Image.Image:
    """The picture in `data`, else the one at `address`: RGB, upright, on white, its first frame.

    address: a local path, file://, http(s):// or another fsspec address (s3://...).
    target: the model's input side; a JPEG far larger is decoded at a reduced scale,
    never to less than twice the target on either side.
    Raises ImageError, whatever is wrong with the image.
    """
    data = image_bytes(data, address, limits)
    with told_of(address):
        return decode(data, limits, target)


def image_bytes(data: bytes | None, address: str | None, limits: ImageLimits = LIMITS) -> bytes:
    """The encoded picture that `read_image` would decode. Raises ImageError as it does."""
    with told_of(address):
        if data is None:
            data = fetch(address, limits)
        if not data:
            raise ImageError("it is empty")
        if len(data) > limits.bytes:
            raise ImageError(f"it is larger than {limits.bytes:,} bytes")
        return data


@contextmanager
def told_of(address: str | None) -> Iterator[None]:
    """An ImageError from inside names the image."""
    try:
        yield
    except Filtered:
        raise
    except ImageError as error:
        raise ImageError(f"cannot read the image {shown(address)}: {error}") from error.__cause__


def shown(address: str | None) -> str:
    """The address as a message may show it: short, one line, without password or query."""
    if not address:
        return "(bytes)"
    if "://" in address:
        scheme, _, rest = address.partition("://")
        host, slash, path = rest.partition("?")[0].partition("/")
        address = f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"
    address = "".join(letter if letter.isprintable() else "?" for letter in address)
    return address if len(address) <= 80 else f"{address[:38]}...{address[-39:]}"


def fetch(address: str | None, limits: ImageLimits) -> bytes:
    """The bytes at the address; one more than the limit says that there are too many."""
    if not address:
        raise ImageError("there are neither bytes nor an address")
    if "://" not in address:
        return read_file(Path(address), limits)
    if "::" in address:
        raise ImageError("chained addresses are not read")
    scheme = address.partition("://")[0].lower()
    if scheme == "file":
        host, slash, path = address[len("file://") :].partition("/")
        if host not in ("", "localhost"):
            raise ImageError("a file:// address names a file of this machine")
        return read_file(Path(request.url2pathname(slash + path)), limits)
    if scheme in ("http", "https"):
        return read_http(address, limits)
    return read_remote(address, limits)


def is_web(address: str) -> bool:
    """Whether it is fetched over http."""
    return address.lower().startswith(("http://", "https://"))


def read_file(path: Path, limits: ImageLimits) -> bytes:
    try:
        if not path.is_file():  # else a folder, or a pipe, which might never end
            raise ImageError("it is not a file" if path.exists() else "there is no such file")
        with path.open("rb") as file:
            return file.read(limits.bytes + 1)
    except OSError as error:
        raise ImageError(reason(error)) from error


def read_http(address: str, limits: ImageLimits) -> bytes:
    deadline = time.monotonic() + limits.seconds
    try:
        asked = request.Request(quote(address, safe="%/:?&=#+~!$,;@()*'[]"), headers=HEADERS)
        with web().open(asked, timeout=limits.seconds) as answer:
            received = bytearray()
            # read1 returns with what has come: a server that drips cannot outlast the deadline.
            while len(received) <= limits.bytes and (part := answer.read1(2**16)):
                received += part
                if time.monotonic() > deadline:
                    raise TimeoutError
            return bytes(received[: limits.bytes + 1])
    except HTTPError as error:
        error.close()
        raise ImageError(f"the server answered {error.code}") from error
    except (OSError, HTTPException, ValueError) as error:
        raise ImageError(reason(error)) from error


def web() -> request.OpenerDirector:
    """An opener of http and https alone: a redirection leads to no file and no FTP server."""
    opener = request.OpenerDirector()
    for part in (
        request.ProxyHandler, request.HTTPHandler, request.HTTPSHandler, request.UnknownHandler,
        request.HTTPRedirectHandler, request.HTTPDefaultErrorHandler, request.HTTPErrorProcessor,
    ):  # fmt: skip
        opener.add_handler(part())
    return opener


def read_remote(address: str, limits: ImageLimits) -> bytes:
    import fsspec

    try:
        with fsspec.open(address, "rb") as file:
            return bytes(file.read(limits.bytes + 1))
    except Exception as error:  # every store has its own errors
        raise ImageError(reason(error)) from error


def reason(error: BaseException) -> str:
    """What went wrong, as one short line."""
    if isinstance(error, URLError) and isinstance(error.reason, BaseException):
        error = error.reason
    if isinstance(error, TimeoutError):
        return "it did not arrive in time"
    said = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return " ".join(said.split())[:120] or type(error).__name__


def decode(data: bytes, limits: ImageLimits, target: int | None) -> Image.Image:
    """The picture in the bytes as RGB; raises ImageError with the bare reason."""
    too_large = f"it declares more than {limits.pixels:,} pixels"
    try:
        with silence:
            image: Image.Image = Image.open(BytesIO(data), formats=FORMATS)
            if image.width * image.height > limits.pixels:
                raise ImageError(too_large)
            _worth_it(image.size, limits)
            if target is not None:
                image.draft(None, (2 * target, 2 * target))
            image.load()
            return rgb(upright(image))
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(f"it is no whole picture of a known kind ({', '.join(FORMATS)})") from error
    except Image.DecompressionBombError as error:
        raise ImageError(too_large) from error
    except Exception as error:  # Pillow meets damage with half of Python's exceptions
        cut = isinstance(error, EOFError) or "truncated" in str(error).lower()
        raise ImageError("it is cut short" if cut else f"it is damaged ({reason(error)})") from error


class Filtered(ImageError):
    """A whole image that is not wanted; the message begins with "filtered:"."""


def _worth_it(size: tuple[int, int], limits: ImageLimits) -> None:
    short, long = sorted(size)
    if short < limits.smallest:
        raise Filtered(f"filtered: a side of {short} pixels, less than encode.smallest {limits.smallest}")
    if limits.aspect and long > limits.aspect * short:
        raise Filtered(f"filtered: {long} by {short} pixels, narrower than encode.aspect {limits.aspect:g}")


class Silence:
    """Pillow's warnings ignored while any thread decodes.

    Scopes of warnings.catch_warnings that overlap in threads restore each
    other's filters, so the first thread in opens one and the last one closes it.
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


silence = Silence()
