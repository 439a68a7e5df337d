"""What stands in Ray Serve's proxies before the endpoint, in the server that they use."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from contextlib import suppress

_PROGRAM = """
import sys
from gemel_ray.serving.proxy import bounded, settings
import os
os.environ |= settings(1.0)
middleware = bounded()[0]
import uvicorn

async def app(scope, receive, send):
    more = True
    came = 0
    while more:  # reads whatever comes
        message = await receive()
        more = message.get("more_body", False)
        came += len(message.get("body", b""))
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"read %d bytes" % came})

listening = __import__("socket").socket()
listening.bind(("127.0.0.1", 0))
listening.listen()
print(listening.getsockname()[1], flush=True)
served = middleware.cls(app, *middleware.args, **middleware.kwargs)
server = uvicorn.Server(uvicorn.Config(served, log_level="error", lifespan="off"))
__import__("asyncio").run(server.serve([listening]))
"""
_HEAD = b"POST / HTTP/1.1\r\nHost: here\r\nConnection: close\r\n"


def answered(port: int, head: bytes, parts: list[bytes]) -> bytes:
    """What comes back; b"" where the server hung up without a word."""
    came = b""
    with suppress(ConnectionError), socket.create_connection(("127.0.0.1", port), timeout=100) as connection:
        with suppress(ConnectionError):  # it may answer and hang up before all is sent
            for part in (head, *parts):
                connection.sendall(part)
        while some := connection.recv(2**16):
            came += some
    return came


def test_headers_and_bodies_have_an_end() -> None:
    server = subprocess.Popen([sys.executable, "-c", _PROGRAM], stdout=subprocess.PIPE, text=True)
    assert server.stdout
    try:
        port = int(server.stdout.readline())
        small = answered(port, _HEAD + b"Content-Length: 5\r\n\r\n", [b"12345"])
        assert small.startswith(b"HTTP/1.1 200")
        assert b"read 5 bytes" in small
        declared = answered(port, _HEAD + b"Content-Length: 2000000\r\n\r\n", [b"1"])
        assert declared.startswith(b"HTTP/1.1 413")
        assert b'"too_large"' in declared
        chunk = b"10000\r\n" + bytes(2**16) + b"\r\n"
        endless = answered(port, _HEAD + b"Transfer-Encoding: chunked\r\n\r\n", [chunk] * 40)
        read = int(re.findall(rb"read (\d+) bytes", endless)[0])
        assert 2**20 < read <= 2**20 + 2**19  # a part too many, by which the endpoint knows, and no more
        header = answered(port, _HEAD + b"X-Long: ", [b"a" * 2**16] * 200)
        assert header == b"" or header.startswith(b"HTTP/1.1 4")
    finally:
        server.kill()
        server.wait()
