"""Captions for the logo set, in the manner of photo and news captions.

A caption holds one mention, and tells no more about the entity than the mention
does: which of a family's members is meant stands in the picture alone.
`caption(mention, rng)` gives the text and where the mention lies in it.
"""

from __future__ import annotations

from numpy.random import Generator

GENERIC = (
    "the company", "this brand", "the service", "this product", "the maker",
    "this firm", "the business", "the label",
)  # fmt: skip

TEMPLATES = (
    "{mention} has redesigned its app icon again.",
    "A sticker of {mention} on the back of a laptop.",
    "The sign of {mention} above the entrance of the new office.",
    "Visitors queue at the stand of {mention} at the trade fair.",
    "A mug with the logo of {mention}, left behind in a meeting room.",
    "Shares rose on Tuesday after {mention} presented its figures.",
    "A slide about {mention} at the autumn conference.",
    "The badge of {mention} photographed in evening light.",
    "According to a spokesperson, {mention} will hire two hundred people this year.",
    "A student wears a shirt with the emblem of {mention}.",
    "The home screen shows {mention} in the bottom row.",
    "Fans of {mention} collect enamel pins like this one.",
    "Regulators are looking into {mention}, as the paper reported last week.",
    "A neon sign advertises {mention} at a street corner.",
    "Screenshot from the day {mention} went offline for six hours.",
    "An early sketch of the logo that {mention} still uses.",
    "A banner of {mention} hangs over the hall.",
    "The new version of {mention} came out this morning.",
    "A cake for the anniversary of {mention}, baked by a colleague.",
    "In the window, a poster of {mention} fades in the sun.",
    "Our reviewer spent a week with {mention} and kept notes.",
    "A delivery van painted in the colours of {mention}.",
    "Many users say they could not work without {mention}.",
    "The logo of {mention}, cut out of coloured paper.",
    "A billboard for {mention} near the central station.",
    "Reporters wait outside the headquarters of {mention}.",
    "A tutorial on {mention} drew a full room on the second day.",
    "This tile on the start page opens {mention}.",
    "A keyring from {mention}, handed out at the door.",
    "Critics praise the plain look that {mention} gave itself.",
    "A flag with the mark of {mention} on a windy afternoon.",
    "Photographed at the launch party of {mention}.",
)


def caption(mention: str, rng: Generator) -> tuple[str, int, int]:
    """A caption around the mention, and the mention's span in characters."""
    before, after = TEMPLATES[int(rng.integers(len(TEMPLATES)))].split("{mention}")
    if not before:
        mention = mention[0].upper() + mention[1:]
    return before + mention + after, len(before), len(before) + len(mention)
