"""A client of the endpoint, for programs that should not load a model themselves.

    with Client("http://127.0.0.1:8000") as client:
        links = client.link("A flag with the mark of AWS.", image=Path("flag.jpg"), mentions=["AWS"])

Needs httpx and nothing else of the project: no torch, no Ray, no Arrow.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from gemel_ray.errors import GemelError

Link = dict[str, Any]  # the columns of links/*.parquet
Fields = dict[str, Any]  # of a request
Image = str | bytes | Path  # an http(s) or data: URL, the picture's bytes, or its file
# Its words; start and end in characters; or a row of the table, from 0, and the column's name.
Mention = str | tuple[int, int] | tuple[int, str]
Table = Mapping[str, Any] | Iterable[Mapping[str, Any]] | str  # columns and rows; one object per row; CSV
_LONGEST = 30.0  # seconds between two tries, whatever Retry-After says


class ServerError(GemelError, RuntimeError):
    """The endpoint's error: its message, `kind`, HTTP `status` and `request_id`. Without an answer, `kind` is
    `unreachable` and `status` 0."""

    def __init__(self, message: str, kind: str, status: int, request_id: str) -> None:
        super().__init__(message)
        self.kind, self.status, self.request_id = kind, status, request_id


class Client:
    """A client of the endpoint at `url`. A busy server (503) is tried again, as its Retry-After says, for
    `patience` seconds in all; `timeout`: seconds of one request."""

    def __init__(
        self, url: str, api_key: str | None = None, *, timeout: float = 90.0, patience: float = 120.0
    ) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self.http = httpx.Client(base_url=url, headers=headers, timeout=timeout)
        self.patience = patience

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self.http.close()

    def link(
        self,
        text: str,
        image: Image | None = None,
        mentions: Iterable[Mention] | None = None,
        table: Table | None = None,
        **options: Any,
    ) -> list[Link]:
        """Links of one document, one row per mention. `mentions`: strings, (start, end) in characters, or
        (row, column) of `table`; None lets the server find them. `options`: candidates, nil_threshold,
        search, demonstrations. Raises ServerError."""
        content = document(text, image, mentions, table=table) | {"options": options}
        with self._request(content) as answer:
            links: list[Link] = json.loads(answer.read())["links"]
        return links

    def link_many(self, documents: Iterable[Mapping[str, Any]], **options: Any) -> Iterator[list[Link]]:
        """Links of each document, in order of completion; rows have their document_id. A document: text and,
        if wanted, image, mentions, table and id, as `link` takes them. All documents are one request; an
        invalid one is a row of status error. Raises ServerError."""
        content = {"documents": [document(**d) for d in documents], "options": options}
        with self._request(content, Accept="application/x-ndjson") as answer:
            for line in answer.iter_lines():
                row = json.loads(line)
                if "error" in row:
                    raise _error(row, answer.status_code)
                if "links" in row:
                    yield row["links"]

    @contextmanager
    def _request(self, content: Fields, **headers: str) -> Iterator[httpx.Response]:
        """The successful response; its body is still to be read."""
        end = time.monotonic() + self.patience
        while True:
            asked = self.http.stream("POST", "/v1/link", json=content, headers=headers)
            with self._reached(), asked as answer:
                if answer.status_code == httpx.codes.OK:
                    yield answer
                    return
                answer.read()
                pause = _pause(answer)
                if pause is None or time.monotonic() + pause > end:
                    raise _error(_content(answer), answer.status_code)
            time.sleep(pause)

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """Raises ServerError with status 0 where there is no answer."""
        try:
            yield
        except httpx.TransportError as fault:
            late = isinstance(fault, httpx.TimeoutException)
            why = "no answer in time" if late else f"no answer: {fault}"
            raise ServerError(f"{self.http.base_url}: {why}", "unreachable", 0, "") from fault


def document(
    text: str,
    image: Image | None = None,
    mentions: Iterable[Mention] | None = None,
    id: str | None = None,
    table: Table | None = None,
) -> Fields:
    """A document as the endpoint takes it."""
    made: Fields = {"text": text}
    if isinstance(image, Path):
        image = image.read_bytes()
    if image is not None:
        made["image"] = base64.b64encode(image).decode() if isinstance(image, bytes) else image
    if mentions is not None:
        made["mentions"] = mention_fields(mentions)
    if table is not None:
        made["table"] = table_field(table)
    return made if id is None else made | {"id": id}


def mention_fields(mentions: Iterable[Mention]) -> list[str | Fields]:
    """Mentions as documents have them."""
    return [m if isinstance(m, str) else _placed(*m) for m in mentions]


def table_field(table: Table) -> Any:
    """A table as a document's `table` has it."""
    return table if isinstance(table, (str, Mapping)) else list(table)


def _placed(first: int, second: int | str) -> Fields:
    if isinstance(second, str):
        return {"row": first, "column": second}
    return {"start": first, "end": second}


def _pause(answer: httpx.Response) -> float | None:
    """Seconds until the next try; None if trying again is useless."""
    if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
        return None
    try:
        return min(_LONGEST, max(0.1, float(answer.headers.get("Retry-After", 1))))
    except ValueError:  # a date
        return 1.0


def _content(answer: httpx.Response) -> Any:
    try:
        return answer.json()
    except ValueError:  # a proxy's error page
        return {}


def _error(content: Any, status: int) -> ServerError:
    found = content.get("error") if isinstance(content, dict) else None
    error = found if isinstance(found, dict) else {}
    message = error.get("message", f"the server answered {status}")
    return ServerError(message, error.get("kind", "internal"), status, error.get("request_id", ""))
