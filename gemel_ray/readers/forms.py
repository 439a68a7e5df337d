"""The forms of released data sets' rows: the document's columns. The native form is in reading.py.

One mention between its contexts: the rows of BLINK and of KILT.

    {"context_left", "mention", "context_right", "label_title" or "Wikipedia_title"}
    {"id", "input": "left [START_ENT] mention [END_ENT] right", "output": [{"answer": "its title"}]}

Sources: facebookresearch/BLINK, examples/zeshel/create_BLINK_zeshel_data.py (the first);
facebookresearch/KILT, README.md ("KILT data format") and kilt/datasets (the second). Read from that code, not
from data.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote

from gemel_ray.readers.fields import (
    NATIVE,
    NIL,
    BadRecord,
    caption_of,
    is_pair,
    is_unicode,
    short,
    text_of,
    typed,
    valid_text,
    whole_number,
)
from gemel_ray.readers.mentions import (
    ENDS,
    IDS,
    STARTS,
    TARGETS,
    TYPES,
    mention,
    mentions,
    place,
    places,
    side_by_side,
)
from gemel_ray.readers.pictures import SourceFile, columns_of, field_of, unread
from gemel_ray.records import Row

_MARKED = re.compile(r"\s*\[START_ENT\]\s*(.*?)\s*\[END_ENT\]\s*", re.DOTALL)
_TITLES = ("Wikipedia_title", "label_title", "entity_title")
_PARTS = ("context_left", "mention", "context_right")
ELSEWHERE = "context_document_id"
_CONTEXT_READ = {*NATIVE, *_PARTS, "input", "output", "meta", *_TITLES}


def context_columns(raw: Row, at: SourceFile) -> Row:
    """The document's columns. Raises BadRecord."""
    if ELSEWHERE in raw:
        raise BadRecord(
            f"its text is a document of another file ({ELSEWHERE}), which is not read: give rows with "
            "context_left, mention and context_right"
        )
    left, words, right, target = _between(raw) if "mention" in raw else _marked(raw)
    if not words.strip():
        raise BadRecord("the mention is empty")
    start = f"{left} " if left and not left[-1].isspace() else left
    text = f"{start}{words} {right}" if right[:1].isalnum() else f"{start}{words}{right}"
    place = {"mention": words, "start": len(start), "end": len(start) + len(words), "target": target}
    field = field_of(raw, pair=False) or ""
    picture = columns_of(raw.get(field), field, at)
    return {
        "text": text_of({"text": text}, "text"), "given": [mention(place, text)], **picture,
        **unread(raw, _CONTEXT_READ | {field}, pictured=bool(picture)),
    }  # fmt: skip


def _between(raw: Row) -> tuple[str, str, str, Any]:
    left, words, right = (
        typed(raw, name, str) or "" for name in ("context_left", "mention", "context_right")
    )
    return left, words, right, next((raw[name] for name in _TITLES if raw.get(name)), None)


def _marked(raw: Row) -> tuple[str, str, str, Any]:
    text = text_of(raw, "input")
    found = _MARKED.search(text)
    if found is None:
        raise BadRecord("its input has [START_ENT] and no [END_ENT] after it")
    answers = [o["answer"] for o in raw.get("output") or () if isinstance(o, dict) and o.get("answer")]
    return text[: found.start()], found[1], text[found.end() :], answers[0] if answers else None


# The form of WikiMEL, Richpedia-MEL and MIMIC: one mention per object, or several side by side.
#
#     {"id", "sentence", "mentions": "a string", "entities": "its name", "answer": "Q42", "imgPath"}
#
# Sources: season1blue/DWE, nel_model/prepare_wikipedia.py (an object of such objects by id, pictures at
# imgPath) and prepare_richpedia.py (`img_list` in imgPath's place), data_process/*/build_text.py (`entities`
# is the name of `answer`); pengfei-luo/MIMIC, codes/utils/dataset.py (an array of them, mentions
# percent-encoded, imgPath empty without picture, answer "nil" for none). Read from that code, not from data.


_MELBENCH_READ = {*NATIVE, "sentence", "entities", "answer"}


def melbench_columns(raw: Row, at: SourceFile) -> Row:
    """The document's columns. Raises BadRecord."""
    text = text_of(raw, "sentence")
    return {"text": text, "given": _melbench_mentions(raw, text), **_melbench_picture(raw, at)}


def _melbench_mentions(raw: Row, text: str) -> list[Row]:
    given = raw.get("mentions")
    if not isinstance(given, list):
        given = [typed(raw, "mentions", str)]
        if not given[0]:
            raise BadRecord("the mention is empty")
    spelled = [_melbench_word(word, text) if isinstance(word, str) else word for word in given]
    return mentions([_melbench_entity(m) for m in side_by_side(raw, spelled, "mentions")], text)


def _melbench_word(word: str, text: str) -> str:
    decoded = unquote(word)
    return decoded if decoded != word and is_unicode(decoded) and not places(word, text) else word


def _melbench_entity(mention: Row) -> Row:
    """The mention with its `target` percent-decoded, or without one where the answer is "nil"."""
    target, answer = mention.get("target"), mention.get("target_id")
    if isinstance(answer, str) and answer.strip().upper() == NIL:
        target = None
    return mention | {"target": unquote(target) if isinstance(target, str) else target}


