"""A decoded picture made plain: upright, RGB of 8 bits, on white. Knows nothing of files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

_AT_ONCE = 2**20  # pixels
ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF orientation says; unreadable EXIF turns nothing."""
    try:
        turn = TURNS.get(image.getexif().get(ORIENTATION, 1))
    except Exception:  # damaged metadata does not make the pixels worse
        turn = None
    return image if turn is None else image.transpose(turn)


def rgb(image: Image.Image) -> Image.Image:
    """Any mode as RGB of 8 bits: deep greys scaled instead of clipped, transparency onto white."""
    if image.mode[0] in "IF":
        return eight_bits(image).convert("RGB")
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    image = image if image.mode == "RGBA" else image.convert("RGBA")
    canvas = Image.new("RGB", image.size, "white")
    canvas.paste(image, mask=image)
    return canvas


def eight_bits(image: Image.Image) -> Image.Image:
    """A grey picture of 16 bits, or of a range that only its pixels say, as mode L."""
    values = np.asarray(image)
    if image.mode.startswith("I;16"):
        return Image.fromarray((values >> 8).astype(np.uint8))
    low = min(float(_finite(rows).min()) for rows in _bands(values))
    high = max(float(_finite(rows).max()) for rows in _bands(values))
    grey = np.empty(values.shape, np.uint8)
    for rows, into in zip(_bands(values), _bands(grey), strict=True):
        into[:] = (_finite(rows) - low) * (255 / max(high - low, 1e-9))
    return Image.fromarray(grey)


def _bands(values: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    """Some rows at a time: all of a large picture at once in 64 bits are gigabytes."""
    step = max(1, _AT_ONCE // values.shape[1])
    return (values[at : at + step] for at in range(0, len(values), step))


def _finite(rows: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    return np.nan_to_num(rows.astype(np.float64))
