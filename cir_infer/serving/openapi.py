"""What the OpenAPI document says of each route beyond its types: bodies, answers, examples."""

from __future__ import annotations

from typing import Any

from cir_infer import __version__
from cir_infer.serving import schemas
from cir_infer.serving.connections import LARGEST_HEAD
from cir_infer.serving.problems import KINDS, MEDIA_TYPE
from cir_infer.serving.protection import refusals

__all__ = ["Document"]

_DESCRIPTION = """Composed image retrieval: an image, and how the result should differ from it.

Errors are problem documents (RFC 9457). An id is one segment of an address: a slash inside it is `%2F`.
"""

_HIT = {
    "id": "dresses/0412.jpg",
    "rank": 1,
    "score": 1.0312,
    "terms": {"implicit_similarity": 0.7841, "explicit_matching": 0.2471},
    "metadata": {"category": "dress", "price": 39.5},
    "image": "/v1/items/dresses%2F0412.jpg/image?v=3f1a9c02",
}
_TIMING = {"read": 0.41, "decode": 3.1, "wait": 0.08, "search": 21.7, "total": 25.6}
_ANSWER = {"hits": [_HIT], "unknown_words": [], "reference_id": "dresses/0007.jpg", "timing": _TIMING}
_ITEM = {name: _HIT[name] for name in ("id", "metadata", "image")}
_HEAT = {
    "value": 0.25,
    "rest": 0.05,
    "map": [[0.02, 0.11], [0.04, 0.03]],
    "box": [0.0, 0.0, 400.0, 600.0],
    "size": [400, 600],
    "method": "shares",
}
_REFINE = {
    "item": "dresses/0412.jpg",
    "text": "is longer",
    "k": 10,
    "where": "price < 50",
    "balance": {"explicit_matching": 2.0},
}
_PROBLEM = {
    "type": "urn:cir-infer:problem:unusable-text",
    "title": "The text cannot be used",
    "status": 422,
    "detail": 'the text is empty; say how the result should differ, e.g. "is red"',
    "instance": "urn:cir-infer:request:5d0f3a2b9c41",
}
_DETAILS = {
    "malformed-request": "the body is no JSON ('Invalid JSON: expected value at line 1 column 1')",
    "unauthorized": "send the header `Authorization: Bearer KEY` with a key of this service",
    "forbidden": "this service only reads; start it with --writable",
    "not-found": "the gallery holds no item of this id (any more)",
    "misdirected": "this service is not known as 'elsewhere'; if it should be, start it with --allow-host",
    "head-too-large": f"the head has more than {LARGEST_HEAD:,} bytes",
    "request-timeout": "the body did not arrive within 20 seconds",
    "changed": "the item, or the reference, was replaced since it was found; ask again",
    "empty-gallery": "the gallery holds no items yet; add some with cir-index or PUT",
    "too-large": "the body has more than 20,971,520 bytes; send a smaller one",
    "unsupported-media-type": "the body is text/plain; expected application/json, multipart/form-data",
    "invalid-argument": "the parameter limit is there twice",
    "unusable-image": "the image of 3,000 bytes is truncated or damaged; save it again or leave it out",
    "unusable-text": _PROBLEM["detail"],
    "too-many-requests": "64 requests of yours are being answered; wait for one of them",
    "overloaded": "too much is being uploaded at the moment; try again",
    "timeout": "there was no answer within 10 seconds",
}
"""What a problem of each kind may say."""
_FORM: dict[str, Any] = {
    "type": "object",
    "properties": {
        "image": {"type": "string", "format": "binary", "description": "the reference image, a file"},
        "text": {"type": "array", "items": {"type": "string"}, "description": "what should change"},
        "item": {"type": "string", "description": "an item of the gallery, in place of an image"},
        "k": {"type": "integer", "default": 10, "minimum": 1},
        "where": {"type": "string", "description": "a filter, as text or as the JSON of a dictionary"},
        "exclude": {"type": "array", "items": {"type": "string"}},
        "exclude_reference": {"type": "boolean", "default": False},
        "balance": {"type": "string", "description": "a JSON object of factors, by the names of terms"},
        "explain": {"type": "integer", "default": 0, "description": "say why of so many hits, at most 10"},
    },
}
_PUT_FORM: dict[str, Any] = {
    "type": "object",
    "properties": {
        "image": {"type": "string", "format": "binary"},
        "metadata": {"type": "string", "description": "a JSON object"},
    },
}
_FIELDS = {
    "fields": [
        {
            "name": "price",
            "items": 4980,
            "types": {"decimal": 4980},
            "least": 5.0,
            "greatest": 349.0,
            "distinct": 212,
            "examples": [39.5, 19.0],
        }
    ]
}


