"""Pictures of a brand's icon: in the brand's colour on a varied background, 96 x 96.

`render(brand, rng)` draws one: a plain, gradient, mottled or cluttered
background that contrasts with the brand's colour, and the icon at a random
size, place and small rotation, sometimes blurred. `jpeg(image, rng)` returns its
bytes. Equal random states give equal pictures.
"""

from __future__ import annotations

import io

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from gemel_ray.starter.brands import Brand

SIDE = 96
ICON_SIDES = (46, 82)
MAX_ANGLE = 20.0
MIN_CONTRAST = 2.4  # as WCAG computes it; black on white has 21

Colour = tuple[int, int, int]


def render(brand: Brand, rng: Generator) -> Image.Image:
    """One picture of the brand's icon."""
    picture = background(brand.colour, rng)
    side = int(rng.integers(*ICON_SIDES))
    icon = brand.shape.rotate(
        float(rng.uniform(-MAX_ANGLE, MAX_ANGLE)), Image.Resampling.BICUBIC, expand=True
    )
    scale = side / brand.shape.width
    icon = icon.resize(
        (round(icon.width * scale), round(icon.height * scale)),
        Image.Resampling.LANCZOS,
    )
    # The unrotated square stays inside; only a rotated corner may leave the picture.
    slack = (SIDE - side) // 2
    left, top = ((SIDE - length) // 2 + int(rng.integers(-slack, slack + 1)) for length in icon.size)
    picture.paste(brand.colour, (left, top), icon)
    if rng.random() < 0.5:
        picture = picture.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.3, 1.0))))
    return picture


def jpeg(picture: Image.Image, rng: Generator) -> bytes:
    """The picture as JPEG bytes of a random quality from 70 to 95, more often low."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=70 + int(26 * rng.beta(1, 2)), optimize=True)
    return buffer.getvalue()


def background(colour: Colour, rng: Generator) -> Image.Image:
    """One of four kinds of background, which contrasts with the colour."""
    kind = rng.choice(["plain", "gradient", "mottled", "cluttered"], p=[0.3, 0.3, 0.2, 0.2])
    if kind == "plain":
        return Image.new("RGB", (SIDE, SIDE), contrasting(colour, rng))
    if kind == "gradient":
        return gradient(contrasting(colour, rng), contrasting(colour, rng), rng)
    if kind == "mottled":
        return mottled(contrasting(colour, rng), rng)
    return cluttered(colour, rng)


def contrasting(colour: Colour, rng: Generator) -> Colour:
    """A random colour, mostly pale or dark, that contrasts with the given one."""
    while True:
        grey = rng.beta(0.5, 0.5)
        red, green, blue = np.clip(grey + rng.normal(0, 0.12, 3), 0, 1) * 255
        candidate = (int(red), int(green), int(blue))
        if contrast(candidate, colour) >= MIN_CONTRAST:
            return candidate


def contrast(one: Colour, other: Colour) -> float:
    """The ratio of two colours' luminances, from 1 to 21."""
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: Colour) -> float:
    """Relative luminance, by the usual power-law approximation."""
    red, green, blue = (float((channel / 255) ** 2.2) for channel in colour)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def gradient(start: Colour, end: Colour, rng: Generator) -> Image.Image:
    """A linear blend of two colours; a blend of very different ones would contain the icon's colour."""
    if abs(luminance(start) - luminance(end)) > 0.35:
        mixed = np.asarray(start) * 0.7 + np.asarray(end) * 0.3
        end = (int(mixed[0]), int(mixed[1]), int(mixed[2]))
    angle = rng.uniform(0, 2 * np.pi)
    rows, columns = np.mgrid[0:SIDE, 0:SIDE] / (SIDE - 1) - 0.5
    share = np.clip(columns * np.cos(angle) + rows * np.sin(angle) + 0.5, 0, 1)[..., None]
    return picture_of(np.asarray(start) * (1 - share) + np.asarray(end) * share)


def mottled(colour: Colour, rng: Generator) -> Image.Image:
    """Soft noise, like paper, cloth or an unfocused wall."""
    cells = int(rng.integers(5, 16))
    noise = rng.normal(128, 40, (cells, cells)).clip(0, 255).astype(np.uint8)
    smooth = Image.fromarray(noise).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    depth = rng.uniform(0.1, 0.35)
    return picture_of(np.asarray(colour) + (np.asarray(smooth)[..., None] - 128.0) * depth)


def cluttered(colour: Colour, rng: Generator) -> Image.Image:
    """A few plain shapes of contrasting colours, like things on a desk."""
    picture = Image.new("RGB", (SIDE, SIDE), contrasting(colour, rng))
    draw = ImageDraw.Draw(picture)
    for _ in range(int(rng.integers(2, 6))):
        x, y = rng.integers(-20, SIDE, 2)
        width, height = rng.integers(12, 60, 2)
        box = [int(x), int(y), int(x + width), int(y + height)]
        fill = contrasting(colour, rng)
        shape = rng.integers(3)
        if shape == 0:
            draw.rectangle(box, fill=fill)
        elif shape == 1:
            draw.ellipse(box, fill=fill)
        else:
            draw.line(box, fill=fill, width=int(rng.integers(2, 7)))
    return picture.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.5, 2.5))))


def picture_of(pixels: NDArray[np.float64]) -> Image.Image:
    """An RGB image of float pixels."""
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
