"""A Qdrant server: reached over HTTP, TLS or gRPC, checked before the work, and waited for.

A refusal, or no answer, is one sentence that says what to do. Only this file imports qdrant_client. The
server's key is in QDRANT_API_KEY. Knows nothing of builds: see qdrant.py.
"""

from __future__ import annotations

import json
import logging
import os
import re
import ssl
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from gemel_ray.errors import Mistake

if TYPE_CHECKING:
    from gemel_ray.settings import Vectors as Options

log = logging.getLogger(__name__)
Say = Callable[[str], None]

OLDEST: Final = (1, 16)  # the first whose collections have metadata
SHORT_WAIT: Final = 3 / 60  # minutes to wait for a server while a user waits for an answer
_QUIET, _LONGEST_PAUSE = 3.0, 5.0  # seconds without answer before it is reported; between two attempts
_KEY: Final = "QDRANT_API_KEY"


class Refused(OSError):
    """The server answers, and trying again would not help."""


class Server:
    """A client whose calls raise Refused, or ConnectionError if there is no answer for `wait` minutes (by
    default those of the options). For tests the address may be ":memory:" or a folder: qdrant-client's
    imitation of a server, in this process."""

    def __init__(self, options: Options, wait: float | None = None) -> None:
        from qdrant_client import QdrantClient, models

        self.models, self.options = models, options
        self.wait = 60 * (options.wait if wait is None else wait)
        self.imitated = "://" not in options.address
        if self.imitated:
            where = {"location": ":memory:"} if options.address == ":memory:" else {"path": options.address}
            self.host, self.name, self.client = options.address, "vectors", QdrantClient(**where)
            return
        self.host, _, self.name = options.address.rpartition("/")
        with warnings.catch_warnings():  # about a key sent in clear text: see docs/security.md
            warnings.simplefilter("ignore")
            self.client = QdrantClient(
                url=self.host, api_key=os.environ.get(_KEY), timeout=60, check_compatibility=False,
                **_ways(options),
            )  # fmt: skip

    def close(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.client.close()

    def ask(self, call: Callable[..., Any], *given: Any, **named: Any) -> Any:
        """Call the client; repeat, with growing pauses, while there is no answer or the server is busy.
        Waiting is reported once."""
        began, pause, reported = time.monotonic(), 0.2, False
        while True:
            try:
                answer = call(*given, **named)
            except Exception as fault:
                reason = self._retry_reason(fault)
                waited = time.monotonic() - began
                if waited >= self.wait:
                    raise ConnectionError(
                        f"no Qdrant server answers at {self.host} (waited {_span(waited)}): {reason}; start "
                        "it, or correct vectors.address"
                    ) from fault
            else:
                if reported:
                    log.warning("the Qdrant server at %s answers again", self.host)
                return answer
            if waited >= _QUIET and not reported:
                span = _span(self.wait)
                log.warning("no Qdrant server answers at %s (%s); waiting up to %s", self.host, reason, span)
                reported = True
            time.sleep(min(pause, max(0.0, self.wait - waited)))
            pause = min(2 * pause, _LONGEST_PAUSE)

    def check(self, say: Say) -> str:
        """Its version. Raises Refused unless it is a Qdrant server of a usable version that accepts the
        key."""
        version = str(self.ask(self.client.info).version)
        if fault := _unfit(version):
            raise Refused(f"the Qdrant server at {self.host} {fault}")
        if odd := _strange(version):
            say(f"the Qdrant server at {self.host} {odd}")
        self.has(self.name)
        return version

    def has(self, collection: str) -> bool:
        return bool(self.ask(self.client.collection_exists, collection))

    def _retry_reason(self, fault: Exception) -> str:
        """Why trying again may help; if it does not, raises Refused, or what is not the server's fault."""
        status, words = _answered(fault)
        if status is None:
            raise fault
        if status in (401, 403):
            raise Refused(f"the Qdrant server at {self.host} refuses {_of_key(status, words)}") from fault
        if "CERTIFICATE_VERIFY_FAILED" in words:
            raise Refused(
                f"the certificate of {self.host} is not trusted ({words}): name the file of the authority "
                "that signed it in vectors.ca"
            ) from fault
        if status == 0:
            raise Refused(f"what answers at {self.host} is not a Qdrant server: {words}") from fault
        if status < 500 and status != 429:
            raise Refused(f"the Qdrant server at {self.host} refuses ({status}): {words}") from fault
        return words


def _ways(options: Options) -> dict[str, Any]:
    """The client's arguments for trusted certificates and gRPC. Raises ValueError if vectors.ca cannot be
    read."""
    ways: dict[str, Any] = {}
    if options.grpc:
        ways |= {"prefer_grpc": True, "grpc_port": options.grpc}
    if options.ca:
        try:
            ways["verify"] = ssl.create_default_context(cafile=options.ca)
        except OSError as fault:  # includes SSLError
            raise Mistake(f"vectors.ca: {options.ca} cannot be read as certificates: {fault}") from fault
        ways["grpc_options"] = {"root_certificates": Path(options.ca).read_bytes()}
    return ways


def _answered(fault: Exception) -> tuple[int | None, str]:
    """The HTTP status of an error of the client (503: no answer; 0: an answer that is not Qdrant's; None: not
    the server's fault), and the reason in one line."""
    import grpc
    from pydantic import ValidationError
    from qdrant_client.common.client_exceptions import QdrantException
    from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

    if isinstance(fault, UnexpectedResponse):
        return fault.status_code or 503, _line(_error(fault.content) or str(fault))
    broken = ValidationError | json.JSONDecodeError
    if isinstance(fault, broken) or isinstance(getattr(fault, "source", None), broken):
        return 0, "its answer is none of Qdrant's"
    if isinstance(fault, ResponseHandlingException):
        return 503, _line(str(fault.source)) or type(fault.source).__name__
    if isinstance(fault, grpc.RpcError) and isinstance(fault, grpc.Call):
        statuses = {
            grpc.StatusCode.UNAUTHENTICATED: 401,
            grpc.StatusCode.PERMISSION_DENIED: 403,
            grpc.StatusCode.UNAVAILABLE: 503,
            grpc.StatusCode.DEADLINE_EXCEEDED: 503,
            grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
        }
        return statuses.get(fault.code(), 400), _line(str(fault.details()))
    return (503, _line(str(fault))) if isinstance(fault, QdrantException) else (None, "")


def _of_key(status: int, words: str) -> str:
    """The message about a key that the server refuses, and what to do."""
    if not os.environ.get(_KEY):
        return f"to be asked without a key ({words}): set {_KEY}"
    if status == 403:
        return f"this with the key in {_KEY} ({words}): it may be for reading only, set one that is not"
    return f"the key in {_KEY} ({words}): set the right one"


def _error(content: bytes) -> str:
    try:
        return str(json.loads(content)["status"]["error"])
    except (ValueError, TypeError, KeyError):
        return content.decode(errors="replace")[:200]


def _line(words: str) -> str:
    return " ".join(words.split())


def _numbers(version: str) -> tuple[int, int]:
    """Major and minor; zeros if it has neither."""
    found = re.match(r"(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _client() -> str:
    from importlib.metadata import version

    return version("qdrant-client")


def _unfit(version: str) -> str:
    """Why a server of this version cannot be used; empty if it can."""
    server, client = _numbers(version), _numbers(_client())
    if server[0] == client[0] and server >= OLDEST:
        return ""
    oldest = f"{client[0]}.{OLDEST[1]}"
    return f"has the version {version}, and qdrant-client {_client()} needs {oldest} or later: update it"


def _strange(version: str) -> str:
    """The warning for a server that may work, although Qdrant does not guarantee it."""
    if abs(_numbers(version)[1] - _numbers(_client())[1]) <= 1:
        return ""
    return f"has the version {version}, more than one minor version from qdrant-client {_client()}: update it"


def _span(seconds: float) -> str:
    return f"{seconds / 60:.3g} min" if seconds >= 60 else f"{seconds:.0f} s"
