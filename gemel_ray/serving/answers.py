"""Makes a request's answer from replies, whole or line by line."""

from __future__ import annotations

import json
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field

import pyarrow as pa
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from gemel_ray.records import Row
from gemel_ray.serving.desk import Desk, Place
from gemel_ray.serving.linker import Reply
from gemel_ray.serving.requests import Call
from gemel_ray.serving.schemas import Fault

ReadTables = Callable[[Place], Awaitable[tuple[Call, Sequence[pa.Table]]]]


@dataclass
class Answering:
    """Answers one request. `read_tables` reads it; `log_fields` collects what its line in the log says. Both
    methods raise Fault for what is wrong with the request, or with its only document."""

    desk: Desk
    read_tables: ReadTables
    request_id: str
    caller: str
    log_fields: Row
    seconds: dict[str, float] = field(default_factory=dict)
    known: dict[str, str] = field(default_factory=dict)  # of the newest knowledge that answered
    began: float = field(default_factory=time.monotonic)

    async def whole(self) -> Response:
        """All rows, in the order of the documents."""
        with self.desk.entered(self.caller) as place:
            async with self.desk.in_time(self.began):
                call, tables = await self.read_tables(place)
                links: list[list[Row]] = [[] for _ in tables]
                async with aclosing(self._linked(call, tables)) as linked:
                    async for number, rows in linked:
                        links[number] = rows
                return JSONResponse({"links": [row for rows in links for row in rows]} | self._rest())

    async def streamed(self) -> Response:
        """One line per document as soon as it is done. An error before the first line sets the status."""
        async with AsyncExitStack() as stack:
            place = stack.enter_context(self.desk.entered(self.caller))
            async with self.desk.in_time(self.began):
                call, tables = await self.read_tables(place)
                lines = await stack.enter_async_context(aclosing(self._lines(call, tables)))
                first = await anext(lines)
            return _Lines(self._all(first, lines), stack.pop_all())

    async def _all(self, first: bytes, lines: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        yield first
        try:
            async with self.desk.in_time(self.began):
                async for line in lines:
                    yield line
        except Fault as fault:
            self.desk.meters.errors.labels(fault.kind).inc()
            yield _line(fault.body(self.request_id))

    async def _lines(self, call: Call, tables: Sequence[pa.Table]) -> AsyncGenerator[bytes, None]:
        async with aclosing(self._linked(call, tables)) as linked:
            async for number, rows in linked:
                yield _line({"document_id": call.names[number], "links": rows})
        yield _line(self._rest())

    async def _linked(
        self, call: Call, tables: Sequence[pa.Table]
    ) -> AsyncGenerator[tuple[int, list[Row]], None]:
        self.log_fields |= {"documents": len(tables), "rows": 0}
        async with aclosing(self.desk.as_done(tables, self.caller)) as replies:
            async for number, reply in replies:
                rows = _rows(reply)
                errors = [row["error"] for row in rows if row["status"] == "error"]
                if call.alone and len(errors) == len(rows):
                    raise Fault("bad_request", errors[0])
                self.known |= reply.known
                for stage, took in reply.seconds.items():
                    self.seconds[stage] = max(took, self.seconds.get(stage, 0.0))
                self.log_fields["rows"] += len(rows)
                yield number, rows

    def _rest(self) -> Row:
        total = time.monotonic() - self.began
        timings = {name: round(took, 6) for name, took in (*self.seconds.items(), ("total", total))}
        return {"request_id": self.request_id, "timings": timings, **self.desk.known, **self.known}


class _Lines(StreamingResponse):
    """Releases the request's place when it ends, also where it never began."""

    def __init__(self, lines: AsyncGenerator[bytes, None], kept: AsyncExitStack) -> None:
        super().__init__(lines, media_type="application/x-ndjson")
        self.lines, self.kept = lines, kept

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self.kept, aclosing(self.lines):
            await super().__call__(scope, receive, send)


def _rows(reply: Reply) -> list[Row]:
    """The rows for JSON, which has no infinity: the logarithm of a probability of zero becomes null."""
    rows: list[Row] = reply.rows.to_pylist()
    for row in rows:
        for holder in (row, *(row["candidates"] or ())):
            if holder["score"] is not None and not math.isfinite(holder["score"]):
                holder["score"] = None
    return rows


def _line(value: Row) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode() + b"\n"