def _melbench_picture(raw: Row, at: SourceFile) -> Row:
    """The picture's columns, by the release's key (the first of several: a document has one picture), else by
    any other field."""
    several = typed(raw, "img_list", list) or [None]
    key = valid_text(raw.get("imgPath") or several[0], "the picture's name")
    if isinstance(key, str) and key:
        return at.released(key) | unread(raw, _MELBENCH_READ | {"imgPath", "img_list"}, pictured=True)
    field = field_of(raw, pair=False) or ""
    picture = columns_of(raw.get(field), field, at)
    return picture | unread(raw, _MELBENCH_READ | {field}, pictured=bool(picture))


# GEMEL's form: one mention per line, as a string, with `target`, `golden` and `img_url` or `img_name`. Tables
# of one's own have this form, too, with other names: caption, mention, entity, image.


_NOT_A_MENTIONS = {"text", "title", "label"}  # these may say something of the row
_GEMEL_FIELDS = {"mention", *STARTS, *ENDS, *TARGETS, *IDS, *TYPES} - _NOT_A_MENTIONS
_GEMEL_READ = NATIVE - {"mentions"} | _GEMEL_FIELDS


def gemel_columns(raw: Row, at: SourceFile) -> Row:
    """The document's columns. Raises BadRecord."""
    field, text = caption_of(raw)
    given = [_gemel_mention(raw, text)]
    return {"text": text, "given": given, **_gemel_picture(raw, at, field)}


def _gemel_picture(raw: Row, at: SourceFile, caption: str) -> Row:
    """The picture's columns, by the release's key, else by any other field."""
    key, read = valid_text(raw.get("img_name") or raw.get("img_url"), "the picture's name"), {caption}
    if isinstance(key, str) and key:
        return at.keyed(key) | unread(raw, _GEMEL_READ | read | {"img_name", "img_url"}, pictured=True)
    field = field_of(raw, pair=is_pair(raw, caption)) or ""
    picture = columns_of(raw.get(field), field, at)
    return picture | unread(raw, _GEMEL_READ | read | {field}, pictured=bool(picture))


def _gemel_mention(raw: Row, text: str) -> Row:
    """The mention, with `start` and `end` where they were added (-1: nowhere). The prompt has it as the file
    spells it."""
    if not raw["mention"]:
        raise BadRecord("the mention is empty")
    found = mention({name: raw[name] for name in _GEMEL_FIELDS & raw.keys()}, text)
    return found | ({"target": None} if found["target_id"] == NIL else {})


# WikiDiverse's forms (Wang et al., ACL 2022): arrays instead of objects.
#
#     [sentence, image URL, topic, [[mention, type, start, end, entity URL], ...]]
#     [sentence, image URL, mention, type, left, right, entity URL, candidates, topic, start, end]
#
# Sources: wangxw5/wikiDiverse, README.md ("Data Format") for the first, eval_cands_recall.py for the second
# (*_w_10cands.json), for "nil", and for the slips in front of some URLs (nhttps, ]https). Places are
# characters, end exclusive. Read from there, not from the data.


def wikidiverse_fits(raw: Any) -> bool:
    """Recognised by the position of the list of mentions or of candidates."""
    return isinstance(raw, list) and (_is_passage(raw) or _has_candidates(raw))


def _is_passage(raw: list[Any]) -> bool:
    return len(raw) == 4 and isinstance(raw[3], list)


def _has_candidates(raw: list[Any]) -> bool:
    return len(raw) == 11 and isinstance(raw[7], list)


def wikidiverse_columns(raw: list[Any], at: SourceFile) -> Row:
    """The document's columns. Raises BadRecord."""
    text, url = text_of({"sentence": raw[0]}, "sentence"), valid_text(raw[1], "the picture's name")
    if _is_passage(raw):
        topic, listed = raw[2], raw[3]
    else:
        mention, kind, _, _, entity, _, topic, start, end = raw[2:]
        listed = [[mention, kind, start, end, entity]]
    given = mentions([_wikidiverse_mention(m, text, topic) for m in listed], text)
    return {"text": text, "given": given, **(at.released(url) if isinstance(url, str) and url else {})}


def _wikidiverse_mention(raw: Any, text: str, topic: object) -> Row | BadRecord:
    """The mention as `mentions` takes it. If the given place has other words, the nearest place of the
    mention's words is taken."""
    if not isinstance(raw, list) or len(raw) < 5 or not isinstance(raw[0], str) or not raw[0].strip():
        return BadRecord(f"a mention is [mention, type, start, end, entity], not {short(raw, 80)}")
    words, kind, start, end, entity = raw[:5]
    near = whole_number(start)
    at: tuple[Any, Any] = (near, whole_number(end))
    if near is None or text[near : at[1] or near] != words:
        at = place(words, text, near or 0) or (None, None)
    kind = kind if isinstance(kind, str) and kind else topic
    return {"mention": words, "start": at[0], "end": at[1], "type": kind, **_wikidiverse_target(entity)}


def _wikidiverse_target(entity: object) -> Row:
    """The Wikipedia page's title: Detroit Lions for https://en.wikipedia.org/wiki/Detroit_Lions."""
    if not isinstance(entity, str) or not is_unicode(entity):
        return {}
    if entity.strip().upper() == NIL:
        return {"target_id": NIL}
    page = entity.rpartition("/wiki/")[2].partition("#")[0]
    return {"target": " ".join(unquote(page).replace("_", " ").split()) or None}
