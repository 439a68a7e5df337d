"""A page to look at: every judged mention with its picture, answer, candidates and demonstrations.

One HTML file that needs nothing else: pictures are in it, scaled down.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Sequence
from pathlib import Path

from gemel_ray.evaluation import Evaluation, Judged
from gemel_ray.models.images import ImageError, read_image

Picture = Callable[[str], str | None]  # a demonstration's id to its picture as a data address
_SIDE = 96
_STYLE = """
:root { color-scheme: light dark; --line: #8884; --right: #1a7f37; --wrong: #cf222e; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; }
table.figures td, table.figures th { padding: .3rem 1rem .3rem 0; text-align: left; }
.card { display: grid; grid-template-columns: 110px 1fr 1fr; gap: 1rem; border-top: 1px solid var(--line);
  padding: .9rem 0; }
.card img { width: 96px; height: 96px; object-fit: contain; border-radius: 6px; background: #8881; }
.right { color: var(--right); } .wrong { color: var(--wrong); } .small { font-size: 13px; opacity: .8; }
mark { background: #ffd33d66; color: inherit; padding: 0 .15em; border-radius: 3px; }
.bar { display: grid; grid-template-columns: 12rem 1fr 4rem; gap: .5rem; align-items: center;
  font-size: 13px; }
.bar i { display: block; height: .6rem; background: #0969da; border-radius: 3px; min-width: 1px; }
.shots { display: flex; flex-wrap: wrap; gap: .4rem; margin-top: .4rem; }
.shots figure { margin: 0; width: 52px; font-size: 10px; overflow: hidden; }
.shots img { width: 48px; height: 48px; }
@media (max-width: 50rem) { .card { grid-template-columns: 1fr; } }
"""


def write_report(
    found: Evaluation,
    path: Path,
    *,
    title: str,
    summary: Sequence[tuple[str, str]] = (),
    picture: Picture = lambda _: None,
    most: int = 300,
) -> None:
    """Write the page: `summary` rows on top, then at most `most` mentions, wrong ones first."""
    figures = found.figures()
    low, high = figures["interval_95"]
    rows = [*summary, ("accuracy", f"{found.accuracy:.1%} (95% interval {low:.1%} to {high:.1%})")]
    table = "".join(f"<tr><th>{html.escape(k)}</th><td>{html.escape(v)}</td></tr>" for k, v in rows)
    shown = sorted(found.judged, key=lambda j: j.right)[:most]
    cards = "\n".join(_card(j, picture) for j in shown)
    note = f"{len(shown):,} of {len(found.judged):,} mentions, wrong ones first"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width,initial-scale=1"><title>{html.escape(title)}</title><style>{_STYLE}</style>'
        f'<h1>{html.escape(title)}</h1><table class="figures">{table}</table><p class="small">{note}</p>'
        f"{cards}</html>",
        encoding="utf-8",
    )


def _card(judged: Judged, picture: Picture) -> str:
    gold, link = judged.gold, judged.link or {}
    answer = link.get("entity") or {"nil": "NIL: none of them", "error": "error"}.get(
        judged.status, "missing"
    )
    verdict = "right" if judged.right else "wrong"
    why = f'<p class="wrong small">{html.escape(link["error"])}</p>' if link.get("error") else ""
    return (
        f'<div class="card"><div>{_image(thumbnail(gold["image"], gold["image_address"]))}</div>'
        f'<div><p>{_marked(gold)}</p><p><b class="{verdict}">{html.escape(answer)}</b>'
        f"{'' if judged.right else ' &mdash; should be ' + html.escape(gold['target'])}</p>{why}"
        f'<p class="small">{html.escape(gold["document_id"])} {html.escape(gold["mention_id"])}</p></div>'
        f"<div>{_candidates(link)}{_demonstrations(link, picture)}</div></div>"
    )


def _marked(gold: dict[str, str]) -> str:
    before, _, after = gold["mention_id"].partition("-")
    start, end, text = int(before), int(after), gold["text"]
    parts = (html.escape(part) for part in (text[:start], text[start:end], text[end:]))
    return "{}<mark>{}</mark>{}".format(*parts)


def _candidates(link: dict[str, object]) -> str:
    from math import exp

    candidates: Sequence[dict[str, object]] = link.get("candidates") or []  # type: ignore[assignment]
    scores = [float(c["score"]) for c in candidates]  # type: ignore[arg-type]
    weights = [exp(s - max(scores)) for s in scores]
    return "".join(
        f'<div class="bar"><span>{html.escape(str(c["entity"]))}</span>'
        f'<i style="width:{100 * w / sum(weights):.1f}%"></i><span>{w / sum(weights):.1%}</span></div>'
        for c, w in zip(candidates, weights, strict=True)
    )


def _demonstrations(link: dict[str, object], picture: Picture) -> str:
    ids: Sequence[str] = link.get("demonstrations") or []  # type: ignore[assignment]
    if not ids:
        return ""
    shown = "".join(
        f"<figure>{_image(picture(i))}<figcaption>{html.escape(i)}</figcaption></figure>" for i in ids
    )
    summary = f'<summary class="small">{len(ids)} demonstrations</summary>'
    return f'<details>{summary}<div class="shots">{shown}</div></details>'


def _image(address: str | None) -> str:
    return f'<img loading="lazy" alt="" src="{address}">' if address else ""


def thumbnail(data: bytes | None, address: str | None) -> str | None:
    """A small picture as a data address, or None where there is none to be read."""
    if data is None and (address is None or "://" in address):
        return None
    try:
        image = read_image(data, address, target=_SIDE)
    except ImageError:
        return None
    image.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
