"""Contact sheets: rows of captioned images as one picture."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

_GAP_PX = 4
_FONT_PX = 14

Font = ImageFont.ImageFont | ImageFont.FreeTypeFont


def contact_sheet(
    rows: Sequence[tuple[str, Float[Tensor, "V 3 H W"]]], background: int = 255, columns: int = 1
) -> Image.Image:
    """Each row's images, in [0, 1], side by side above its caption; `columns` such rows a line."""
    font = ImageFont.load_default(_FONT_PX)
    strips = [_strip(caption, images, font, background) for caption, images in rows]
    lines = [strips[start : start + columns] for start in range(0, len(strips), columns)]
    column_width = max(strip.width for strip in strips) + (2 * _GAP_PX if columns > 1 else 0)
    heights = [max(strip.height for strip in line) for line in lines]
    width = column_width * min(columns, len(strips))
    sheet = Image.new("RGB", (width, sum(heights)), (background,) * 3)
    top = 0
    for line, height in zip(lines, heights, strict=True):
        for column, strip in enumerate(line):
            sheet.paste(strip, (column * column_width, top))
        top += height
    return sheet


def _strip(
    caption: str, images: Float[Tensor, "V 3 H W"], font: Font, background: int
) -> Image.Image:
    num_views, _, height, width = images.shape
    lines = _wrap(caption, font, num_views * (width + _GAP_PX) - _GAP_PX)
    text_height = (_FONT_PX + _GAP_PX) * len(lines) + _GAP_PX
    size = (num_views * (width + _GAP_PX) - _GAP_PX, height + text_height)
    strip = Image.new("RGB", size, (background,) * 3)
    pixels = (images.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    for view, image in enumerate(pixels):
        strip.paste(Image.fromarray(image), (view * (width + _GAP_PX), 0))
    pen = ImageDraw.Draw(strip)
    for number, line in enumerate(lines):
        top = height + _GAP_PX // 2 + number * (_FONT_PX + _GAP_PX)
        pen.text((_GAP_PX, top), line, fill=(40, 40, 40), font=font)
    return strip


def _wrap(text: str, font: Font, width_px: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width_px - 2 * _GAP_PX:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