def _body(
    example: Any, model: str | None = None, form: dict[str, Any] | None = None, image: bool = False
) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if form is not None:
        content["multipart/form-data"] = {"schema": form}
    if model is not None:
        content["application/json"] = {
            "schema": {"$ref": f"#/components/schemas/{model}"},
            "example": example,
        }
    if image:
        content["image/*"] = {"schema": {"type": "string", "format": "binary"}}
    return {"requestBody": {"required": True, "content": content}}


def _parameter(name: str, kind: str, text: str, where: str = "query") -> dict[str, Any]:
    return {
        "name": name,
        "in": where,
        "required": where == "path",
        "description": text,
        "schema": {"type": kind},
    }


_ID = _parameter("id", "string", "the item's id, as one segment: a slash in it is %2F", "path")
_ROUTES: dict[str, dict[str, Any]] = {
    "search": _body(_REFINE, "SearchRequest", _FORM),
    "search_batch": _body({"queries": [_REFINE, {"item": "b.jpg", "text": "is red"}]}, "BatchRequest"),
    "explain": _body(
        {"item": "dresses/0412.jpg", "text": "is longer", "hit": "dresses/0007.jpg"},
        "ExplainRequest",
        {
            "type": "object",
            "properties": {
                **{name: _FORM["properties"][name] for name in ("image", "text", "item", "balance")},
                "hit": {"type": "string", "description": "the id of the item to explain"},
            },
        },
    ),
    "search_vectors": _body({"vectors": [[0.12, -0.04, 0.31]], "k": 10}, "VectorsRequest"),
    "get_item": {"parameters": [_ID]},
    "get_item_image": {
        "parameters": [
            _ID,
            _parameter("size", "integer", "the longest side: 128, 256, 512 (default), 1024 or 2048"),
            _parameter("v", "string", "ignored; makes the address of a new image a new one"),
        ]
    },
    "list_items": {
        "parameters": [
            _parameter("where", "string", "a filter, as text or as the JSON of a dictionary"),
            _parameter("after", "string", "`after` of the answer before"),
            _parameter("limit", "integer", "how many, 50 unless told otherwise"),
            _parameter("order", "string", "added, or random"),
        ]
    },
    "put_item": {
        "parameters": [_ID],
        **_body({"metadata": {"price": 39.5}}, "ItemRequest", _PUT_FORM, image=True),
    },
    "patch_item": {
        "parameters": [_ID],
        **_body({"metadata": {"price": 29.5, "sale": None}}, "FieldsRequest"),
    },
    "delete_item": {"parameters": [_ID]},
}
_EXAMPLES: dict[str, Any] = {
    "search": _ANSWER,
    "search_batch": {"answers": [_ANSWER, _PROBLEM], "timing": {"total": 31.0}},
    "explain": {
        "id": "dresses/0007.jpg",
        "score": 1.03,
        "terms": {"explicit_matching": _HEAT},
        "reference": {"implicit_similarity": _HEAT},
        "unmoved": ["explicit_matching"],
        "words": [
            {"text": "longer", "start": 3, "end": 9, "caption": 0, "worth": {"explicit_matching": 0.11}}
        ],
        "balance": {"explicit_matching": 2.0},
        "timing": {"read": 0.3, "explain": 84.2, "total": 84.6},
    },
    "search_vectors": {"answers": [[{**_HIT, "terms": {"cosine": 0.91}}]], "timing": {"total": 4.2}},
    "get_item": _ITEM,
    "list_items": {"items": [_ITEM], "after": "412-9f86d081", "matching": 5000},
    "list_fields": _FIELDS,
    "put_item": {"id": "dresses/0412.jpg", "replaced": False},
    "patch_item": {"id": "dresses/0412.jpg"},
}
_MODELS = {
    "search": "SearchAnswer",
    "search_batch": "BatchAnswer",
    "explain": "ExplainAnswer",
    "search_vectors": "VectorsAnswer",
    "get_item": "ItemAnswer",
    "list_items": "ItemsAnswer",
}
_OTHER_ANSWERS: dict[str, dict[str, Any]] = {
    "get_item_image": {
        "200": {
            "description": "the picture",
            "content": {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}},
        },
        "304": {"description": "the caller has it already (If-None-Match)"},
    },
    "delete_item": {"204": {"description": "it is gone"}},
    "metrics": {
        "200": {"description": "for Prometheus", "content": {"text/plain": {"schema": {"type": "string"}}}}
    },
}


