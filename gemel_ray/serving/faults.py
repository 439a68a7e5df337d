"""What goes wrong with a request, in one sentence and with one of eight kinds.

Knows nothing of who asked.
"""

from __future__ import annotations

from typing import Literal

Kind = Literal[
    "bad_request", "too_large", "unauthorized", "forbidden", "busy", "timeout", "not_ready", "internal"
]
STATUS: dict[Kind, int] = {
    "bad_request": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "too_large": 413,
    "internal": 500,
    "busy": 503,
    "not_ready": 503,
    "timeout": 504,
}


class Fault(Exception):
    """An answer that is an error; `retry` is for Retry-After, in seconds."""

    def __init__(self, kind: Kind, message: str, retry: int | None = None) -> None:
        super().__init__(message)
        self.kind, self.message, self.retry = kind, message, retry

    @property
    def status(self) -> int:
        return STATUS[self.kind]

    def headers(self) -> dict[str, str]:
        named = {"unauthorized": {"WWW-Authenticate": "Bearer"}}.get(self.kind, {})
        return named | ({"Retry-After": str(self.retry)} if self.retry is not None else {})

    def body(self, request_id: str) -> dict[str, dict[str, str]]:
        return {"error": {"message": self.message, "kind": self.kind, "request_id": request_id}}
