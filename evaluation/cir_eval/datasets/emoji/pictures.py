"""A picture of a package, drawn onto white."""

from __future__ import annotations

import io

from PIL import Image

from cir_infer.errors import DatasetError, shown

__all__ = ["SIZE", "on_white", "svg_support"]

SIZE = 72
"""Pixels a side: OpenMoji's grid; pictures of 64 pixels get a margin, as OpenMoji's have."""


def svg_support() -> None:
    """Refuses now what would fail when the first drawing comes.

    Raises:
        DatasetError: resvg is not installed.
    """
    from cir_infer.extras import require

    require("drawing OpenMoji", "resvg_py", error=DatasetError)


def on_white(content: bytes, suffix: str, name: str) -> Image.Image:
    """An RGB picture of `SIZE` pixels a side.

    Args:
        content: a PNG of at most `SIZE` pixels a side, which is put in the middle, or an SVG, which is drawn.
        suffix: ".png" or ".svg".
        name: of the picture, for the message.

    Raises:
        DatasetError: it is damaged, or larger.
    """
    try:
        if suffix == ".svg":
            content = _drawn(content)
        with Image.open(io.BytesIO(content), formats=["PNG"]) as opened:
            if max(opened.size) > SIZE:
                raise DatasetError(
                    f"{name} has {opened.width} x {opened.height} pixels; expected at most {SIZE} a side"
                )
            picture = opened.convert("RGBA")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DatasetError(f"{name} cannot be read as a picture ({shown(error)}); fetch it again") from error
    canvas = Image.new("RGB", (SIZE, SIZE), "white")
    canvas.paste(picture, ((SIZE - picture.width) // 2, (SIZE - picture.height) // 2), picture)
    return canvas


def _drawn(content: bytes) -> bytes:
    import resvg_py

    return bytes(resvg_py.svg_to_bytes(svg_string=content.decode("utf-8"), width=SIZE, height=SIZE))
