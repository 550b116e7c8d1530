"""Imports a user's module and makes a system of it."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from cir_export.bring_your_own.adapter import Adapter
from cir_export.bring_your_own.attributes import (
    domain_of_module,
    image_of,
    term_names_of,
    text_of,
    tokenizer_of,
)
from cir_export.bring_your_own.trial import Trial, try_model
from cir_export.checkpoints.files import read_checkpoint_file
from cir_export.checkpoints.vocabulary import load_vocabulary
from cir_export.graphs.failure import place_of, said
from cir_export.model_file import TrainedModel
from cir_export.models.base import RetrievalModel
from cir_export.tokenization import SPECIALS, build_tokenizer
from cir_infer.errors import CheckpointError, ExportError, interrupt_in, shown

__all__ = ["is_module_path", "load_module"]

_QUANTISED = ("torch.ao.nn.quantized", "torch.nn.quantized")
_MOST_LEVELS = 64
_UNINITIALIZED = (UninitializedParameter, UninitializedBuffer)
_WRAPPERS = ("module.", "_orig_mod.")
"""Of DataParallel and of torch.compile."""
_WEIGHT_KEYS = ("state_dict", "model_state_dict", "model", "weights")
_METHODS = {
    "encode_gallery": ("encode_gallery(images) -> float (n, D)", 1),
    "encode_query": ("encode_query(images, tokens, lengths) -> float (n, D)", 3),
}


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
    _require_depth(module, path)
    _require_known_parts(module, path)
    system = isinstance(module, RetrievalModel)
    if not system:
        _require_methods(module, path)
    image = image_of(module, path)
    tokenizer = tokenizer_of(module, path) if vocabulary is None else _tokenizer(vocabulary)
    text = text_of(module, tokenizer, path)
    names = () if system else term_names_of(module, path)
    if weights is not None:
        _load_weights(module, weights)
    _require_weights(module, path)
    module.float().eval().cpu()
    model = (
        module
        if isinstance(module, RetrievalModel)
        else Adapter(module, path.partition(":")[2], names, image, text)
    )
    model.eval()
    # A bring-your-own query is one function; the model's own words are for a system's four.
    named = (
        {}
        if system
        else {"compose": "encode_query, or terms," if hasattr(module, "terms") else "encode_query"}
    )
    trial = Trial(model, image, text, tokenizer.get_vocab_size(), path, named)
    rows, terms = try_model(trial, padded=system)
    if system:
        _require_agreement(model, rows, terms.weights is not None, path)
    model.embedding_dim = rows.shape[1]
    model.weighted = terms.weights is not None
    provenance = {"format": "module", "module": path}
    domain = domain_of_module(module, path)
    if domain is not None:
        provenance["domain"] = domain
    return TrainedModel(model, tokenizer, image, text, provenance)


def _build(path: str) -> nn.Module:
    factory = _imported(path)
    if isinstance(factory, nn.Module):
        return factory
    if not callable(factory):
        raise ExportError(
            f"{path} is {shown(factory)} and cannot be called without arguments; expected an nn.Module, "
            "or a class or function that gives one"
        )
    try:
        inspect.signature(factory).bind()
    except TypeError as error:
        raise ExportError(
            f"{path} cannot be called without arguments ({error}); give them defaults, or point at a "
            "function that returns the module"
        ) from error
    except ValueError:
        pass  # a callable that has no signature to look at
    with _told(f"{path}()"):
        module = factory()
    if not isinstance(module, nn.Module):
        raise ExportError(f"{path} gives a {type(module).__name__}; expected a torch.nn.Module")
    return module


def _imported(path: str) -> Any:
    name, _, attribute = path.partition(":")
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        try:
            with _told(f"the import of {name}"):
                found = importlib.import_module(name)
        except ExportError as error:
            cause = error.__cause__
            if (
                isinstance(cause, ModuleNotFoundError)
                and cause.name
                and f"{name}.".startswith(f"{cause.name}.")
            ):
                raise ExportError(
                    f"{name} cannot be imported ({cause}); run from the folder that holds it"
                ) from cause
            raise
        if not hasattr(found, attribute):
            raise ExportError(f"{name} has no {attribute}; expected a class or function of that name")
        return getattr(found, attribute)
    finally:
        if folder in sys.path:
            sys.path.remove(folder)


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Words whatever the user's code raises, the end of the program included, with its place there."""
    try:
        yield
    except (Exception, SystemExit) as error:
        if (interrupt := interrupt_in(error)) is not None:
            raise interrupt from None
        raise ExportError(f"{what} raises {type(error).__name__}: {said(error)}{place_of(error)}") from error


