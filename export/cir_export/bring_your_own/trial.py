"""A model on a few made-up images and texts, for errors that say what is wrong before any export."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from cir_export.graphs.failure import place_of, said
from cir_export.models import RetrievalModel, Terms
from cir_export.models.encoders.recurrent import Recurrent
from cir_infer.errors import ExportError

__all__ = ["Trial", "try_model"]

T = TypeVar("T")

_SAMPLES = 2
_LONGEST = 7
_CLOSE = 1e-3
"""Relative to a vector's largest value: far above rounding, far below another answer."""


class Trial:
    """Runs a model and words what goes wrong.

    Args:
        model: in evaluation mode.
        image: its preprocessing, checked.
        text: likewise.
        tokens: how many ids its tokenizer has.
        where: its name in errors.
        named: how its methods are called there, by their names in `RetrievalModel`.
    """

    def __init__(
        self,
        model: RetrievalModel,
        image: Mapping[str, Any],
        text: Mapping[str, Any],
        tokens: int,
        where: str,
        named: Mapping[str, str],
    ) -> None:
        random = torch.Generator().manual_seed(0)
        if image["kind"] == "pixels":
            shape = (_SAMPLES, image["height"], image["width"], 3)
            self.images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=random)
            self.images[1] = self.images[1] // 4 + 40  # two of one largest value would hide who takes it
        else:
            self.images = torch.rand(_SAMPLES, image["size"], generator=random)
            self.images[1] = self.images[1] / 4 + 0.2
        steps = min(_LONGEST, int(text["max_tokens"]))
        self.lengths = torch.tensor([steps, 1])
        ids = torch.randint(0, tokens, (_SAMPLES, steps), generator=random)
        ids[0, 0] = tokens - 1  # an embedding smaller than the vocabulary shows at its last word
        self.tokens = torch.where(torch.arange(steps)[None] < self.lengths[:, None], ids, int(text["pad_id"]))
        self.model, self.where, self._named, self._vocabulary = model, where, named, tokens

    def run(self, method: str, call: Callable[[], T], given: str) -> T:
        """A method's result; what it raises is told with its place in the user's code."""
        name = self._named.get(method, method)
        try:
            with torch.no_grad(), _packed_sequences(self.model) as packed:
                result = call()
        except ExportError as error:
            raise ExportError(f"{self.where}: {error}") from error
        except Exception as error:  # the module is the user's: anything may come
            advice = ""
            if isinstance(error, IndexError) and "out of range in self" in str(error):
                advice = (
                    f"; tokens run from 0 to {self._vocabulary - 1}, does its nn.Embedding have as many rows?"
                )
            raise ExportError(
                f"{self.where}: {name} fails on {given}: {type(error).__name__}: {said(error)}"
                f"{place_of(error)}{advice}"
            ) from error
        if packed:
            raise ExportError(
                f"{self.where}: {packed[0]} is given a packed sequence, which no exporter can write; use "
                "cir_export.models.encoders.recurrent.Recurrent, which takes the lengths"
            )
        return result

    def vectors(self, method: str, call: Callable[[Tensor], Tensor], rows: bool) -> Tensor:
        """Of a method from images: a finite vector (or map) an image, whatever stands beside it."""
        name = self._named.get(method, method)
        given = f"two images, {_kind(self.images)}"
        found = self.run(method, lambda: call(self.images), given)
        self.tensor(found, name, "images", rows)
        if not torch.isfinite(found).all():
            raise ExportError(
                f"{self.where}: {name} gives NaN or infinity on random images; are the weights sound?"
            )
        alone = [
            self.run(method, partial(call, image), f"one image, {_kind(image)}")
            for image in _one_by_one(self.images)
        ]
        for one in alone:
            if not isinstance(one, Tensor) or one.shape != (1, *found.shape[1:]):
                raise ExportError(
                    f"{self.where}: {name} gives {_kind(one)} for one image; expected "
                    f"{(1, *found.shape[1:])} (does it squeeze the batch away?)"
                )
        self.same(found, self.run(method, lambda: call(self.images), given), name, "differs from run to run")
        together = "depends on the images beside it (a norm or a maximum over the batch?)"
        self.same(found, _joined(alone), name, together)
        return found

    def tensor(self, value: object, name: str, samples: str, row: bool) -> None:
        """Asserts floats with one entry a sample, (2, D) where it must be a row."""
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise ExportError(f"{self.where}: {name} gives {_kind(value)}; expected a tensor of floats")
        if value.shape[:1] != (_SAMPLES,) or 0 in value.shape or (value.ndim != 2 if row else value.ndim < 2):
            raise ExportError(
                f"{self.where}: {name} gives {tuple(value.shape)} for {_SAMPLES} {samples}; expected "
                f"({_SAMPLES}, {'D' if row else '...'})"
            )

    def same(self, one: Tensor, other: Tensor, name: str, otherwise: str) -> None:
        """Asserts that two results agree."""
        scale = one.abs().amax().clamp_min(1e-12)
        if one.shape != other.shape or not bool(((one - other).abs().amax() / scale) < _CLOSE):
            raise ExportError(
                f"{self.where}: what {name} gives {otherwise}; expected the same for the same input"
            )


