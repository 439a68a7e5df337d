"""Servers in this process, on ports of their own: the real endpoint over the tests' one engine, any ASGI app,
and small HTTP servers that stand for others."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from typing import Any

import httpx
import pyarrow as pa
import uvicorn

from gemel_ray.config import Config
from gemel_ray.knowledge.workspace import Workspace
from gemel_ray.linking import linking_graph
from gemel_ray.serving.app import app
from gemel_ray.serving.linker import Reply
from gemel_ray.serving.running import Running


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@contextmanager
def served(config: Config, workspace: Workspace, generating: Any) -> Iterator[str]:
    """Its address, when it is ready."""
    graph = linking_graph(config, workspace)
    running = Running(graph.segment(graph.names, workspace, {"generate": generating}), 16)

    async def linked(table: pa.Table) -> Reply:
        return Reply(*await running.run(table))

    with listening(app(config, workspace, linked)) as url:
        while httpx.get(f"{url}/readyz", timeout=60).status_code != httpx.codes.OK:
            time.sleep(0.2)
        yield url
    running.close()


@contextmanager
def listening(application: Any, prefix: str = "") -> Iterator[str]:
    """The address of an ASGI app that a thread serves. It sees each path with `prefix` before it, as behind
    Ray Serve's proxy."""
    server = uvicorn.Server(uvicorn.Config(application, port=0, log_level="error", root_path=prefix))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=20)


@contextmanager
def answering(handler: Callable[..., BaseHTTPRequestHandler]) -> Iterator[str]:
    """The address of an HTTP server whose requests `handler` answers."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    with answered(server):
        yield f"http://127.0.0.1:{server.server_port}"


@contextmanager
def answered(server: HTTPServer) -> Iterator[None]:
    """A thread answers the server's requests until the block ends. By default that would take half a second
    to be noticed."""
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


async def soon(true: Callable[[], Any], seconds: float = 400) -> None:
    """Look again and again, while others go on."""
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.01)


def until(true: Callable[[], bool], seconds: float = 400) -> None:
    """Look again and again."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.1)
