"""Every judged mention with its picture, answer, candidates and demonstrations.

Pictures stand in the page itself, scaled down: it needs nothing else.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Callable, Mapping, Sequence
from math import exp
from typing import Any

from gemel_ray.evaluation.evaluate import Evaluation
from gemel_ray.evaluation.judged import Judged, pictures, whole_links
from gemel_ray.knowledge import thumbnails
from gemel_ray.models.images import read_image
from gemel_ray.models.limits import ImageError

Picture = Callable[[str], str | None]  # a demonstration's id to its picture as a data address
_SIDE = 96
_NIL = "NIL: none of them"


def cards(found: Evaluation, picture: Picture, most: int) -> tuple[int, str]:
    """How many mentions are shown, and the HTML that does: at most `most`, wrong ones first."""
    shown = sorted([*found.judged, *found.nil], key=lambda j: j.right)[:most]
    wanted = {j.key for j in shown}
    links = whole_links(found.output, wanted) if found.output else {}
    images = pictures(found.gold, wanted)
    return len(shown), "\n".join(
        _card(j, links.get(j.key, {}), thumbnail(*images.get(j.key, (None, None))), picture) for j in shown
    )


def _card(judged: Judged, link: dict[str, Any], image: str | None, picture: Picture) -> str:
    gold = judged.gold
    answer = judged.answer or {"nil": _NIL, "error": "error"}.get(judged.status, "missing")
    verdict = "right" if judged.right else "wrong"
    why = f'<p class="wrong small">{html.escape(link["error"])}</p>' if link.get("error") else ""
    return (
        f'<div class="card"><div>{image_tag(image)}</div>'
        f'<div><p>{marked(gold)}</p><p><b class="{verdict}">{html.escape(answer)}</b>'
        f"{'' if judged.right else ' &mdash; should be ' + html.escape(gold['target'] or _NIL)}</p>{why}"
        f'<p class="small">{html.escape(gold["document_id"])} {html.escape(gold["mention_id"])}</p></div>'
        f"<div>{candidate_bars(link)}{_demonstrations(link, picture)}</div></div>"
    )


def marked(gold: Mapping[str, Any]) -> str:
    """The text with the mention in it, as HTML."""
    text: str = gold["text"]
    if gold["mention"] is None:  # its place is none in this text
        return html.escape(text)
    if gold["start"] is None:  # it has no place
        return f"{html.escape(text)} <mark>{html.escape(gold['mention'])}</mark>"
    start, end = gold["start"], gold["end"]
    parts = (html.escape(part) for part in (text[:start], text[start:end], text[end:]))
    return "{}<mark>{}</mark>{}".format(*parts)


def candidate_bars(link: Mapping[str, Any]) -> str:
    """A link's candidates and their probabilities, as HTML."""
    candidates: Sequence[dict[str, Any]] = link.get("candidates") or []
    scores = [float(c["score"]) for c in candidates]
    weights = [exp(s - max(scores)) for s in scores]
    return "".join(
        f'<div class="bar"><span>{html.escape(str(c["entity"]))}</span>'
        f'<i style="width:{100 * w / sum(weights):.1f}%"></i><span>{w / sum(weights):.1%}</span></div>'
        for c, w in zip(candidates, weights, strict=True)
    )


def _demonstrations(link: dict[str, Any], picture: Picture) -> str:
    ids: Sequence[str] = link.get("demonstrations") or []
    if not ids:
        return ""
    shown = "".join(
        f"<figure>{image_tag(picture(i))}<figcaption>{html.escape(i)}</figcaption></figure>" for i in ids
    )
    summary = f'<summary class="small">{len(ids)} demonstrations</summary>'
    return f'<details>{summary}<div class="shots">{shown}</div></details>'


def image_tag(address: str | None) -> str:
    """A picture of a data address, or nothing."""
    return f'<img loading="lazy" alt="" src="{address}">' if address else ""


def thumbnail(data: bytes | None, address: str | None) -> str | None:
    """A small picture as a data address, or None where there is none to be read."""
    if data is None and (address is None or "://" in address):
        return None
    try:
        image = read_image(data, address, target=_SIDE)
    except ImageError:
        return None
    return "data:image/jpeg;base64," + base64.b64encode(thumbnails.thumbnail(image, _SIDE)).decode()
