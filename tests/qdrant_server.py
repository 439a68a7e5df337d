"""In place of Qdrant's server, which no package index has."""

from __future__ import annotations

import json
import re
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from live import answered


class Imitation(BaseHTTPRequestHandler):
    """Qdrant's HTTP interface, as far as it is used, over qdrant-client's local mode. Fails first."""

    wbufsize = -1  # header and body in one packet
    local: Any
    failures: int = 0
    version: str = "1.20.0"
    key: str = ""  # that it wants
    reads_only: bool = False  # with that key
    created: list[dict[str, Any]]  # what collections were asked for with

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        if type(self).failures > 0:
            type(self).failures -= 1
            return self._reply(503, {"status": {"error": "busy"}})
        if self.path == "/":
            return self._reply(200, {"title": "qdrant - vector search engine", "version": self.version})
        if self.key and self.headers.get("api-key") != self.key:
            return self._reply(401, {"status": {"error": "Must provide an API key"}})
        reading = self.command == "GET" or "query" in self.path or "count" in self.path
        if self.reads_only and not reading:
            return self._reply(403, {"status": {"error": "Write access to collection is required"}})
        try:
            result = self._result(json.loads(body or "{}"))
        except ValueError as error:
            return self._reply(404, {"status": {"error": str(error)}})
        self._reply(200, {"result": result, "status": "ok", "time": 0.0})

    def _result(self, body: dict[str, Any]) -> Any:
        parts = self.path.partition("?")[0].strip("/").split("/")
        if parts[0] == "aliases":
            return plain(self.local.get_aliases())
        if parts == ["collections"]:
            return plain(self.local.get_collections())
        if parts == ["collections", "aliases"]:
            return self.local.update_collection_aliases(body["actions"] and operations(body["actions"]))
        return self._of_one(parts[1], "/".join([self.command, *parts[2:]]), body)

    def _of_one(self, name: str, verb: str, body: dict[str, Any]) -> Any:
        from qdrant_client import models as m

        local = self.local
        if verb == "GET/exists":
            return {"exists": local.collection_exists(name)}
        if verb == "PUT":
            type(self).created.append({"name": name, **body})
            vectors = {k: m.VectorParams(**v) for k, v in body["vectors"].items()}
            return local.create_collection(name, vectors, metadata=body.get("metadata"))
        if verb == "PATCH":
            return local.update_collection(name, metadata=body.get("metadata"))
        if verb == "DELETE":
            return local.delete_collection(name)
        if verb == "GET":
            return plain(local.get_collection(name))
        if verb == "PUT/points":
            local.upsert(name, [m.PointStruct(**p) for p in body["points"]])
            return {"operation_id": 0, "status": "completed"}
        if verb == "POST/points/count":
            return {"count": local.count(name).count}
        assert verb == "POST/points/query/batch"
        searches = [m.QueryRequest(**s) for s in body["searches"]]
        for search in searches:
            assert isinstance(search.params.exact, bool)
            search.params = None
        return [plain(a) for a in local.query_batch_points(name, searches)]

    do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = _serve

    def _reply(self, status: int, answer: Any) -> None:
        text = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)
        self.wfile.flush()

    def log_message(self, *_: Any) -> None:
        pass


def plain(answer: Any) -> Any:
    return json.loads(answer.model_dump_json())


def operations(actions: list[dict[str, Any]]) -> list[Any]:
    from qdrant_client import models as m

    kinds = {"create_alias": m.CreateAliasOperation, "delete_alias": m.DeleteAliasOperation}
    return [kinds[kind](**{kind: facts}) for action in actions for kind, facts in action.items()]


@contextmanager
def serving(port: int = 0, local: Any = None, certificate: Path | None = None) -> Iterator[tuple[str, Any]]:
    """The server in this process: its address, and the class that answers, whose attributes may be set."""
    from qdrant_client import QdrantClient

    answers = type("Answers", (Imitation,), {"local": local or QdrantClient(":memory:"), "created": []})
    http = ThreadingHTTPServer(("127.0.0.1", port), answers)
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        http.socket = context.wrap_socket(http.socket, server_side=True)
    with answered(http):
        yield f"{'https' if certificate else 'http'}://127.0.0.1:{http.server_port}", answers


def builds(local: Any, name: str) -> list[str]:
    """The collections that builds made under this name."""
    listed = [c.name for c in local.get_collections().collections]
    return sorted(c for c in listed if re.fullmatch(rf"{name}-[0-9a-f]{{12}}", c))
