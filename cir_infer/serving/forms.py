"""Queries and limits as forms and addresses write them: texts, to be read as what JSON would say."""

from __future__ import annotations

from typing import Any, TypeVar

from cir_infer.errors import shown
from cir_infer.serving.bodies import Form
from cir_infer.serving.problems import Problem
from cir_infer.serving.schemas import ExplainRequest, SearchRequest, check_filter, parsed

__all__ = ["filter_of", "number", "search_of_form"]

_FIELDS = ("text", "item", "k", "where", "exclude", "exclude_reference", "balance", "explain")
R = TypeVar("R", bound=SearchRequest)


def search_of_form(form: Form, kind: type[R]) -> R:
    """A query that was sent as a form.

    Args:
        form: its fields.
        kind: what to read it as.

    Raises:
        Problem: a field is unknown, there too often, or no number, flag or filter.
    """
    request = kind()
    more = ("hit",) if isinstance(request, ExplainRequest) else ()
    unknown = sorted(set(form.fields) - {*_FIELDS, *more})
    if unknown:
        raise Problem(
            "invalid-argument",
            f"the field {shown(unknown[0])} is unknown; expected image, {', '.join((*_FIELDS, *more))}",
        )
    texts = form.fields.get("text", [])
    request.text = None if not texts else texts[0] if len(texts) == 1 else texts
    request.exclude = form.fields.get("exclude", [])
    request.item = form.one("item")
    if isinstance(request, ExplainRequest):
        request.hit = form.one("hit") or ""
    request.k = number(form.one("k"), "k", request.k)
    request.explain = number(form.one("explain"), "explain", request.explain)
    flag = form.one("exclude_reference") or "false"
    if flag not in ("true", "false"):
        raise Problem("invalid-argument", f"exclude_reference is {shown(flag)}; expected true or false")
    request.exclude_reference = flag == "true"
    request.where = filter_of(form.one("where"))
    factors = form.one("balance")
    request.balance = None if factors is None else parsed(dict[str, float], factors.encode())
    return request


def number(text: str | None, name: str, otherwise: int) -> int:
    """A whole number in a form or an address.

    Raises:
        Problem: it is none.
    """
    if text is None:
        return otherwise
    if not text.isascii() or not text.isdecimal() or len(text) > 9:
        raise Problem("invalid-argument", f"{name} is {shown(text, 40)}; expected a whole number")
    return int(text)


def filter_of(text: str | None) -> str | dict[str, Any] | None:
    """A filter in a form or an address: an expression, or the JSON of a dictionary.

    Raises:
        Problem: it is neither.
    """
    if text is None or not text.strip():
        return None
    check_filter(text)
    if not text.lstrip().startswith("{"):
        return text
    read: dict[str, Any] = parsed(dict[str, Any], text.encode("utf-8", "replace"))
    return read
