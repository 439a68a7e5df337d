"""What the page asks for beside links, over the real app; no engine is needed."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO

import httpx
import pyarrow as pa
import pytest
from live import listening
from PIL import Image

from gemel_ray.config import Config
from gemel_ray.knowledge.workspace import Workspace
from gemel_ray.serving.app import app
from gemel_ray.serving.linker import Reply


@pytest.fixture(scope="module")
def server(workspace: Workspace, config: Config) -> Iterator[httpx.Client]:
    async def nobody(table: pa.Table) -> Reply:
        raise AssertionError("no links are asked for here")

    with listening(app(config, workspace, nobody)) as url, httpx.Client(base_url=url) as client:
        yield client


def test_a_demonstration_is_told_with_its_picture(server: httpx.Client, workspace: Workspace) -> None:
    row = workspace.bank.table.slice(5, 1).to_pylist()[0]
    found = server.get("/v1/demonstration", params={"id": row["id"]}).json()
    assert found == {n: row[n] for n in ("id", "text", "mention", "target")} | {"picture": True}
    picture = server.get("/v1/demonstration/picture", params={"id": row["id"]})
    assert picture.headers["content-type"] == "image/jpeg"
    assert max(Image.open(BytesIO(picture.content)).size) <= 160


def test_a_name_is_a_demonstration_without_a_picture(server: httpx.Client, workspace: Workspace) -> None:
    name = workspace.bank.ids([len(workspace.bank) - 1])[0]
    assert server.get("/v1/demonstration", params={"id": name}).json()["picture"] is False
    assert server.get("/v1/demonstration/picture", params={"id": name}).status_code == 404


def test_an_unknown_one_is_not_found(server: httpx.Client) -> None:
    for path in ("/v1/demonstration", "/v1/demonstration/picture"):
        answer = server.get(path, params={"id": "nowhere/0-1"})
        assert (answer.status_code, answer.json()["error"]["kind"]) == (404, "bad_request")


def test_examples_are_inputs_whose_pictures_are_there(server: httpx.Client) -> None:
    examples = server.get("/v1/examples").json()
    assert 4 <= len(examples) <= 6
    for example in examples:
        for mention in example["mentions"] or ():
            words = example["text"][mention["start"] : mention["end"]]
            assert words == words.strip() != ""
        if example["picture"]:
            Image.open(BytesIO(server.get(example["picture"]).content)).load()


def test_the_page_is_served_with_its_files(server: httpx.Client) -> None:
    assert "gemel-ray" in server.get("/").text
    for name in ("page.css", "page.js", "caption.js", "answer.js", "icon.svg"):
        assert server.get(f"/page/{name}").status_code == 200
