"""What one image may cost, and the errors of images that cannot be read."""

from __future__ import annotations

from dataclasses import dataclass

from gemel_ray.errors import Mistake

STORES = ("s3", "gs", "gcs", "az", "abfs", "abfss")  # object stores, whose addresses name no host


class ImageError(Mistake):
    """An image cannot be read; the message names it and says why."""


class Busy(ImageError):
    """A server, or the way to it, that may answer later: after `wait` seconds, if it says so."""

    def __init__(self, why: str, wait: float | None = None) -> None:
        super().__init__(why)
        self.wait = wait


FILTERED = "filtered:"  # what the reason of something whole that is not wanted begins with


class Filtered(ImageError):
    """A whole image that is not wanted; the message begins with "filtered:"."""


@dataclass(frozen=True)
class ImageLimits:
    """What one image may cost: declared pixels, encoded bytes, seconds of fetching over http. Images with a
    side below `smallest` pixels or a ratio of sides above `aspect` (0: any) are left out. `stores`: the
    schemes that are read."""

    pixels: int = 64_000_000
    bytes: int = 32 * 2**20
    seconds: float = 10.0
    smallest: int = 0
    aspect: float = 0.0
    stores: tuple[str, ...] = STORES


LIMITS = ImageLimits()


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


def reason(error: BaseException) -> str:
    """What went wrong, as one short line."""
    if isinstance(error, TimeoutError):
        return "it did not arrive in time"
    text = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return " ".join(text.split())[:120] or type(error).__name__
