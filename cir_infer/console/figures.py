"""Numbers as people read them."""

from __future__ import annotations

__all__ = ["change", "counted", "decimals"]


def decimals(value: float, places: int, signed: bool = False) -> str:
    """A number with so many decimal places; one that would have none of them as 2.3e-05, and zero as 0.

    Args:
        value: any number.
        places: digits behind the point.
        signed: with its sign above zero, too.
    """
    if value == 0:
        return "0"
    sign = "+" if signed else ""
    text = f"{value:{sign}.{places}f}"
    return text if text.strip("+-0.") else f"{value:{sign}.1e}"


def change(points: float) -> str:
    """A change of a percentage, in points with two decimal places; what rounds to none is +0.00."""
    return f"{round(points, 2) + 0.0:+.2f}"


def counted(number: int, one: str, many: str | None = None) -> str:
    """So many of something: 1 item, 5,000 items.

    Args:
        number: of them.
        one: what one is called.
        many: what several are called; with an s by default.
    """
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"
