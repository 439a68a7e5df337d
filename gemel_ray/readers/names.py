"""What a field's name says: that it is the text, a picture, or something that no form reads."""

from __future__ import annotations

import re
from functools import lru_cache

# The names of a text, the likeliest first.
TEXTS = (
    "text", "caption", "TEXT", "alt_text", "Text", "Caption", "CAPTION", "txt", "alttext", "altText", "alt",
    "caption_str", "image_caption", "raw_caption", "caption_reference_description",
    "caption_alt_text_description", "caption_attribution_description", "original_caption", "org_caption",
    "captions", "sentences", "description", "image_description", "photo_description", "ai_description",
)  # fmt: skip
OURS = {"id", "key", "mentions", "table", "image_key", "status", "error_message"}
RELEASED = {"mention", "target", "golden", "type", "start", "end", "img_name", "img_url", "sentence",
            "entities", "answer", "imgPath", "img_list", "spans", "ents", "label", "labels", "targets",
            "target_id", "target_ids", "answers", "qids", "context_left", "context_right", "input", "output",
            "label_title", "Wikipedia_title", "entity_title", "context_document_id"}  # fmt: skip
# What stands beside the url of a picture, and not of a page.
SIZES = {"width", "height", "WIDTH", "HEIGHT", "original_width", "original_height", "image_phash", "sha256",
         "similarity", "clip_similarity_vitb32"}  # fmt: skip
_KINDS = "jpg|jpeg|jpe|jfif|png|webp|gif|bmp|tiff?|avif|heic|heif|svg"
_NOUN = "images?|imgs?|pictures?|pics?|photos?"
_PLACE = "path|file|filename|filepath|fname|url|uri|src|link|bytes|base64|b64"
_ANY = f"{_PLACE}|name|data|content|source|media|attachments?|location|original|coco|flickr"
_CERTAIN = re.compile(rf"(?=.*(?:{_NOUN}))(?:{_NOUN}|(?:{_PLACE})s?)+|{_KINDS}")
_LIKELY = re.compile(rf"(?:{_NOUN}|(?:{_ANY})s?|\d)+")
_ENDING = re.compile(rf"\.(?:{_KINDS}|img|ico|jp2|psd)(?=$|[?#!:@/_&])", re.IGNORECASE)


@lru_cache(maxsize=4096)
def names_picture(name: str) -> bool:
    """Whether the name alone says that its value is a picture, or where one is: img, image_path, photoUrl."""
    return bool(_CERTAIN.fullmatch(_letters(name)))


@lru_cache(maxsize=4096)
def may_name_picture(name: str) -> bool:
    """Whether its value is a picture where it looks like one: file_name, media, url."""
    return names_picture(name) or bool(_LIKELY.fullmatch(_letters(name)))


def plainness(name: str) -> bool:
    """For sorting: what is called an image comes before what is called a photo, whose page may be meant."""
    return "im" not in _letters(name)


def ends_as_picture(value: str) -> bool:
    """Whether a path or URL names a picture's file."""
    return bool(_ENDING.search(value, max(0, len(value) - 300)))


@lru_cache(maxsize=4096)
def may_be_read(name: str) -> bool:
    """Whether any form reads a field of this name."""
    return name in TEXTS or name in OURS or name in RELEASED or name in SIZES or may_name_picture(name)


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
