"""Pictures over http, the trusting way: of any host, through the machine's proxy if it has one.

models/web.py is the strict way. Both say alike what came of it. Knows nothing of pictures.
"""

from __future__ import annotations

import errno
import socket
import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from urllib import request
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlsplit

import idna

from gemel_ray.models.limits import Busy, ImageError, ImageLimits, reason

HEADERS = {"User-Agent": "gemel-ray (image reader)"}  # Wikimedia refuses urllib's own
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
            raise ImageError(f"its host {host!r:.60} is no name of a host") from error
        parts = parts._replace(netloc=f"{user}{at}{named}{colon}{port}")
    return quote(parts.geturl(), safe="%/:?&=#+~!$,;@()*'[]")


def read_http(address: str, limits: ImageLimits) -> bytes:
    deadline = time.monotonic() + limits.seconds
    try:
        url = ascii_url(address)
        if not urlsplit(url).hostname or urlsplit(url).username is not None:
            raise ImageError("its address has no host, or a user in it")
        asked = request.Request(url, headers=HEADERS)
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
        raise unanswered(error.code, error.headers.get("Retry-After")) from error
    except ImageError:
        raise
    except (OSError, HTTPException, ValueError) as error:
        raise broken(error) from error


def web() -> request.OpenerDirector:
    """An opener of http and https alone: a redirection leads to no file and no FTP server."""
    opener = request.OpenerDirector()
    for part in (
        request.ProxyHandler, request.HTTPHandler, request.HTTPSHandler, request.UnknownHandler,
        request.HTTPRedirectHandler, request.HTTPDefaultErrorHandler, request.HTTPErrorProcessor,
    ):  # fmt: skip
        opener.add_handler(part())
    return opener


def unanswered(status: int, retry_after: str | None) -> ImageError:
    """What a status other than 200 says of the picture."""
    said = f"the server answered {status}"
    return Busy(said, _seconds(retry_after)) if status in _BUSY else ImageError(said)


def broken(error: Exception) -> ImageError:
    """What it says of the picture that a connection was not made, or broke. What did not arrive in time has
    had its time."""
    if isinstance(error, URLError) and isinstance(error.reason, Exception):
        error = error.reason
    if isinstance(error, socket.gaierror):
        passing = error.errno == socket.EAI_AGAIN
        return (Busy if passing else ImageError)("its host is not known")
    passing = isinstance(error, (ConnectionError, HTTPException))
    passing |= isinstance(error, OSError) and error.errno in _CUT_OFF
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
