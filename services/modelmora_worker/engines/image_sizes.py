"""How large a model's processor makes an image, reckoned from its configuration before anything is resized. Pure.

Most bring the shorter edge to a length of theirs and crop afterwards. Of an image of 300,000 × 1 pixels, 370 bytes as a
file, that makes 67,200,000 × 224 in between, 20 GB, and so what counts is not how large a file's image is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

USUAL: Final = (224, 224)
"""Width and height of an image that every model can take."""
RESIZED_PIXELS: Final = 4_000_000
"""A panorama of 20:1 at a shortest edge of 384 has 2,949,120."""
SQUARES: Final = 16
"""A model with large inputs takes images as long as so many of its squares."""
NARROWEST: Final = 32
"""Longer to shorter edge, at most, where nobody knows how the processor resizes."""

_PLAIN: Final = frozenset(
    {
        "Beit", "Bit", "CLIP", "DeiT", "EfficientNet", "ImageGPT", "MobileNetV1", "MobileNetV2", "MobileViT",
        "Perceiver", "Pvt", "Segformer", "Siglip", "ViT",
    }
)  # fmt: skip
"""Those that resize as the library's base class does, by the name before `ImageProcessor`."""


@dataclass(frozen=True, slots=True)
class Resizing:
    """Each to `fixed` (width, height); or the shorter edge to `shortest`, the longer to `longest` where that is less,
    and both up to a `multiple`; with neither an image stays as it is."""

    fixed: tuple[int, int] | None = None
    shortest: int = 0
    longest: int = 0
    multiple: int = 1

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """What the processor makes of an image before it crops. 0: it cannot."""
        if self.fixed is not None:
            return self.fixed
        if not self.shortest:
            return width, height
        short, long = min(width, height), max(width, height)
        new_short, new_long = self.shortest, self.shortest * long // short
        if self.longest and new_long > self.longest:
            new_short, new_long = round(self.longest * short / long), self.longest
        new_short, new_long = (-(-edge // self.multiple) * self.multiple for edge in (new_short, new_long))
        return (new_long, new_short) if width >= height else (new_short, new_long)


def resizing_of(kind: str, settings: Mapping[str, Any]) -> Resizing | None:
    """How a processor of the library resizes: its class, and its settings. None: nobody knows."""
    name = kind.removesuffix("Pil").removesuffix("Fast").removesuffix("ImageProcessor")
    if not settings.get("do_resize"):
        return Resizing() if name in _PLAIN or name in ("ConvNext", "PoolFormer", "Levit", "TextNet") else None
    size: Mapping[str, int] = settings.get("size") or {}
    shortest, longest = size.get("shortest_edge") or 0, size.get("longest_edge") or 0
    width, height = size.get("width") or 0, size.get("height") or 0
    share: float = settings.get("crop_pct") or 0.0
    match name:
        case "ConvNext" if shortest and share:
            return Resizing(shortest=int(shortest / share)) if shortest < 384 else Resizing((shortest, shortest))
        case "PoolFormer" if share and (shortest or width == height):
            return Resizing(shortest=int((shortest or width) / share))
        case "PoolFormer" if share:
            return Resizing((int(width / share), int(height / share)))
        case "Levit" if shortest:
            return Resizing(shortest=int(256 / 224 * shortest))
        case "TextNet" if shortest:
            return Resizing(shortest=shortest, multiple=settings.get("size_divisor") or 1)
        case "Donut" if width and height:
            return Resizing(shortest=min(width, height))
        case "Levit" | "PoolFormer":
            pass
        case _ if name not in _PLAIN:
            return None
    if shortest:
        return Resizing(shortest=shortest, longest=longest)
    return Resizing((width, height)) if width and height else None


def most_resized(resizing: Resizing | None) -> int:
    """Pixels that a processor may make of an image where nobody says otherwise."""
    width, height = resizing.resized(*USUAL) if resizing is not None else USUAL
    return max(RESIZED_PIXELS, SQUARES * width * height)


def too_large(resizing: Resizing | None, width: int, height: int, most: int, most_between: int) -> str:
    """Why a processor is not to be given an image of this size, empty: it may. `most` pixels may come out of it.

    Pillow resizes the width first: in between, an image is as wide as it will be and as high as it was. With a fixed
    size that is more than either in front of it or behind it, 28 GB for one of 1 × 32,000,000.
    """
    if resizing is None:
        if max(width, height) <= NARROWEST * min(width, height):
            return ""
        return f"the image has {width} × {height} pixels; no edge may be over {NARROWEST} times as long as the other"
    new_width, new_height = resizing.resized(width, height)
    for wide, high, bound in ((new_width, new_height, most), (new_width, height, max(most, most_between))):
        if wide * high > bound:
            return (
                f"the image has {width} × {height} pixels, of which the model's processor makes {wide} × {high}; "
                f"at most {bound} in all"
            )
    return ""
