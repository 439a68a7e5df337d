"""A real S3 server on this machine (moto's), with a user, a key that is asked for, and a bucket."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import fsspec
import pytest
from live import free_port, until

POLICY = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}
BUCKET = "captions"


@dataclass(frozen=True)
class Server:
    """`environment`: what a process needs to use it."""

    environment: dict[str, str]
    client: Any

    def put(self, name: str, data: bytes) -> str:
        """The new object's address."""
        self.client.put_object(Bucket=BUCKET, Key=name, Body=data)
        return f"s3://{BUCKET}/{name}"

    def get(self, name: str) -> bytes:
        data: bytes = self.client.get_object(Bucket=BUCKET, Key=name)["Body"].read()
        return data

    def names(self, under: str) -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{under}/")
        return [found["Key"] for page in pages for found in page.get("Contents", ())]


@contextmanager
def serving() -> Iterator[Server]:
    """In a process of its own: moto's state belongs to its process, and vLLM does not start beside Flask."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield _opened(f"http://127.0.0.1:{port}")
    finally:
        server.kill()
        server.wait()


def _opened(url: str) -> Server:
    """With a user and a bucket; from then on keys are checked."""
    import boto3

    anybody = {
        "endpoint_url": url, "region_name": "us-east-1", "aws_access_key_id": "x",
        "aws_secret_access_key": "x",
    }  # fmt: skip
    until(lambda: _answers(url), 120)
    iam = boto3.client("iam", **anybody)
    iam.create_user(UserName="tester")
    key = iam.create_access_key(UserName="tester")["AccessKey"]
    iam.put_user_policy(UserName="tester", PolicyName="all", PolicyDocument=json.dumps(POLICY))
    ask = urllib.request.Request(f"{url}/moto-api/reset-auth", b"0", {"Content-Type": "text/plain"})
    urllib.request.urlopen(ask).read()
    environment = {
        "AWS_ENDPOINT_URL": url,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": key["AccessKeyId"],
        "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"],
    }
    known = {"aws_access_key_id": key["AccessKeyId"], "aws_secret_access_key": key["SecretAccessKey"]}
    client = boto3.client("s3", **(anybody | known))
    client.create_bucket(Bucket=BUCKET)
    return Server(environment, client)


def _answers(url: str) -> bool:
    with suppress(OSError):
        urllib.request.urlopen(f"{url}/moto-api/").read()
        return True
    return False


@contextmanager
def silent() -> Iterator[str]:
    """The address of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken: list[socket.socket] = []

        def take() -> None:
            while True:
                try:
                    taken.append(server.accept()[0])
                except OSError:
                    return

        threading.Thread(target=take, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


def use(patch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    """From now on in this process: drivers read it when they connect first."""
    for name in [n for n in os.environ if n.startswith("AWS_")]:
        patch.delenv(name)
    for name, value in environment.items():
        patch.setenv(name, value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
