"""In place of the gRPC side of Qdrant's server: its own messages over a real channel, qdrant-client's local
mode behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
from qdrant_client import grpc as q
from qdrant_client.conversions.conversion import GrpcToRest, RestToGrpc, grpc_to_payload

Answer = Callable[[Any, Any], Any]


class Collections(q.CollectionsServicer):
    def __init__(self, local: Any) -> None:
        self.local = local

    def CollectionExists(self, asked: Any, _: Any) -> Any:
        exists = q.CollectionExists(exists=self.local.collection_exists(asked.collection_name))
        return q.CollectionExistsResponse(result=exists)

    def List(self, asked: Any, _: Any) -> Any:
        named = [q.CollectionDescription(name=c.name) for c in self.local.get_collections().collections]
        return q.ListCollectionsResponse(collections=named)

    def Get(self, asked: Any, _: Any) -> Any:
        info = self.local.get_collection(asked.collection_name)
        return q.GetCollectionInfoResponse(result=RestToGrpc.convert_collection_info(info))

    def Create(self, asked: Any, _: Any) -> Any:
        vectors = GrpcToRest.convert_vectors_config(asked.vectors_config)
        self.local.create_collection(asked.collection_name, vectors, metadata=grpc_to_payload(asked.metadata))
        return q.CollectionOperationResponse(result=True)

    def Update(self, asked: Any, _: Any) -> Any:
        self.local.update_collection(asked.collection_name, metadata=grpc_to_payload(asked.metadata))
        return q.CollectionOperationResponse(result=True)

    def Delete(self, asked: Any, _: Any) -> Any:
        return q.CollectionOperationResponse(result=self.local.delete_collection(asked.collection_name))

    def ListAliases(self, asked: Any, _: Any) -> Any:
        named = map(RestToGrpc.convert_alias_description, self.local.get_aliases().aliases)
        return q.ListAliasesResponse(aliases=list(named))

    def UpdateAliases(self, asked: Any, _: Any) -> Any:
        self.local.update_collection_aliases(list(map(GrpcToRest.convert_alias_operations, asked.actions)))
        return q.CollectionOperationResponse(result=True)


class Points(q.PointsServicer):
    def __init__(self, local: Any) -> None:
        self.local = local

    def Upsert(self, asked: Any, _: Any) -> Any:
        self.local.upsert(asked.collection_name, list(map(GrpcToRest.convert_point_struct, asked.points)))
        return q.PointsOperationResponse(
            result=q.UpdateResult(operation_id=0, status=q.UpdateStatus.Completed)
        )

    def Count(self, asked: Any, _: Any) -> Any:
        return q.CountResponse(result=q.CountResult(count=self.local.count(asked.collection_name).count))

    def QueryBatch(self, asked: Any, _: Any) -> Any:
        searches = list(map(GrpcToRest.convert_query_points, asked.query_points))
        for search in searches:
            assert isinstance(search.params.exact, bool)
            search.params = None
        found = self.local.query_batch_points(asked.collection_name, searches)
        listed = [list(map(RestToGrpc.convert_scored_point, answer.points)) for answer in found]
        return q.QueryBatchResponse(result=[q.BatchResult(result=points) for points in listed])


class Root(q.QdrantServicer):
    def HealthCheck(self, asked: Any, _: Any) -> Any:
        return q.HealthCheckReply(title="qdrant - vector search engine", version="1.20.0")


class Keyed(grpc.ServerInterceptor):  # type: ignore[misc]
    """Nothing but its health without the key."""

    def __init__(self, key: str) -> None:
        self.key = key

    def intercept_service(self, go_on: Callable[[Any], Any], details: Any) -> Any:
        open_to_all = not self.key or details.method.endswith("HealthCheck")
        if open_to_all or dict(details.invocation_metadata).get("api-key") == self.key:
            return go_on(details)
        refused = (grpc.StatusCode.UNAUTHENTICATED, "Must provide an API key")
        return grpc.unary_unary_rpc_method_handler(lambda _, context: context.abort(*refused))


@contextmanager
def serving(local: Any, key: str = "", certificate: Path | None = None) -> Iterator[int]:
    """The server in this process: its port."""
    server = grpc.server(ThreadPoolExecutor(4), interceptors=[Keyed(key)])
    q.add_CollectionsServicer_to_server(Collections(local), server)
    q.add_PointsServicer_to_server(Points(local), server)
    q.add_QdrantServicer_to_server(Root(), server)
    if certificate:
        pem = certificate.read_bytes()
        port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(pem, pem)]))
    else:
        port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield port
    finally:
        server.stop(None).wait()