def _require_methods(module: nn.Module, path: str) -> None:
    missing = [said for name, (said, _) in _METHODS.items() if not callable(getattr(module, name, None))]
    if missing:
        raise ExportError(f"{path} has no method {' and no '.join(missing)}; a system needs both")
    terms: dict[str, tuple[str, int]] = {}
    if getattr(module, "terms", None) is not None:
        terms["terms"] = ("terms(query) -> (numerators, weights)", 1)
    for name, (signature, count) in {**_METHODS, **terms}.items():
        method: Callable[..., Any] = getattr(module, name)
        if not callable(method):
            raise ExportError(f"{path}: attribute {name} is {shown(method)}; expected a method {signature}")
        try:
            inspect.signature(method).bind(*range(count))
        except TypeError as error:
            raise ExportError(f"{path}: {name} cannot be called as {signature} ({error})") from error
        except ValueError:
            continue


def _require_depth(module: nn.Module, path: str) -> None:
    """PyTorch looks at the parts of parts by functions that call themselves, several for each part."""
    levels: dict[int, int] = {}  # by id; 0 for those whose own parts are being looked at
    waiting = [(module, "it")]
    while waiting:
        part, name = waiting[-1]
        inner = [(one, named) for named, one in part._modules.items() if one is not None]
        if id(part) not in levels:
            levels[id(part)] = 0
            if any(levels.get(id(one)) == 0 for one, _ in inner):
                raise ExportError(
                    f"{path}: {shown(name)} holds itself among its parts; expected a tree of them"
                )
            waiting += [one for one in inner if id(one[0]) not in levels]
            continue
        waiting.pop()
        levels[id(part)] = 1 + max((levels[id(one)] for one, _ in inner), default=0)
    if levels[id(module)] > _MOST_LEVELS:
        raise ExportError(
            f"{path}: its modules lie {levels[id(module)]:,} deep in each other; expected at most "
            f"{_MOST_LEVELS}, as PyTorch's exporter calls itself for each. Put what runs one after the other "
            "side by side, in one nn.Sequential"
        )


def _require_known_parts(module: nn.Module, path: str) -> None:
    """PyTorch loads weights into attributes; what stands in a list keeps those that its constructor made."""
    known = {id(one) for one in (*module.parameters(), *module.buffers())}
    for name, part in module.named_modules():
        for attribute, value in vars(part).items():
            if attribute == "_flat_weights":  # of PyTorch's own recurrent layers
                continue
            for one in _held(value):
                weights = [*one.parameters(), *one.buffers()] if isinstance(one, nn.Module) else [one]
                if all(id(weight) in known for weight in weights):
                    continue
                whole, plain = f"{name}.{attribute}".lstrip("."), type(value).__name__
                instead = "ModuleList or ModuleDict" if isinstance(one, nn.Module) else "ParameterList"
                raise ExportError(
                    f"{path}: {shown(whole)} is a {plain} with a {type(one).__name__} in it, where PyTorch "
                    f"does not look for weights: none would be loaded; make it an nn.{instead}"
                )


