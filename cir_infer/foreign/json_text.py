"""JSON of strangers: whatever is wrong with it is a `ValueError`."""

from __future__ import annotations

import json
from typing import Any

from cir_infer.errors import shown

__all__ = ["read_json", "unique_names"]


def unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An `object_pairs_hook` for what people write: of a name that is there twice JSON keeps the last alone.

    Raises:
        ValueError: there is one.
    """
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"the name {shown(twice, 60)} occurs twice in an object")
    return found


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
