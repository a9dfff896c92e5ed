"""Image files of strangers, read without trust: how large one is stands in its head, and decides whether it is decoded.

Pillow makes room for some formats when it only opens them, so the head is read here, byte by byte.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from typing import Any, Final

from modelmora.errors import InvalidArgument

FORMATS: Final = ("JPEG", "PNG", "GIF", "WEBP", "BMP")
_HEAD_BYTES: Final = 30
_NO_LENGTH: Final = frozenset({0x01, *range(0xD0, 0xD8)})
"""JPEG's markers without a segment behind them."""
_JPEG_FRAMES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_MPF: Final = "MPO"
"""A JPEG with others behind it, as many cameras write; the first is the picture."""


def set_up() -> None:
    """Imports Pillow, which raises ImportError where it is missing. What it would refuse by size is refused here."""
    from PIL import Image, ImageFile

    Image.MAX_IMAGE_PIXELS = None
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    Image.preinit()
    Image.init()


def blank(width: int, height: int) -> Any:
    """A grey image, as `decoded` answers."""
    from PIL import Image

    return Image.new("RGB", (width, height), (127, 127, 127))


def size_of(data: bytes) -> tuple[str, int, int]:
    """Format, width and height as the head tells. Raises InvalidArgument where it is that of no image we read."""
    try:
        kind, width, height = _measured(data)
    except (struct.error, IndexError):
        raise InvalidArgument("the image is cut off in its head") from None
    if width < 1 or height < 1:
        raise InvalidArgument(f"the image has {width} × {height} pixels")
    return kind, width, height


def decoded(data: bytes, max_bytes: int, max_pixels: int, check: Callable[[int, int], None]) -> Any:
    """The picture, upright, as a Pillow image in RGB. Raises InvalidArgument for what is none, is too large, moves, or
    cannot be shown in RGB. `check` may raise it too: it is given width and height, of the head and of the picture.

    Transparency is dropped, like in the pipelines of transformers; 16 bits of grey are scaled to 8.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    if len(data) > max_bytes:
        raise InvalidArgument(f"the image has {len(data)} bytes, at most {max_bytes}")
    kind, width, height = size_of(data)
    _check_pixels(width, height, max_pixels)
    check(width, height)
    try:
        with Image.open(io.BytesIO(data), formats=[kind]) as image:
            _check_pixels(*image.size, max_pixels)  # frames of a GIF may reach beyond what its head says
            frames = getattr(image, "n_frames", 1)
            if frames > 1 and image.format != _MPF:
                raise InvalidArgument(f"the image moves, it has {frames} frames; one is looked at")
            image.load()
            upright = ImageOps.exif_transpose(image)
            check(*upright.size)
            if upright.mode.startswith("I;16"):
                # Pillow would cut off all that is over 255, which is most of it.
                upright = Image.fromarray(_high_bytes(upright))
            return upright.convert("RGB")
    except (
        OSError, SyntaxError, ValueError, TypeError, AttributeError, LookupError, EOFError, ArithmeticError,
        NotImplementedError, struct.error, Image.DecompressionBombError,
    ) as error:  # fmt: skip
        if isinstance(error, InvalidArgument):
            raise
        # Pillow's own words name an object in memory.
        reason = f"it is no whole {kind}" if isinstance(error, UnidentifiedImageError) else error
        raise InvalidArgument(f"the image cannot be read: {reason}") from error


def _check_pixels(width: int, height: int, most: int) -> None:
    if width * height > most:
        raise InvalidArgument(f"the image has {width} × {height} pixels, at most {most} in all")


def _high_bytes(image: Any) -> Any:
    import numpy

    return (numpy.asarray(image).astype(numpy.uint16) >> 8).astype(numpy.uint8)


def _measured(data: bytes) -> tuple[str, int, int]:
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        if data[12:16] != b"IHDR":
            raise InvalidArgument("the image is a PNG without a head")
        return ("PNG", *struct.unpack_from(">II", data, 16))
    if data.startswith(b"\xff\xd8\xff"):
        return ("JPEG", *_jpeg(data))
    if data.startswith((b"GIF87a", b"GIF89a")):
        return ("GIF", *struct.unpack_from("<HH", data, 6))
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return ("WEBP", *_webp(data))
    if data.startswith(b"BM"):
        (size,) = struct.unpack_from("<I", data, 14)
        width, height = struct.unpack_from("<HH" if size == 12 else "<ii", data, 18)
        return "BMP", width, abs(height)
    raise InvalidArgument(f"this is no image of {', '.join(FORMATS[:-1])} or {FORMATS[-1]}")


def _jpeg(data: bytes) -> tuple[int, int]:
    """From the segment that begins the frame."""
    at = 2
    while True:
        if data[at] != 0xFF:
            raise InvalidArgument("the image is a JPEG with a broken head")
        marker, at = data[at + 1], at + 2
        if marker == 0xFF:  # filling
            at -= 1
        elif marker in _JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", data, at + 3)
            return width, height
        elif marker not in _NO_LENGTH:
            if marker in (0xDA, 0xD9):
                raise InvalidArgument("the image is a JPEG without a frame")
            at += max(2, *struct.unpack_from(">H", data, at))


def _webp(data: bytes) -> tuple[int, int]:
    kind = data[12:16]
    if len(data) < _HEAD_BYTES:
        raise IndexError
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    raise InvalidArgument("the image is a WebP of a kind that nobody knows")
