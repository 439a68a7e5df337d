"""Published accuracies of multimodal entity linking, to stand beside ours.

Settings differ between papers, above all the knowledge base that is chosen from: each figure stands with
its source and its number of entities, and a comparison across them is none of systems alone.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """Accuracies in percent; None: not reported."""

    system: str
    wikidiverse: float | None
    wikimel: float | None
    source: str
    entities: str


_KGMEL = "110,000 to 160,000"
_SAME = "as reported in KGMEL's setting"
PUBLISHED = (
    Published("GEMEL v1, OPT-6.7B", 82.77, 75.53, "the released checkpoints' names", "not stated"),
    Published("GEMEL", 86.3, 82.6, "Shi et al., LREC-COLING 2024 (arXiv 2306.12725)", "not stated"),
    Published("GELR", None, 84.8, "its paper; generative, on its own data", "not stated"),
    Published("KGMEL", 88.23, 90.58, "its paper; triples, retrieval, a language model ranks again", _KGMEL),
    Published("MMoE", 77.57, 90.77, _SAME, _KGMEL),
    Published("M3EL", 74.06, 88.84, _SAME, _KGMEL),
    Published("MIMIC", 63.51, 87.98, _SAME, _KGMEL),
    Published("CLIP, zero-shot", 61.21, 83.23, _SAME, _KGMEL),
)
