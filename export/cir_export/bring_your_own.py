"""Any module with two methods as a system: `cir-export my_package.my_module:MyModel --weights w.pt`.

    encode_gallery(images) -> float (n, D)                     rows
    encode_query(images, tokens, lengths) -> float (n, ...)    whatever the query is
    terms(query) -> Terms                                      optional; else the cosine of query and row

and the attribute `image`, its preprocessing as in a bundle's manifest. docs/systems.md has an example.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from cir_export.checkpoints.files import read_checkpoint_file
from cir_export.checkpoints.vocabulary import load_vocabulary
from cir_export.model_file import TrainedModel
from cir_export.models.base import RetrievalModel, Terms, unit
from cir_export.tokenization import SPECIALS, build_tokenizer
from cir_infer.errors import CheckpointError, ExportError

__all__ = ["is_module_path", "load_module"]

_MAX_TOKENS = 64
_WEIGHT_KEYS = ("state_dict", "model_state_dict", "model", "weights")


class _Adapter(RetrievalModel):
    """A user's module behind the interface of every system.

    The query encoder is one piece, so the reference graph hands on the pixels and the text graph the
    tokens, and all of the query encoder is the compose graph.
    """

    reference_is_gallery_row = False
    weighted = True

    def __init__(self, module: nn.Module, name: str, image: dict[str, Any], text: dict[str, Any]) -> None:
        super().__init__(1)
        self.module = module
        self.system = name  # type: ignore[misc]  # one class for all modules
        self.term_names = tuple(getattr(module, "term_names", ("similarity",)))  # type: ignore[misc]
        self.pad_id, self.max_tokens = int(text["pad_id"]), int(text["max_tokens"])
        self.pixels = image.get("kind") == "pixels"
        self.config = {"system": name}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> RetrievalModel:
        raise NotImplementedError

    def encode_gallery(self, images: Tensor) -> Tensor:
        rows: Tensor = self.module.encode_gallery(images)  # type: ignore[operator]
        return rows.float()

    def encode_reference(self, images: Tensor) -> Tensor:
        return images.float()

    def encode_text(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        rest = tokens.new_full((tokens.shape[0], self.max_tokens), self.pad_id)
        padded = torch.cat([tokens, rest], 1)[:, : self.max_tokens]
        return torch.cat([lengths.to(torch.float32)[:, None], padded.to(torch.float32)], 1)

    def compose(self, reference: Tensor, text: Tensor) -> Terms:
        images = reference.to(torch.uint8) if self.pixels else reference
        tokens, lengths = text[:, 1:].to(torch.int64), text[:, 0].to(torch.int64)
        query = self.module.encode_query(images, tokens, lengths)  # type: ignore[operator]
        terms = getattr(self.module, "terms", None)
        if terms is not None:
            return Terms(*terms(query))
        composed = unit(query.float())[:, None]
        # With weights of ones a term is the cosine, whatever the length of the rows.
        return Terms(composed, torch.ones_like(composed))


def is_module_path(text: str | os.PathLike[str]) -> bool:
    """Whether this says `package.module:Name` and not the path of a file."""
    module, colon, name = str(text).partition(":")
    return bool(colon) and name.isidentifier() and all(part.isidentifier() for part in module.split("."))


def load_module(
    path: str,
    weights: str | os.PathLike[str] | None = None,
    vocabulary: str | os.PathLike[str] | None = None,
) -> TrainedModel:
    """Imports a module, which runs its code, and makes a system of it.

    Args:
        path: `package.module:Name`; a class or function that can be called without arguments and gives an
            `nn.Module` of the protocol above, or a `RetrievalModel`.
        weights: a file of its `state_dict`, alone or under one of the usual keys.
        vocabulary: a `tokenizers` JSON, or a word list as `load_vocabulary` reads it; else the module's
            attribute `tokenizer`.

    Raises:
        ExportError: it cannot be imported or called, lacks a method or attribute, or gives something of
            another shape.
        CheckpointError: the weights or the vocabulary do not fit.
    """
    module = _build(path)
    _require_protocol(module, path)
    if weights is not None:
        _load_weights(module, weights)
    module.float().eval()
    image = _image(module, path)
    tokenizer = _tokenizer(module, vocabulary, path)
    text = {
        "pad_id": int(getattr(module, "pad_id", 0)),
        "unk_id": getattr(module, "unk_id", tokenizer.token_to_id("<unk>")),
        "max_tokens": int(getattr(module, "max_tokens", _MAX_TOKENS)),
        "captions": str(getattr(module, "captions", " ")),
    }
    if isinstance(module, RetrievalModel):
        model = module
    else:
        model = _Adapter(module, path.partition(":")[2], image, text).eval()
        _dry_run(model, image, path)
    provenance = {"format": "module", "module": path}
    return TrainedModel(model, tokenizer, image, text, provenance)


def _build(path: str) -> nn.Module:
    name, _, attribute = path.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        factory = getattr(importlib.import_module(name), attribute)
    except ImportError as error:
        raise ExportError(
            f"{name} cannot be imported ({error}); run from the folder that holds it"
        ) from error
    except AttributeError as error:
        raise ExportError(f"{name} has no {attribute}; expected a class or function of that name") from error
    finally:
        sys.path.remove(str(Path.cwd()))
    try:
        module = factory if isinstance(factory, nn.Module) else factory()
    except TypeError as error:
        raise ExportError(
            f"{path} cannot be called without arguments ({error}); point at a function that returns the "
            "module"
        ) from error
    if not isinstance(module, nn.Module):
        raise ExportError(f"{path} gives a {type(module).__name__}; expected a torch.nn.Module")
    return module


def _require_protocol(module: nn.Module, path: str) -> None:
    if isinstance(module, RetrievalModel):
        return
    signatures = {
        "encode_gallery": "encode_gallery(images) -> (n, D)",
        "encode_query": "encode_query(images, tokens, lengths) -> (n, D)",
    }
    missing = [said for name, said in signatures.items() if not callable(getattr(module, name, None))]
    if missing:
        raise ExportError(f"{path} has no method {' and no '.join(missing)}; a system needs both")


def _load_weights(module: nn.Module, path: str | os.PathLike[str]) -> None:
    content = read_checkpoint_file(path)
    for key in _WEIGHT_KEYS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{path} holds no table of weights by name; expected a state_dict")
    weights = {str(name).removeprefix("module."): value for name, value in content.items()}
    expected = module.state_dict()
    unknown = sorted(set(weights) - set(expected))
    for name, tensor in expected.items():
        if name not in weights:
            raise CheckpointError(f"{path}: weight {name} is missing; expected shape {tuple(tensor.shape)}")
        if weights[name].shape != tensor.shape:
            raise CheckpointError(
                f"{path}: weight {name} has shape {tuple(weights[name].shape)}; expected "
                f"{tuple(tensor.shape)}"
            )
    if unknown:
        raise CheckpointError(f"{path}: weight {unknown[0]} does not belong to the module")
    module.load_state_dict(weights)


def _image(module: nn.Module, path: str) -> dict[str, Any]:
    image = getattr(module, "image", None)
    if not isinstance(image, Mapping) or "kind" not in image:
        raise ExportError(
            f"{path} has no attribute image; set it to its preprocessing, e.g. "
            "cir_export.preprocessing.padded_crop(224)"
        )
    return dict(image)


def _tokenizer(module: nn.Module, path: str | os.PathLike[str] | None, where: str) -> Tokenizer:
    if path is None:
        found = getattr(module, "tokenizer", None)
        if not isinstance(found, Tokenizer):
            raise ExportError(
                f"{where} has no attribute tokenizer (a tokenizers.Tokenizer); set it, or give a tokenizers "
                "JSON or a word list (--vocab)"
            )
        return found
    try:
        return Tokenizer.from_file(str(path))
    except Exception:  # tokenizers raises bare Exception for anything that is not its JSON
        words = load_vocabulary(path)
    if any(special not in words for special in SPECIALS):
        raise CheckpointError(
            f"vocabulary {path} has no {' '.join(SPECIALS)}; give a tokenizers JSON instead"
        )
    return build_tokenizer(words)


def _dry_run(model: _Adapter, image: dict[str, Any], path: str) -> None:
    """Runs two samples through the module, for errors that say what is wrong before any export."""
    if image["kind"] == "pixels":
        images = torch.randint(0, 256, (2, image["height"], image["width"], 3), dtype=torch.uint8)
    else:
        images = torch.rand(2, image["size"])
    tokens, lengths = torch.ones(2, 3, dtype=torch.int64), torch.tensor([3, 1])
    try:
        with torch.no_grad():
            rows = model.encode_gallery(images)
            terms = model.compose(model.encode_reference(images), model.encode_text(tokens, lengths))
    except Exception as error:  # the module is the user's: anything may come
        raise ExportError(f"{path} fails on two images and texts: {type(error).__name__}: {error}") from error
    if rows.ndim != 2 or rows.shape[0] != 2:
        raise ExportError(f"{path}: encode_gallery gives {tuple(rows.shape)} for 2 images; expected (2, D)")
    model.embedding_dim = rows.shape[1]
    model.weighted = terms.weights is not None
    shape = (2, len(model.term_names), model.embedding_dim)
    for name, part in (("numerators", terms.numerators), ("weights", terms.weights)):
        if part is not None and tuple(part.shape) != shape:
            raise ExportError(
                f"{path}: the query's {name} are {tuple(part.shape)}; expected {shape}: queries, terms "
                "(attribute term_names), the rows' dimension"
            )