def try_model(trial: Trial, padded: bool) -> tuple[Tensor, Terms]:
    """Every function of a model once.

    Args:
        trial: the model and its samples.
        padded: whether texts of any padded length may come, so that padding must not matter.

    Returns:
        The samples' rows and terms.

    Raises:
        ExportError: one raises, or gives something else than the contract of systems says.
    """
    model = trial.model
    rows = trial.vectors("encode_gallery", model.encode_gallery, rows=True)
    reference = trial.vectors("encode_reference", model.encode_reference, rows=False)
    given = f"two texts, tokens {_kind(trial.tokens)}, lengths {_kind(trial.lengths)}"
    text = trial.run("encode_text", lambda: model.encode_text(trial.tokens, trial.lengths), given)
    trial.tensor(text, "encode_text", "texts", row=False)
    each = zip(_one_by_one(trial.tokens), _one_by_one(trial.lengths), strict=True)
    apart = [trial.run("encode_text", partial(model.encode_text, *one), "one text") for one in each]
    trial.same(text, _joined(apart), "encode_text", "depends on the texts beside it")
    if padded:
        longer = torch.cat([trial.tokens, trial.tokens[:, -1:]], 1)
        again = trial.run("encode_text", lambda: model.encode_text(longer, trial.lengths), given)
        trial.same(text, again, "encode_text", "depends on what stands beyond a text's length")
    together = f"two images and texts: {_kind(trial.images)}, {_kind(trial.tokens)}, {_kind(trial.lengths)}"
    terms = trial.run("compose", lambda: model.compose(reference, text), together)
    _check_terms(trial, terms, rows.shape[1])
    repeated = trial.run("compose", lambda: model.compose(reference, text), together)
    pairs = zip(_one_by_one(reference), _one_by_one(text), strict=True)
    alone = [trial.run("compose", partial(model.compose, *one), "one query") for one in pairs]
    for number, named in enumerate(("the query", "the query as weights")):
        part = terms[number]
        if part is not None:
            trial.same(part, _part_of(repeated, number), named, "differs from run to run")
            each_alone = _joined([_part_of(one, number) for one in alone])
            trial.same(
                part, each_alone, named, "depends on the queries beside it (a maximum over the batch?)"
            )
    return rows, terms


def _part_of(terms: Terms, number: int) -> Tensor:
    found = terms[number]
    return torch.empty(0) if found is None else found


def _one_by_one(samples: Tensor) -> list[Tensor]:
    return [samples[number : number + 1] for number in range(_SAMPLES)]


def _joined(alone: Sequence[Tensor]) -> Tensor:
    """What came one by one, as if it had come together; nothing where one did not come as a batch of one."""
    shapes = {one.shape for one in alone}
    whole = len(shapes) == 1 and all(shape[:1] == (1,) for shape in shapes)
    return torch.cat([*alone]) if whole else torch.empty(0)


def _check_terms(trial: Trial, terms: Terms, dimension: int) -> None:
    shape = (_SAMPLES, len(trial.model.term_names), dimension)
    for name, part in (("numerators", terms.numerators), ("weights", terms.weights)):
        if part is None:
            continue
        if tuple(part.shape) != shape:
            raise ExportError(
                f"{trial.where}: the query's {name} are {tuple(part.shape)}; expected {shape}: queries, "
                "terms (attribute term_names), the rows' dimension"
            )
        if not torch.isfinite(part).all():
            raise ExportError(
                f"{trial.where}: the query's {name} hold NaN or infinity on random images and texts"
            )
    if terms.weights is not None and bool((terms.weights < 0).any()):
        raise ExportError(
            f"{trial.where}: the query's weights are negative, down to {float(terms.weights.min()):.3g}; "
            "expected >= 0, a term is (n . t) / sqrt(w . t^2): square them, or use softplus or relu"
        )


def _kind(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    return "None" if value is None else f"a {type(value).__name__}"


@contextmanager
def _packed_sequences(model: nn.Module) -> Iterator[list[str]]:
    """Collects the recurrent layers of the user's own that are given packed sequences."""
    own = {id(part.layer) for part in model.modules() if isinstance(part, Recurrent)}
    found: list[str] = []
    hooks = []

    def watch(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def note(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
            if inputs and isinstance(inputs[0], PackedSequence):
                found.append(name.removeprefix("module."))

        return note

    for name, part in model.named_modules():
        if isinstance(part, nn.RNNBase) and id(part) not in own:
            hooks.append(part.register_forward_pre_hook(watch(name)))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
