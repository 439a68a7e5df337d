"""The schemas of a request and its answer: requests are checked by them, and /openapi.json shows them.

Types are strict (a number is not a text) and unknown fields are refused: to ignore a misspelled option would
give a wrong answer.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from gemel_ray.config import STAGES

Json = dict[str, Any]
Responses = dict[int | str, Json]  # of a route, by status

# Errors of a request: one sentence, and one of eight kinds. Knows nothing of the caller.


Kind = Literal[
    "bad_request", "too_large", "unauthorized", "forbidden", "busy", "timeout", "not_ready", "internal"
]
STATUS: dict[Kind, int] = {
    "bad_request": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "too_large": 413,
    "internal": 500,
    "busy": 503,
    "not_ready": 503,
    "timeout": 504,
}


class Fault(Exception):
    """An answer that is an error; `retry` is for Retry-After, in seconds."""

    def __init__(self, kind: Kind, message: str, retry: int | None = None) -> None:
        super().__init__(message)
        self.kind, self.message, self.retry = kind, message, retry

    @property
    def status(self) -> int:
        return STATUS[self.kind]

    def headers(self) -> dict[str, str]:
        named = {"unauthorized": {"WWW-Authenticate": "Bearer"}}.get(self.kind, {})
        return named | ({"Retry-After": str(self.retry)} if self.retry is not None else {})

    def body(self, request_id: str) -> dict[str, dict[str, str]]:
        return {"error": {"message": self.message, "kind": self.kind, "request_id": request_id}}


_TEXT = "Adobe and Google met in Paris."


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Span(_Strict):
    """The place of a mention in the text, in characters, end exclusive."""

    start: int
    end: int


class Words(_Strict):
    """A mention's words, and their place where it is known; the two must agree."""

    mention: str
    start: int | None = None
    end: int | None = None


class Cell(_Strict):
    """A cell of the document's table, or, with words, what of it is the mention."""

    row: int = Field(description="from 0, below the header")
    column: str | int = Field(description="its name, or its number from 0")
    mention: str | None = None


class Options(_Strict):
    """What one request changes in the configuration."""

    candidates: int | None = Field(None, ge=1, le=64, description="entities in `candidates`; 1 is greedy")
    nil_threshold: float | None = Field(None, ge=0, le=1, description="below this probability: NIL")
    search: Literal["beam", "exact"] | None = Field(None, description="how candidates are searched")
    demonstrations: bool | None = Field(None, description="false: without solved examples in the prompt")


class Document(_Strict):
    """A text and, if there is one, its picture."""

    text: str = Field(description="the caption")
    image: str | None = Field(
        None, description="an http(s) URL, a data: URL, or the picture's bytes in base64; or none"
    )
    table: Json | list[Json] | str | None = Field(
        None,
        description="rows and columns around the mentions: {columns, rows}, a list of objects, or CSV; it "
        "follows the text, a line a row, which may then be empty",
    )
    mentions: list[str | Span | Words | Cell] | None = Field(
        None,
        description="what is to be linked: words (a string; their first place in the text counts, for a "
        "second mention of the same words the next), a span, or both; a row and column of the table. "
        "Without it, names and aliases of the knowledge base are looked for.",
    )
    id: str | None = Field(None, description="comes back as document_id")


class One(Document):
    """One document."""

    options: Options | None = None
    model_config = ConfigDict(
        json_schema_extra={"examples": [{"text": _TEXT, "mentions": ["Adobe", {"start": 10, "end": 16}]}]}
    )


class Many(_Strict):
    """Several documents. A fault of one of them is a row with status error, and the others go on."""

    documents: Annotated[list[Document], Field(min_length=1)]
    options: Options | None = None


class Candidate(BaseModel):
    entity: str
    entity_id: str
    score: float | None = Field(description="log-probability of the name")


class Link(BaseModel):
    """One mention's answer, with the columns of links/*.parquet."""

    document_id: str
    mention_id: str | None = Field(description="start-end; null: the document as a whole")
    mention: str | None
    start: int | None
    end: int | None
    status: Literal["linked", "nil", "error"]
    entity: str | None
    entity_id: str | None
    score: float | None = Field(description="log-probability of the entity's name")
    probability: float | None = Field(description="among the candidates")
    candidates: list[Candidate] | None
    demonstrations: list[str] | None = Field(description="solved examples shown, as they stood in the prompt")
    error: str | None
    why: str | None = Field(description="what spoke for the answer: by the workspace's ranker, by the model")
    note: str | None = Field(description="what was done to the input so that it could be linked")
    fingerprint: str = Field(description="of configuration, models and knowledge")


class Answer(BaseModel):
    """All documents' rows, in order."""

    request_id: str
    links: list[Link]
    timings: dict[str, float] = Field(
        description=f"seconds of {', '.join(STAGES)} (of the slowest document) and of the request as a whole"
    )
    fingerprint: str
    knowledge: str = Field(description="version of the workspace")


class ErrorBody(BaseModel):
    message: str = Field(description="one plain sentence")
    kind: Kind
    request_id: str


class Error(BaseModel):
    error: ErrorBody


def schemas() -> Json:
    """The requests' schemas, by name, which the routes do not declare to FastAPI."""
    from pydantic.json_schema import models_json_schema

    pairs: list[Any] = [(One, "validation"), (Many, "validation")]
    found = models_json_schema(pairs, ref_template="#/components/schemas/{model}")[1]
    defined: Json = found["$defs"]
    return defined
