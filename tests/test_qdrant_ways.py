"""How a Qdrant server is reached, and what a build asks of it: TLS and gRPC over real sockets, with
certificates made here; settings of a collection as they arrive. See test_qdrant.py."""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import qdrant_grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from qdrant_client import QdrantClient
from qdrant_server import builds, serving
from test_qdrant import Say, building, facts, linking

from gemel_ray.cli import main
from gemel_ray.knowledge import qdrant
from gemel_ray.knowledge.qdrant import ServerStore
from gemel_ray.knowledge.server import SHORT_WAIT, Refused, Server
from gemel_ray.knowledge.vectors import Vectors
from gemel_ray.settings import Vectors as Options


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A server's, signed by itself, with its key in the file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    alternative = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder(
            name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(1)
        )
        .add_extension(alternative, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = tmp_path_factory.mktemp("tls") / "server.pem"
    form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    private = key.private_bytes(serialization.Encoding.PEM, *form)
    file.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    return file


def test_an_untrusted_certificate_is_refused_until_its_authority_is_named(
    certificate: Path, tmp_path: Path, capsys: Say
) -> None:
    with serving(certificate=certificate) as (address, answers):
        assert building(tmp_path, f"{address}/bank") == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"the certificate of {address} is not trusted" in line
        assert "name the file of the authority that signed it in vectors.ca" in line
        assert building(tmp_path, f"{address}/bank", "--set", f"vectors.ca={certificate}") == 0
        assert builds(answers.local, "bank") == [facts(tmp_path)["collection"]]


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_an_authority_that_cannot_be_read_is_refused(
    content: str | None, tmp_path: Path, capsys: Say
) -> None:
    file = tmp_path / "ca.pem"
    if content:
        file.write_text(content)
    for more in ((), ("--set", "vectors.grpc=6334")):
        assert building(tmp_path, "https://127.0.0.1:9/bank", "--set", f"vectors.ca={file}", *more) == 2
        assert f"vectors.ca: {file} cannot be read as certificates" in capsys.readouterr().err


def test_a_workspace_is_built_over_grpc_where_no_http_server_is(
    tmp_path: Path, capsys: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No HTTP server is there at all."""
    local = QdrantClient(":memory:")
    monkeypatch.setenv("QDRANT_API_KEY", "sesame")
    with qdrant_grpc.serving(local, "sesame") as port:
        over = ("--set", f"vectors.grpc={port}")
        assert building(tmp_path, "http://127.0.0.1:9/bank", *over) == 0
        assert building(tmp_path, "http://127.0.0.1:9/bank", "--replace", *over) == 0
        assert builds(local, "bank") == [facts(tmp_path)["collection"]]
        monkeypatch.delenv("QDRANT_API_KEY")
        capsys.readouterr()
        assert building(tmp_path, "http://127.0.0.1:9/bank", "--replace", *over) == 2
        assert (
            "refuses to be asked without a key (Must provide an API key): set QDRANT_API_KEY"
            in capsys.readouterr().err
        )
    assert building(tmp_path, "http://127.0.0.1:9/bank", "--replace", *over) == 2
    assert "no Qdrant server answers at http://127.0.0.1:9" in capsys.readouterr().err
    assert linking(tmp_path, "") == 2


def test_both_ways_answer_the_same(certificate: Path) -> None:
    """gRPC with TLS, and HTTP, of one collection."""
    local, bank = QdrantClient(":memory:"), np.random.default_rng(0).normal(size=(300, 16)).astype(np.float32)
    with serving(local=local) as (http, _), qdrant_grpc.serving(local, certificate=certificate) as port:
        safe = Options(address="https://127.0.0.1:9/bank", grpc=port, ca=str(certificate))
        written = Vectors(ServerStore.create(Server(safe), "bank-1", {"mention": 16}))
        written.add(range(300), {"mention": bank})
        written.finish()
        found = []
        for options in (safe, Options(address=f"{http}/bank")):
            vectors = Vectors(ServerStore.open(Server(options), "bank-1"))
            hits = vectors.search("mention", bank[:5], 10, [[1, 2]] * 5)
            found.append([h.rows.tolist() for h in hits])
            assert vectors.count() == 300
            vectors.close()
        unknown = Server(Options(address="https://127.0.0.1:9/bank", grpc=port), SHORT_WAIT)
        with pytest.raises(Refused, match=r"is not trusted .*vectors\.ca"):
            unknown.has("bank-1")
    assert found[0] == found[1]


ASKED: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {"on_disk": None, "hnsw_config": None, "quantization_config": None, "shard_number": None}),
    ({"on_disk": True}, {"on_disk": True, "hnsw_config": {"on_disk": True}}),
    ({"quantized": True}, {"quantization_config": {"scalar": {"type": "int8", "always_ram": True}}}),
    ({"shards": 6, "replicas": 2}, {"shard_number": 6, "replication_factor": 2}),
]


def present(asked: Any) -> Any:
    """Without what was left to the server."""
    if isinstance(asked, dict):
        return {k: present(v) for k, v in asked.items() if v is not None}
    return asked


@pytest.mark.parametrize(("settings", "asked"), ASKED)
def test_a_collection_is_created_as_the_settings_say(settings: dict[str, Any], asked: dict[str, Any]) -> None:
    with serving() as (address, answers):
        server = Server(Options(address=f"{address}/bank", **settings))
        qdrant.create(server, "bank-1", {"mention": 16, "image": 8})
        (body,) = answers.created
    got = body | {"on_disk": body["vectors"]["mention"].get("on_disk")}
    assert present({k: got.get(k) for k in asked}) == present(asked)
    assert body["vectors"]["image"].get("on_disk") == got["on_disk"]


def test_settings_reach_the_server_from_the_command(tmp_path: Path) -> None:
    with serving() as (address, answers):
        more = ("vectors.quantized=true", "vectors.on_disk=true", "vectors.shards=3", "vectors.replicas=2")
        given = [argument for option in more for argument in ("--set", option)]
        assert building(tmp_path, f"{address}/bank", *given) == 0
        asked = answers.created[-1]
    assert (asked["shard_number"], asked["replication_factor"]) == (3, 2)
    assert asked["quantization_config"]["scalar"]["type"] == "int8"
    assert main(["kb", "list", "--workspace", str(tmp_path / "workspace")]) == 0
