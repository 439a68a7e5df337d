"""The endpoint on Ray Serve with a real engine: the same rows as in process, under load, when things die.

Its server goes on to test_online_schema.py and test_online_upgrade.py, which end it."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from live import until
from on_serve import DOCUMENTS, LAST, PROCESSES, QUEUE, Served
from parity import same_row
from ray.serve.config import AutoscalingContext

from gemel_ray.config import Config
from gemel_ray.graph import run_in_process
from gemel_ray.knowledge.workspace import Workspace
from gemel_ray.linking import linking_graph
from gemel_ray.online import app, running
from gemel_ray.readers import documents

pytestmark = [pytest.mark.slow, pytest.mark.ray]
TEXT = "Adobe and Google met in Paris."


@pytest.fixture(scope="module")
def messy(
    messy_inputs: list[str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, list[dict[str, Any]]]:
    """Good documents and every kind of bad one with their pictures: as a file, and as HTTP takes them."""
    folder = Path(messy_inputs[0]).parent
    rows = []
    for line in Path(messy_inputs[0]).read_text().splitlines()[:13]:
        row = json.loads(line)
        picture = folder / (row.get("image") or "nowhere")
        rows.append(row | {"image": picture.read_bytes() if picture.is_file() else None})
    file = tmp_path_factory.mktemp("messy") / "messy.parquet"
    pq.write_table(pa.Table.from_pylist(rows), file)
    sent = [r | {"image": base64.b64encode(r["image"]).decode() if r["image"] else None} for r in rows]
    return str(file), sent


@pytest.fixture(scope="module")
def in_process(config: Config, workspace: Workspace, generating: Any, messy: Any) -> list[dict[str, Any]]:
    graph = linking_graph(config, workspace)
    segment = graph.segment(graph.names, workspace, {"generate": generating})
    rows = [row for table in run_in_process(segment, documents(messy[0])) for row in table.to_pylist()]
    segment.close()
    place = re.compile(r" \(messy\.parquet:\d+\)$")  # where a file's row stands: a request has none
    return [row | {"error": row["error"] and place.sub("", row["error"])} for row in rows]


def same(there: list[dict[str, Any]], here: list[dict[str, Any]]) -> None:
    assert [(r["document_id"], r["mention_id"]) for r in there] == [
        (r["document_id"], r["mention_id"]) for r in here
    ]
    for got, wanted in zip(there, here, strict=True):
        same_row(got, wanted)


def in_parts(documents: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    yield documents[:DOCUMENTS]
    yield documents[DOCUMENTS:]


def test_many_documents_give_the_rows_of_one_process(served: Served, messy: Any, in_process: Any) -> None:
    rows: list[dict[str, Any]] = []
    for part in in_parts(messy[1]):
        answer = served.ask(json={"documents": part})
        assert answer.status_code == 200, answer.text
        rows += answer.json()["links"]
    same(rows, in_process)
    assert {row["status"] for row in rows} == {"linked", "nil", "error"}


def test_documents_alone_give_the_same_rows_or_are_refused_for_the_same_reason(
    served: Served, messy: Any, in_process: Any
) -> None:
    for document in messy[1]:
        wanted = [row for row in in_process if row["document_id"] == document["id"]]
        answer = served.ask(json=document)
        if errors := [row["error"] for row in wanted if row["error"]]:
            assert answer.status_code == 400, answer.text
            assert answer.json()["error"]["message"] == errors[0]
        else:
            same(answer.json()["links"], wanted)
            assert answer.json()["timings"].keys() == {
                "detect", "encode", "retrieve", "assemble", "generate", "total",
            }  # fmt: skip


def test_a_form_gives_the_same_as_json(served: Served, messy: Any, in_process: Any) -> None:
    one = messy[1][0]
    fields = {
        "text": (None, one["text"]),
        "mentions": (None, json.dumps(one["mentions"])),
        "id": (None, "plain"),
    }
    answer = served.ask(files=fields | {"image": ("logo.jpg", base64.b64decode(one["image"]))})
    same(answer.json()["links"], [row for row in in_process if row["document_id"] == "plain"])


def test_lines_hold_the_same_rows(served: Served, messy: Any, in_process: Any) -> None:
    some = messy[1][:5]
    answer = served.ask(json={"documents": some}, headers={"Accept": "application/x-ndjson"})
    *lines, last = [json.loads(line) for line in answer.text.splitlines()]
    by_name = {line["document_id"]: line["links"] for line in lines}
    same(
        [row for document in some for row in by_name[document["id"]]],
        [row for row in in_process if row["document_id"] in by_name],
    )
    assert last["fingerprint"] == in_process[0]["fingerprint"]


def test_a_request_s_options_are_obeyed(served: Served) -> None:
    def asked(**options: Any) -> Any:
        return served.ask(json={"text": TEXT, "mentions": ["Adobe"], "options": options}).json()["links"][0]

    assert len({c["entity"] for c in asked(candidates=2)["candidates"]}) == 2
    assert asked(nil_threshold=1.0)["status"] == "nil"
    assert asked(demonstrations=False)["demonstrations"] == []
    assert asked()["status"] == "linked"


def test_the_endpoint_gives_its_states_its_page_and_its_counts(served: Served) -> None:
    assert served.ask("/healthz").status_code == 200
    assert served.ask("/readyz").json()["status"] == "ready"
    assert served.ask("/", follow_redirects=True).headers["content-type"].startswith("text/html")
    assert served.ask(json={"text": TEXT}).status_code == 200
    assert served.counted('gemel_ray_prompt_tokens_total{process="') > 0
    answer = served.ask(json={"text": TEXT}, headers={"X-Request-ID": "mine"})
    assert answer.headers.get_list("x-request-id") == ["mine"]
    assert answer.json()["request_id"] == "mine"


def test_an_upload_beyond_the_limit_is_cut_off(served: Served) -> None:
    """Gigabytes are not read to their end."""

    def parts() -> Iterator[bytes]:
        for _ in range(3000):
            sent.append(1)
            yield b" " * 2**20

    sent: list[int] = []
    with contextlib.suppress(httpx.TransportError):  # it hung up while we were still talking
        answer = served.ask(content=parts(), headers={"Content-Type": "application/json"})
        assert answer.json()["error"]["kind"] == "too_large", (answer.status_code, answer.text)
    assert len(sent) < 3000
    assert served.ask("/healthz").status_code == 200


@settings(deadline=None, max_examples=25, suppress_health_check=list(HealthCheck))
@given(data=st.binary(max_size=60), cut=st.integers(0, 400))
def test_any_bytes_as_a_picture_are_a_link_or_a_plain_refusal(
    served: Served, messy: Any, data: bytes, cut: int
) -> None:
    picture = base64.b64decode(messy[1][0]["image"])
    for sent in (data, picture[:cut] + data + picture[cut + len(data) :]):
        answer = served.ask(
            files={"text": (None, TEXT), "mentions": (None, '["Adobe"]'), "image": ("x", sent)}
        )
        assert answer.status_code in (200, 400), answer.text


def replicas_for(scaled: Any, mentions: dict[str, float], queued: float) -> float:
    """What the policy of a deployment says in Serve's controller, before its bounds."""
    counted = {"mentions": mentions} if mentions else {}
    context = AutoscalingContext(
        None, "name", "app", 2, 2, [], 0.0, queued, counted, {}, 1, 3, {}, None, None, None, scaled
    )
    wanted, _ = scaled.policy.get_policy()(context)
    return float(wanted)


