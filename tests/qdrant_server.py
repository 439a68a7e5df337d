"""In place of Qdrant's server, which no package index has: as a command, python tests/qdrant_server.py PORT
FOLDER, a process that can be killed, with its collections in a folder."""

from __future__ import annotations

import json
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any


class Imitation(BaseHTTPRequestHandler):
    """Qdrant's HTTP interface, as far as it is used, over qdrant-client's local mode. Fails first."""

    wbufsize = -1  # header and body in one packet
    local: Any
    failures: int
    keys: set[str | None]

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        type(self).keys.add(self.headers.get("api-key"))
        if type(self).failures > 0:
            type(self).failures -= 1
            return self._reply(503, {"status": {"error": "busy"}})
        try:
            result = self._result(json.loads(body or "{}"))
        except ValueError as error:
            return self._reply(404, {"status": {"error": str(error)}})
        self._reply(200, {"result": result, "status": "ok", "time": 0.0})

    def _result(self, body: dict[str, Any]) -> Any:
        from qdrant_client import models as m

        parts = self.path.partition("?")[0].strip("/").split("/")
        name, verb, local = parts[1], "/".join([self.command, *parts[2:]]), self.local
        if verb == "GET/exists":
            return {"exists": local.collection_exists(name)}
        if verb == "PUT":
            vectors = {k: m.VectorParams(**v) for k, v in body["vectors"].items()}
            return local.create_collection(name, vectors)
        if verb == "GET":
            return json.loads(local.get_collection(name).model_dump_json())
        if verb == "PUT/points":
            local.upsert(name, [m.PointStruct(**p) for p in body["points"]])
            return {"operation_id": 0, "status": "completed"}
        if verb == "POST/points/count":
            return {"count": local.count(name).count}
        if verb == "POST/points/query/batch":
            searches = [m.QueryRequest(**s) for s in body["searches"]]
            for search in searches:
                assert isinstance(search.params.exact, bool)
                search.params = None
            return [json.loads(a.model_dump_json()) for a in local.query_batch_points(name, searches)]
        assert verb == "PATCH"
        return True

    do_GET = do_PUT = do_POST = do_PATCH = _serve

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


def main(port: int, folder: str) -> None:
    from qdrant_client import QdrantClient

    state = {"local": QdrantClient(path=folder), "failures": 0, "keys": set()}
    HTTPServer(("127.0.0.1", port), type("Handler", (Imitation,), state)).serve_forever(0.01)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