def _held(value: object) -> list[nn.Module | nn.Parameter]:
    """Modules and parameters in plain containers, however deep in each other."""
    found, waiting, seen = list[nn.Module | nn.Parameter](), [value], set[int]()
    while waiting:
        one = waiting.pop()
        if isinstance(one, list | tuple | dict) and id(one) not in seen:
            seen.add(id(one))
            waiting += one.values() if isinstance(one, dict) else one
        elif isinstance(one, nn.Module | nn.Parameter):
            found.append(one)
    return found


def _require_weights(module: nn.Module, path: str) -> None:
    for name, part in module.named_modules():
        if isinstance(part, torch.jit.ScriptModule):
            raise ExportError(
                f"{path}: {name or 'it'} is a module of torch.jit, which cannot be exported; give the plain "
                "nn.Module that it was made of"
            )
        if type(part).__module__.startswith(_QUANTISED):
            raise ExportError(
                f"{path}: {name or 'it'} is a quantised {type(part).__name__}, which cannot be exported; "
                "give the module with floats and --precision int8"
            )
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if isinstance(tensor, _UNINITIALIZED) or tensor.is_meta:
            raise ExportError(
                f"{path}: weight {name} has no values yet; build the module with them, or give --weights"
            )
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ExportError(f"{path}: weight {name} holds NaN or infinity")


def _require_agreement(model: RetrievalModel, rows: Tensor, weighted: bool, path: str) -> None:
    if model.embedding_dim != rows.shape[1]:
        raise ExportError(
            f"{path}: embedding_dim is {model.embedding_dim} and encode_gallery gives {rows.shape[1]} values"
        )
    if model.weighted != weighted:
        raise ExportError(f"{path}: weighted is {model.weighted} and compose gives weights: {weighted}")


def _load_weights(module: nn.Module, path: str | os.PathLike[str]) -> None:
    content = read_checkpoint_file(path)
    for key in _WEIGHT_KEYS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{path} holds no table of weights by name; expected a state_dict")
    expected = module.state_dict()
    weights = _as_named_here({str(name): value for name, value in content.items()}, expected)
    unknown = sorted(set(weights) - set(expected))
    for name, tensor in expected.items():
        if name not in weights:
            raise CheckpointError(f"{path}: weight {name} is missing; expected shape {tuple(tensor.shape)}")
        if not isinstance(tensor, _UNINITIALIZED) and weights[name].shape != tensor.shape:
            raise CheckpointError(
                f"{path}: weight {name} has shape {tuple(weights[name].shape)}; expected "
                f"{tuple(tensor.shape)}"
            )
        found, kind = weights[name].dtype, tensor.dtype
        # PyTorch converts whatever it is given: a complex number loses a half, a quantised one its scale.
        if (found.is_floating_point, found.is_complex) != (kind.is_floating_point, kind.is_complex):
            raise CheckpointError(f"{path}: weight {name} is of type {found}; expected one like {kind}")
        if not (kind.is_floating_point or kind.is_complex or tensor.is_meta):
            held = weights[name]
            if not torch.equal(held.to(kind).to(held.dtype), held):
                raise CheckpointError(f"{path}: weight {name} holds a number that {kind} does not have")
    if unknown:
        raise CheckpointError(f"{path}: weight {shown(unknown[0])} does not belong to the module")
    module.load_state_dict(weights)


def _as_named_here(weights: dict[str, Tensor], expected: Collection[str]) -> dict[str, Tensor]:
    """Weights without what wrappers of a module put before every name. A part may be called so, too."""
    for prefix in _WRAPPERS * 2:
        if weights.keys() != set(expected) and all(name.startswith(prefix) for name in weights):
            weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    return weights


def _tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(path))
    except Exception:  # tokenizers raises bare Exception for anything that is not its JSON
        words = load_vocabulary(path)
    if any(special not in words for special in SPECIALS):
        raise CheckpointError(
            f"vocabulary {path} has no {' '.join(SPECIALS)}; give a tokenizers JSON instead"
        )
    return build_tokenizer(words)