def test_every_segment_becomes_a_deployment(workspace_folder: Path) -> None:
    """As a Serve config file has it; nothing is started."""
    from ray.serve._private.build_app import build_app

    segments = "[{stages: [detect, encode], max_replicas: 3, ongoing: 8, surge: 0.5}, "
    segments += "{stages: [retrieve, assemble, generate], gpus: 0.5}]"
    settings = [f"online.segments={segments}", "online.deadline=20", "online.api.max_replicas=2"]
    bound = app({"workspace": str(workspace_folder), "set": settings})
    built = build_app(bound, name="name", default_runtime_env={})
    generate, encode, api = built.deployments
    assert (generate.name, generate.num_replicas, generate.ray_actor_options["num_gpus"]) == (LAST, 1, 0.5)
    scaled = encode._deployment_config.autoscaling_config
    assert (scaled.min_replicas, scaled.max_replicas, scaled.target_ongoing_requests) == (1, 3, 4.0)
    assert replicas_for(scaled, {"one": 30.0, "two": 10.0}, queued=4) == 11  # 44 mentions, 4 in each
    assert replicas_for(scaled, {}, queued=4) == 2  # as many as there are, until somebody has counted
    scaled = api._deployment_config.autoscaling_config
    assert (scaled.min_replicas, scaled.max_replicas, scaled.target_ongoing_requests) == (1, 2, 100)
    assert [d._deployment_config.max_surge_percent for d in (encode, generate)] == [50, 0]
    assert (encode.max_ongoing_requests, built.ingress_deployment_name) == (8, api.name)
    for deployment in built.deployments:  # whoever is stopped has longer than any request
        assert deployment._deployment_config.graceful_shutdown_timeout_s > 20


