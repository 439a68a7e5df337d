"""Over HTTP: how a URL is asked for, and what a failure says. Knows nothing of pictures and connections."""

from __future__ import annotations

import errno
import socket
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import quote, urlsplit

import httpcore
import idna

from gemel_ray.models.limits import Busy, ImageError, reason

HEADERS: dict[bytes | str, bytes | str] = {
    "User-Agent": "gemel-ray (image reader)",  # Wikimedia refuses libraries' own
    "Accept": "image/*",
    "Accept-Encoding": "identity",
}
_BUSY = (429, 502, 503, 504)
_CUT_OFF = (errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH)


def ascii_url(address: str) -> str:
    """A URL as it is asked for: its host by IDNA, all else percent-encoded, without white space at its ends.
    Raises ImageError for a host that is no name."""
    parts = urlsplit(address.strip())
    if not parts.netloc.isascii():
        user, at, place = parts.netloc.rpartition("@")
        host, colon, port = place.partition(":")
        try:
            named = idna.encode(host, uts46=True).decode()
        except idna.IDNAError as error:
            raise ImageError(f"its host {host!r:.60} is not the name of a host") from error
        parts = parts._replace(netloc=f"{user}{at}{named}{colon}{port}")
    return quote(parts.geturl(), safe="%/:?&=#+~!$,;@()*'[]")


def unanswered(status: int, retry_after: str | None) -> ImageError:
    """What a status other than 200 says of the picture."""
    said = f"the server answered {status}"
    return Busy(said, _seconds(retry_after)) if status in _BUSY else ImageError(said)


def broken(error: Exception) -> ImageError:
    """What it says of the picture that a connection was not made, or broke. What did not arrive in time has
    had its time."""
    if isinstance(error, socket.gaierror):
        passing = error.errno == socket.EAI_AGAIN
        return (Busy if passing else ImageError)("its host is not known")
    if isinstance(error, httpcore.RemoteProtocolError):
        return Busy(f"the server's answer is not HTTP, or ends early ({error})")
    passing = isinstance(error, ConnectionError) or (isinstance(error, OSError) and error.errno in _CUT_OFF)
    return (Busy if passing else ImageError)(reason(error))


def _seconds(said: str | None) -> float | None:
    """Of Retry-After: seconds, or a date, by this machine's clock."""
    if not said:
        return None
    if said.isascii() and said.isdigit():
        return float(said)
    try:
        until = parsedate_to_datetime(said)
    except ValueError:
        return None
    until = until if until.tzinfo else until.replace(tzinfo=UTC)
    return max(0.0, (until - datetime.now(UTC)).total_seconds())