def _described(name: str, *problems: str) -> dict[str, Any]:
    """What the document says of a route.

    Args:
        name: the operation's.
        problems: keys of `KINDS` that it answers with.
    """
    content: dict[str, Any] = {"schema": {"type": "object"}}
    if name in _MODELS:
        content["schema"] = {"$ref": f"#/components/schemas/{_MODELS[name]}"}
    if name in _EXAMPLES:
        content["example"] = _EXAMPLES[name]
    answers = _OTHER_ANSWERS.get(
        name, {"200": {"description": "the answer", "content": {"application/json": content}}}
    )
    if name == "put_item":
        answers = {**answers, "201": {**answers["200"], "description": "the item is new"}}
    refused: dict[str, Any] = {}
    for kind in problems:
        status, title = KINDS[kind]
        entry = refused.setdefault(
            str(status),
            {
                "description": title,
                "content": {
                    MEDIA_TYPE: {
                        "schema": {"$ref": "#/components/schemas/ProblemAnswer"},
                        "example": {
                            **_PROBLEM,
                            "type": f"urn:cir-infer:problem:{kind}",
                            "title": title,
                            "status": status,
                            "detail": _DETAILS[kind],
                        },
                    }
                },
            },
        )
        if title not in entry["description"]:
            entry["description"] += f"; {title}"
    return {**_ROUTES.get(name, {}), "responses": {**answers, **refused}}


def _components() -> dict[str, Any]:
    """The schemas that `_described` refers to."""
    from pydantic import TypeAdapter

    found: dict[str, Any] = {}
    for name in schemas.__all__:
        kind = getattr(schemas, name)
        if isinstance(kind, type):
            schema = TypeAdapter(kind).json_schema(ref_template="#/components/schemas/{model}")
            found.update(schema.pop("$defs", {}))
            found[name] = schema
    return found


class Document:
    """The OpenAPI document, which FastAPI makes of the routes that it is told."""

    def __init__(self) -> None:
        from fastapi import FastAPI

        self._app = FastAPI(title="cir-serve", version=__version__, description=_DESCRIPTION)
        self._made: dict[str, Any] | None = None

    def add(self, method: str, path: str, name: str, function: Any) -> None:
        """Tell it of a route.

        Args:
            method: of the route.
            path: its pattern.
            name: the operation's.
            function: that answers; its text describes it, and what it says to raise is told.
        """
        problems = dict.fromkeys([*refusals(method, path), *getattr(function, "problems", ())])
        self._app.add_api_route(
            path,
            _nothing,
            methods=[method],
            operation_id=name,
            name=name,
            response_model=None,
            openapi_extra=_described(name, *problems),
            description=function.__doc__,
        )

    def made(self) -> dict[str, Any]:
        """The document, as plain values."""
        if self._made is None:
            document = self._app.openapi()
            document.setdefault("components", {}).setdefault("schemas", {}).update(_components())
            document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            document["security"] = [{"key": []}, {}]
            self._made = document
        return self._made


def _nothing() -> None:
    """What FastAPI is told that a route does: what it takes and gives is said by `_described`."""
