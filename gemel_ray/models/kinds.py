"""Kinds of pictures by their first bytes: those whose decoder is loaded when the first one comes, and what is
said of bytes that no decoder takes."""

from __future__ import annotations

from functools import cache

# Not the formats that run other programs (EPS) or hide a second size inside (ICO, JPEG 2000).
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF")
_HEIF = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_STARTS = {
    b"\0\0\0\x0cjP": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"\0\0\1\0": "an icon (ICO)",
    b"8BPS": "a Photoshop file",
    b"%PDF": "a PDF",
    b"%!PS": "PostScript",
    b"PK\3\4": "a ZIP archive",
    b"\x1f\x8b": "packed with gzip",
    b"RIFF": "a RIFF file other than WebP",
}


def formats(data: bytes) -> tuple[str, ...]:
    """Pillow's formats that bytes may be decoded as."""
    if data[4:8] == b"ftyp" and data[8:12] in _HEIF:
        _register_heif()
        return ("HEIF",)
    return FORMATS


@cache
def _register_heif() -> None:
    import pi_heif

    pi_heif.register_heif_opener()


def unread(data: bytes) -> str:
    """What bytes are that are none of these: what to do about it, where something can be done."""
    known = f"it is not a complete picture of a known kind ({', '.join(FORMATS)}, HEIC)"
    start = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if b"<svg" in start:
        return "it is an SVG drawing, which is not read: make a PNG of it"
    if start.startswith((b"<!doctype html", b"<html")):
        return "it is a web page and no picture"
    kind = next((kind for first, kind in _STARTS.items() if data.startswith(first)), None)
    return f"it is {kind}, which is not read: make a JPEG or PNG of it" if kind else known