@pytest.mark.parametrize("segments", ["[]", "[{stages: [detect]}]", "[{stages: [encode, detect]}]"])
def test_segments_that_leave_out_a_stage_are_refused(workspace_folder: Path, segments: str) -> None:
    with pytest.raises(ValueError, match="must hold detect, encode, retrieve, assemble, generate"):
        app({"workspace": str(workspace_folder), "set": [f"online.segments={segments}"]})


def test_a_port_that_is_taken_is_refused_before_anything_starts(
    workspace_folder: Path, config: Config
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        elsewhere = replace(config, online=replace(config.online, port=port))
        with (
            pytest.raises(ValueError, match=f"cannot listen at 127.0.0.1:{port}"),
            running(elsewhere, workspace_folder),
        ):
            pass


def flood(served: Served, number: int) -> list[httpx.Response]:
    many = {"text": TEXT, "mentions": ["Adobe", "Google", "Paris"]}
    with ThreadPoolExecutor(number) as pool:
        return list(pool.map(lambda _: served.ask(json=many), range(number)))


def test_more_than_the_queue_holds_is_refused_and_the_rest_is_answered(served: Served) -> None:
    answers = flood(served, 4 * QUEUE)
    refused = [a for a in answers if a.status_code == 503]
    assert {a.json()["error"]["kind"] for a in refused} == {"busy"}
    assert all(int(a.headers["retry-after"]) >= 1 for a in refused)
    answered = sum(a.status_code == 200 for a in answers)
    # How many reach which process is for Serve's router to say; each lets its share in.
    assert answered == len(answers) - len(refused) >= QUEUE // PROCESSES


def test_a_client_that_leaves_takes_its_work_out_of_the_engine(served: Served) -> None:
    mentions = [{"start": n, "end": n + 2} for n in range(0, 24, 3)]
    many = {"documents": [{"text": f"{n} {TEXT}", "mentions": mentions} for n in range(DOCUMENTS)]}
    before = served.inside_replica(lambda engine: engine._steps)
    host, _, port = served.address.removeprefix("http://").partition(":")
    body = json.dumps(many).encode()
    head = "POST /v1/link HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\n"
    with socket.create_connection((host, int(port))) as client:
        client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        until(lambda: served.inside_replica(lambda engine: engine._steps) > before)
    until(lambda: served.counted("gemel_ray_documents_inside") == 0)
    until(lambda: not served.inside_replica(lambda engine: engine.busy))
    assert 'status="499"' in served.ask("/metrics").text


def test_the_processes_of_the_api_tell_the_counts_of_all_and_share_the_queue(served: Served) -> None:
    """Whoever of them is asked."""
    until(lambda: served.counted("gemel_ray_queue") == QUEUE)
    before = served.counted("gemel_ray_links_total{")
    for _ in range(6):
        answer = served.ask(json={"text": TEXT, "mentions": ["Adobe"]})
        assert answer.status_code == 200, answer.text
    told = [served.ask("/metrics").text for _ in range(6)]
    for text in told:
        assert len(set(re.findall(r'process="(\w+)"', text))) == PROCESSES
    assert served.counted("gemel_ray_links_total{") == before + 6
    shares = re.findall(
        r'gemel_ray_requests_total\{process="\w+",route="/v1/link",status="200"\} (\S+)', told[-1]
    )
    assert len(shares) == PROCESSES  # both have answered somebody


def test_an_engine_that_dies_is_replaced_and_its_documents_are_asked_again(served: Served) -> None:
    with ThreadPoolExecutor(3) as pool:
        accepted = [pool.submit(served.ask, json={"text": TEXT, "mentions": ["Adobe"]}) for _ in range(3)]
        served.inside_replica(lambda engine: engine._inbox.put(object()))  # nothing it could add
        until(lambda: served.ask("/readyz").status_code == 503)
        assert served.ask("/healthz").status_code == 200
        late = served.ask(json={"text": TEXT})  # of the process that has lost no document yet it is one more
        assert late.status_code == 200 or late.json()["error"]["kind"] == "not_ready"
        until(lambda: served.ask("/readyz").status_code == 200)
        assert [a.result().status_code for a in accepted] == [200] * 3
    assert served.ask(json={"text": TEXT}).status_code == 200
