"""What comes in: taken when it is right, refused in one plain sentence when not, whatever it is."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.datastructures import Headers

from gemel_ray.readers import documents
from gemel_ray.segments import Online
from gemel_ray.serving import requests
from gemel_ray.serving.requests import Body
from gemel_ray.serving.schemas import Fault
from tests.serving_cases import client, echoed, endpoint, nowhere

LIMITS = Online(documents=3, queue=8, mentions=4, characters=100, megabytes=0.01)
TEXT = "Adobe and Google met in Paris."
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Any:
    served = endpoint(tmp_path_factory.mktemp("served"), echoed, LIMITS)

    def ask(method: str = "POST", path: str = "/v1/link", **request: Any) -> httpx.Response:
        async def asked() -> httpx.Response:
            async with client(served) as http:
                return await http.request(method, path, **request)

        return asyncio.run(asked())

    return ask


def refused(answer: httpx.Response, status: int, kind: str) -> str:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error.keys() == {"message", "kind", "request_id"}
    assert error["kind"] == kind
    message: str = error["message"]
    assert "\n" not in message
    assert len(message) < 300
    return message


BAD: list[tuple[Any, str]] = [
    ({}, "text is missing"),
    ([], "a request is a JSON object"),
    ({"text": 5}, "text: input should be a valid string, not 5"),
    ({"text": None}, "text: input should be a valid string"),
    ({"text": ""}, "the text is empty"),
    ({"text": " \n"}, "the text is empty"),
    ({"text": "a\ud800"}, "half a surrogate pair"),
    ({"text": TEXT, "txt": 1}, "there is no field txt; did you mean text?"),
    ({"text": TEXT, "É": 1}, "there is no field É"),
    ({"text": TEXT, "TEXT": 1}, "there is no field TEXT"),
    ({"text": TEXT, "\ud800": 1}, "unable to parse raw data as a unicode string"),
    ({"text": TEXT, "options": {"canidates": 3}}, "no field options.canidates; did you mean candidates?"),
    ({"text": TEXT, "options": {"candidates": 0}}, "options.candidates: input should be greater than"),
    ({"text": TEXT, "options": {"candidates": True}}, "options.candidates: input should be a valid integer"),
    ({"text": TEXT, "options": {"nil_threshold": 1.1}}, "options.nil_threshold"),
    ({"text": TEXT, "options": {"search": "best"}}, "options.search: input should be 'beam' or 'exact'"),
    ({"text": TEXT, "mentions": "Adobe"}, "mentions: input should be a valid list"),
    ({"text": TEXT, "mentions": [5]}, "mentions[0]"),
    ({"text": TEXT, "mentions": [{"start": 0}]}, "mentions[0].end is missing"),
    ({"text": TEXT, "mentions": [{"start": 0, "end": 5, "at": 1}]}, "no field mentions[0].at"),
    ({"text": TEXT, "mentions": [{"start": 25, "end": 400}]}, "25-400 is outside its text of 30 characters"),
    ({"text": TEXT, "mentions": [{"start": 5, "end": 5}]}, "outside its text"),
    ({"text": TEXT, "mentions": [{"start": -3, "end": 5}]}, "outside its text"),
    (
        {"text": TEXT, "mentions": [{"start": 0, "end": 10**40}]},
        "a mention is its words or an object with start and end",
    ),
    ({"text": TEXT, "mentions": [{"start": 0, "end": 5}, {"start": 3, "end": 9}]}, "3-9 overlaps 0-5"),
    ({"text": TEXT, "mentions": ["Adobe", {"start": 0, "end": 5}]}, "the mention 'Adobe' is given twice"),
    ({"text": TEXT, "mentions": [""]}, "the mention is empty"),
    ({"text": TEXT, "mentions": ["\udfff"]}, "half a surrogate pair"),
    ({"text": TEXT, "id": "\ud800"}, "half a surrogate pair"),
    ({"text": TEXT, "image": "file:///etc/passwd"}, "it is an http(s) URL, a data: URL or base64"),
    ({"text": TEXT, "image": "/etc/passwd"}, "neither an http(s) URL nor base64"),
    ({"text": TEXT, "image": "not base64!"}, "neither an http(s) URL nor base64"),
    ({"text": TEXT, "image": "data:image/png,abc"}, "is in base64"),
    ({"caption": TEXT}, "there is no field caption; did you mean text?"),
    (
        {"text": TEXT, "mentions": [{"start": 0, "end": 5, "name": "Adobe"}]},
        "no field mentions[0].name; end, start",
    ),
    ({"text": TEXT, "options": {"text": 1}}, "there is no field options.text; candidates, demonstrations"),
    ({"text": TEXT, "image": "http://pictures.test/x"}, "http://pictures.test/x: nothing is fetched here"),
    ({"documents": []}, "documents: list should have at least 1 item"),
    ({"documents": {"text": TEXT}}, "documents: input should be a valid list"),
    ({"documents": [{"text": TEXT}], "text": TEXT}, "there is no field text"),
    ({"documents": [{"text": TEXT, "options": {}}]}, "no field documents[0].options"),
    ({"documents": [{"text": TEXT, "id": "a"}, {"text": TEXT, "id": "a"}]}, "two documents have the same id"),
]


@pytest.mark.parametrize(("request_", "says"), BAD, ids=lambda v: v if isinstance(v, str) else "")
def test_wrong_requests_are_refused_in_words(ask: Any, request_: Any, says: str) -> None:
    assert says in refused(ask(content=json.dumps(request_), headers=JSON), 400, "bad_request")


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        ({"text": "x" * 101}, "the text has 101 characters; at most 100 are taken"),
        ({"text": TEXT, "mentions": ["Adobe"] * 5}, "5 mentions in one document; at most 4 are taken"),
        ({"documents": [{"text": TEXT}] * 4}, "4 documents in one request; at most 3 are taken"),
        ({"text": "x" * 20_000}, "the request is larger than 10,485 bytes"),
    ],
)
def test_a_request_that_is_too_large_is_refused(ask: Any, request_: Any, says: str) -> None:
    assert refused(ask(json=request_), 413, "too_large") == says


@pytest.mark.parametrize(
    ("body", "kind", "says"),
    [
        (b'{"text": "\xff"}', "application/json", "the body is not valid UTF-8"),
        (b'{"text": ', "application/json", "the body is not JSON: Expecting value (line 1, column 10)"),
        (b"", "application/json", "the body is not JSON"),
        (b"[" * 5000, "application/json", "JSON that cannot be read"),
        (b'{"text": ' + b"1" * 5000 + b"}", "application/json", "JSON that cannot be read"),
        (b"text=Adobe", "application/x-www-form-urlencoded", "send application/json or a form"),
        (b"x", "multipart/form-data", "names no boundary"),
        (b"x", "multipart/form-data; boundary=b", "cut short"),
        (b'--b\r\nContent-Disposition: form-data; name="text"\r\n\r\nAdo', "multipart/form-data; boundary=b",
         "cut short"),
        (b"--b\r\nX: y\r\n\r\nAdobe\r\n--b--", "multipart/form-data; boundary=b", "cannot be read"),
        (b'--b\r\nContent-Disposition: form-data; name="text"\r\n\r\n\xff\r\n--b--\r\n',
         "multipart/form-data; boundary=b", "the form is not valid UTF-8"),
    ],
)  # fmt: skip
def test_bodies_that_cannot_be_read_are_refused(ask: Any, body: bytes, kind: str, says: str) -> None:
    assert says in refused(ask(content=body, headers={"Content-Type": kind}), 400, "bad_request")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"txt": (None, "x")}, "there is no form field 'txt'"),
        ({"text": ("text.txt", b"x")}, "the form's text is a file"),
        ({"text": (None, TEXT), "mentions": (None, "[")}, "the form's mentions is not JSON"),
        ({"text": (None, TEXT), "options": (None, '{"x": 1}')}, "there is no field options.x"),
    ],
)
def test_forms_with_wrong_fields_are_refused(ask: Any, fields: Any, says: str) -> None:
    assert says in refused(ask(files=fields), 400, "bad_request")


def test_a_connection_is_kept_where_all_was_read(ask: Any) -> None:
    assert "connection" not in ask(json={}).headers


def test_a_field_given_twice_is_refused(ask: Any) -> None:
    answer = ask(files=[("text", (None, TEXT)), ("text", (None, "other"))])
    assert "the form's text is given twice" in refused(answer, 400, "bad_request")


def test_an_upload_is_read_no_further_than_the_limit(tmp_path: Path) -> None:
    served, read = endpoint(tmp_path, echoed, LIMITS), 0

    async def parts() -> Any:
        nonlocal read
        for _ in range(1000):
            read += 1024
            yield b" " * 1024

    async def asked() -> httpx.Response:
        async with client(served) as http:
            return await http.post("/v1/link", content=parts(), headers=JSON)

    answer = asyncio.run(asked())
    refused(answer, 413, "too_large")
    assert read < 20_000
    assert answer.headers["connection"] == "close"  # nor is the rest waited for


def test_a_fault_of_one_document_among_several_is_its_row(ask: Any) -> None:
    bad = [{"text": ""}, {"text": TEXT, "mentions": ["Adobe"] * 5}, {"text": TEXT, "image": "not base64!"}]
    for one in bad:
        answer = ask(json={"documents": [one, {"text": TEXT, "id": "good"}]})
        assert answer.status_code == 200, answer.text
        first, second = answer.json()["links"]
        assert (first["status"], second["document_id"], second["status"]) == ("error", "good", "nil")
        assert first["error"] == refused(
            ask(json=one), ask(json=one).status_code, ask(json=one).json()["error"]["kind"]
        )


PICTURE = b"\x89PNG-like \xff bytes"


@pytest.mark.parametrize(
    "asked",
    [
        {"json": {"text": TEXT, "image": base64.b64encode(PICTURE).decode()}},
        {"json": {"text": TEXT, "image": "data:image/png;base64," + base64.b64encode(PICTURE).decode()}},
        {"files": {"text": (None, TEXT), "image": ("x.png", PICTURE)}},
    ],
    ids=["base64", "data", "form"],
)
def test_a_picture_arrives_as_its_bytes(tmp_path: Path, asked: dict[str, Any]) -> None:
    seen = []

    async def linker(table: Any) -> Any:
        seen.append(table.to_pylist()[0])
        return await echoed(table)

    served = endpoint(tmp_path, linker, LIMITS)

    async def ask() -> httpx.Response:
        async with client(served) as http:
            return await http.post("/v1/link", **asked)

    assert asyncio.run(ask()).status_code == 200
    assert (seen[0]["text"], seen[0]["image"]) == (TEXT, PICTURE)


PHOTO = b"\xff\xd8\xff\xe0\x00\x10JFIF" + bytes(range(256))  # as one begins
B64 = base64.b64encode(PHOTO).decode()
PLAIN: dict[str, Any] = {
    "a data: URL": {"text": TEXT, "image": "DATA:image/jpeg;charset=utf-8;BASE64," + B64},
    "base64 of URLs": {"text": TEXT, "image": base64.urlsafe_b64encode(PHOTO).decode().rstrip("=")},
    "no picture": {"text": TEXT, "image": ""},
    "a picture that is null": {"text": TEXT, "image": "null"},
}


@pytest.mark.parametrize("what", PLAIN)
def test_a_picture_is_read_as_a_reader_reads_it(tmp_path: Path, what: str) -> None:
    (tmp_path / "in.jsonl").write_text(json.dumps(PLAIN[what]))
    (read,) = [row for table in documents(str(tmp_path / "in.jsonl")) for row in table.to_pylist()]
    (asked,) = requests.rows(requests.as_call(Body(PLAIN[what]), "request", Online()), Online(), nowhere)
    (row,) = asked.to_pylist()
    assert (row["image"], row["error"]) == (read["image"], None)
    assert (row["image"] is None) == (what.startswith(("no", "a picture")))


def test_a_file_that_nobody_chose_is_no_picture() -> None:
    """As browsers send the field of a form without a choice."""
    part = 'Content-Disposition: form-data; name="{}"'
    lines = ["--b", part.format("text"), "", TEXT, "--b", part.format("image") + '; filename=""',
             "Content-Type: application/octet-stream", "", "", "--b--", ""]  # fmt: skip
    headers = Headers({"content-type": "multipart/form-data; boundary=b"})
    body = asyncio.run(requests.parsed(headers, "\r\n".join(lines).encode()))
    assert (body.content, body.picture) == ({"text": TEXT}, None)


def test_a_document_becomes_the_row_that_a_reader_makes_of_it(tmp_path: Path) -> None:
    lines = [
        {"id": "spans", "text": TEXT, "mentions": [{"start": 0, "end": 5}, {"start": 10, "end": 16}]},
        {"id": "outside", "text": TEXT, "mentions": [{"start": 25, "end": 400}, {"start": 0, "end": 5}]},
        {"id": "words", "text": "Boston, then Boston; no rain", "mentions": ["Boston", "Boston", "Penrose"]},
        {
            "id": "both",
            "text": "\U0001f600 in Boston",
            "mentions": [{"mention": "Boston", "start": 6, "end": 12}],
        },
        {"id": "neither", "text": TEXT, "mentions": [{"mention": "Google", "start": 0, "end": 5}]},
        {
            "id": "folded",
            "text": "Sir Walter, 2nd Baronet",
            "mentions": [{"mention": "Sir Walter 2nd Baronet"}],
        },
        {"id": "found", "text": TEXT},
        {"id": "none", "text": TEXT, "mentions": []},
        {"id": "empty", "text": ""},
    ]
    file = tmp_path / "lines.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    read = [_without_place(row) for table in documents(str(file)) for row in table.to_pylist()]
    many = requests.as_call(Body({"documents": lines}), "request", Online())
    assert [t.to_pylist()[0] for t in requests.rows(many, Online(), nowhere)] == read


def _without_place(row: Any) -> Any:
    """A row as a request has it, which is no file: without the line in it and in its errors."""
    place = re.compile(r" \(lines\.jsonl:\d+\)$")
    given = row["given"] and [m | {"error": m["error"] and place.sub("", m["error"])} for m in row["given"]]
    return row | {"source": None, "given": given, "error": row["error"] and place.sub("", row["error"])}


def test_a_mention_given_as_a_string_is_its_first_place(ask: Any) -> None:
    asked = requests.as_call(Body({"text": "An adobe, Adobe.", "mentions": ["Adobe", "Oracle"]}), "r", LIMITS)
    first, second = requests.rows(asked, LIMITS, nowhere)[0].to_pylist()[0]["given"]
    assert (first["mention_id"], first["start"]) == ("10-15", 10)
    assert (second["mention_id"], second["start"], second["error"]) == ("Oracle", None, None)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda v: (
        st.lists(v, max_size=3)
        | st.dictionaries(st.sampled_from(["text", "image", "mentions", "start", "end", "id", "options"]), v)
    ),
    max_leaves=8,
)


@settings(deadline=None, max_examples=200)
@given(json_values)
def test_any_json_is_taken_or_refused_in_words(value: Any) -> None:
    content = json.loads(json.dumps(value))
    try:
        requests.rows(requests.as_call(Body(content), "r", LIMITS), LIMITS, nowhere)
    except Fault as fault:
        assert fault.status in (400, 413)
        assert "\n" not in fault.message
        fault.message.encode()  # can be said


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=300), st.sampled_from(["application/json", "multipart/form-data; boundary=b"]))
def test_any_bytes_are_refused_in_words(ask: Any, body: bytes, kind: str) -> None:
    ending = b"\r\n--b--\r\n" if "b" in kind else b""
    refused(ask(content=body + ending, headers={"Content-Type": kind}), 400, "bad_request")


def test_the_description_has_the_whole_contract(ask: Any) -> None:
    described = ask("GET", "/openapi.json").json()
    link = described["paths"]["/v1/link"]["post"]
    assert link["requestBody"]["content"].keys() == {"application/json", "multipart/form-data"}
    assert {"200", "400", "401", "413", "500", "503", "504"} <= link["responses"].keys()
    defined = described["components"]["schemas"]
    assert {"One", "Many", "Document", "Span", "Options", "Answer", "Link", "Error"} <= defined.keys()
    text = json.dumps(described)
    assert set(re.findall(r"#/components/schemas/(\w+)", text)) <= defined.keys()
    assert "422" not in text


def test_other_addresses_and_methods_are_refused_in_the_same_form(ask: Any) -> None:
    assert ask("GET", "/nothing").json()["error"]["message"].startswith("there is nothing at this address")
    assert ask("GET", "/v1/link").status_code == 405
    assert ask("GET", "/v1/demonstration").json()["error"]["kind"] == "bad_request"
    assert ask("GET", "/v1/demonstration", params={"id": "one/0-5"}).json()["mention"] == "Adobe"
    assert ask("GET", "/v1/demonstration", params={"id": "other"}).status_code == 404
    assert ask("GET", "/v1/demonstration/picture", params={"id": "one/0-5"}).status_code == 404
    assert ask("GET", "/v1/examples").json()[0].keys() == {"title", "text", "mentions", "picture"}
