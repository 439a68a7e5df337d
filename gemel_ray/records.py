"""The tables that travel through the graph: their columns, types and units."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

Row = dict[str, Any]  # a row of a table, by column

MENTION = pa.struct(
    [
        pa.field("mention_id", pa.string()),  # "start-end"; without a place the mention itself
        pa.field("mention", pa.string()),
        pa.field("start", pa.int32()),  # characters of the text, end exclusive; null: not in the text
        pa.field("end", pa.int32()),
        pa.field("target", pa.string()),  # the entity's name, if known (demonstrations, gold)
        pa.field("target_id", pa.string()),  # its id; "NIL": known not to be in the knowledge base
        pa.field("type", pa.string()),  # or topic, if the gold files have it
        pa.field("placed", pa.string()),  # how its place was found, if it differs from the row's
        pa.field("error", pa.string()),
    ]
)
OPTIONS = pa.struct(  # settings of one document; null: as configured
    [
        pa.field("candidates", pa.int32()),
        pa.field("nil_threshold", pa.float32()),
        pa.field("search", pa.string()),  # beam or exact
        pa.field("demonstrations", pa.bool_()),  # False: none
    ]
)
DOCUMENT = pa.schema(
    [
        pa.field("document_id", pa.string()),
        pa.field("source", pa.string()),  # the file and the row in it, by which a resumed job recognises it
        pa.field("text", pa.string()),
        pa.field("image", pa.large_binary()),  # encoded picture, or null
        pa.field("image_address", pa.string()),  # its path or URL, or null
        pa.field("image_key", pa.string()),  # GEMEL's img_name or img_url, of a precomputed feature
        pa.field("given", pa.list_(MENTION)),  # null: to be found by Detect
        pa.field("options", OPTIONS),
        pa.field("unread", pa.string()),  # names of fields that no form reads, a line each
        pa.field(
            "unread_picture", pa.string()
        ),  # the one of these that looks like a picture, if there is no picture
        pa.field("error", pa.string()),
    ]
)
CANDIDATE = pa.struct(
    [pa.field("entity", pa.string()), pa.field("entity_id", pa.string()), pa.field("score", pa.float32())]
)
LINK = pa.schema(
    [
        pa.field("document_id", pa.string()),
        pa.field("mention_id", pa.string()),  # null: the whole document (no mention in it, or an error)
        pa.field("mention", pa.string()),
        pa.field("start", pa.int32()),
        pa.field("end", pa.int32()),
        pa.field("status", pa.string()),  # linked, nil or error
        pa.field("entity", pa.string()),
        pa.field("entity_id", pa.string()),
        pa.field("score", pa.float32()),
        pa.field("probability", pa.float32()),
        pa.field("candidates", pa.list_(CANDIDATE)),
        pa.field("demonstrations", pa.list_(pa.string())),  # in the order of the prompt
        pa.field("error", pa.string()),
        pa.field("why", pa.string()),  # the evidence for the answer, part by part
        pa.field("note", pa.string()),  # how the input was changed to be linked
        pa.field("fingerprint", pa.string()),  # of configuration, models and knowledge: see config.py
    ]
)
