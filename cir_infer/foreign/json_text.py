"""JSON of strangers: whatever is wrong with it is a `ValueError`."""

from __future__ import annotations

import json
from typing import Any

from cir_infer.errors import shown

__all__ = ["read_json"]


def read_json(text: str | bytes | bytearray, **options: Any) -> Any:
    """As `json.loads`.

    Raises:
        ValueError: no JSON, not UTF-8, nested too deep, or a number of thousands of digits; the message is
            short.
    """
    try:
        return json.loads(text, **options)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    except ValueError as error:
        raise ValueError(shown(error)) from error
