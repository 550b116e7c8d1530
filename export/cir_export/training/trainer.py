"""Trains a model as a configuration says, and can be interrupted at any moment."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from cir_eval.datasets.scenes import ScenesDataset
from cir_export.checkpoints.domains import domain_of
from cir_export.model_file import TrainedModel, load_model, save_model
from cir_export.models import RetrievalModel, build_model
from cir_export.models.base import pairwise_scores
from cir_export.preprocessing import plain_resize, word_text
from cir_export.tokenization import build_tokenizer, known_words, vocabulary_from_texts
from cir_export.training.configuration import TrainingConfig
from cir_export.training.data import QuerySet, family_batches, query_set
from cir_export.training.evaluation import evaluate
from cir_export.training.loss import batch_classification_loss
from cir_export.training.optimisation import build_optimizer, freeze_trunks, learning_rate
from cir_export.training.state import TrainingState, load_state, save_state
from cir_export.training.systems import image_size, max_tokens, with_vocabulary
from cir_infer.bundle.manifest import PadSquare, PixelInput, Resize, ToRgb
from cir_infer.console.progress import progress_bar
from cir_infer.errors import CirError, TrainingError, UsageError, shown

__all__ = ["TrainingFiles", "train"]

_STATE_EVERY = 100
"""Steps between two states on disk, beside the one at each epoch's end."""

_AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class TrainingFiles:
    """What a training writes into its folder.

    Attributes:
        folder: the folder.
    """

    folder: Path

    @property
    def model(self) -> Path:
        """The best epoch's model file."""
        return self.folder / "model.pt"

    @property
    def log(self) -> Path:
        """One JSON object a line: the start, every epoch, the end."""
        return self.folder / "log.jsonl"

    @property
    def state(self) -> Path:
        """What an interrupted training continues from; gone at the end."""
        return self.folder / "training.state"


@dataclass
class _Data:
    train: QuerySet
    validation: QuerySet
    test: QuerySet
    tokenizer: Tokenizer
    image: dict[str, Any]
    text: dict[str, Any]
    digest: str


def train(
    config: TrainingConfig,
    folder: Path,
    device: str = "auto",
    restart: bool = False,
    report: Callable[[dict[str, Any]], None] = lambda _: None,
    initial: Path | None = None,
) -> dict[str, Any]:
    """Train, or continue the interrupted training of the same configuration in the folder.

    The epoch with the best R@1 on the validation split is kept. A continued training gives the same
    weights, to the last bit, as one that was never interrupted (on one machine, with as many threads).

    Args:
        config: what to train on what, and how.
        folder: where to write, see `TrainingFiles`.
        device: "auto" (a GPU if there is one), or a PyTorch device.
        restart: forget an interrupted training.
        report: called with every entry of the log.
        initial: a model file; weights of the same name and shape start from it.

    Returns:
        The last entry of the log, with the recall of the stored model on the test split.

    Raises:
        TrainingError: the configuration does not fit, the loss is no longer finite, or the interrupted
            training was another.
        DatasetError: the data set is missing or damaged.
    """
    settings, files = config.training, TrainingFiles(folder)
    chosen = _device(device, settings.precision)
    data = _load(config)
    start = None if initial is None else load_model(initial).model.state_dict()
    begun = "" if initial is None else f" {hashlib.sha256(initial.read_bytes()).hexdigest()}"
    digest = hashlib.sha256(f"{config.digest} {data.digest}{begun}".encode()).hexdigest()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"{folder} cannot be made: {error.strerror}") from error
    if restart:
        files.state.unlink(missing_ok=True)

    torch.manual_seed(settings.seed)
    model = _build(config, data)
    if start is not None:
        _start_from(model, start, str(initial))
    model.to(chosen)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = build_optimizer(model, settings)
    # float16 gradients underflow without a scale; the other precisions need none.
    scaler = torch.amp.GradScaler(chosen.type, enabled=settings.precision == "float16")
    state = load_state(files.state, digest) or TrainingState(digest)
    if state.step:
        model.load_state_dict(state.model)
        optimizer.load_state_dict(state.optimizer)
        scaler.load_state_dict(state.scaler)
        _set_random_state(state.random)
    else:
        state.log = [_start_entry(config, model, data, chosen)]
    for entry in state.log:
        report(entry)

    steps_per_epoch = sum(1 for _ in family_batches(data.train.families, settings.families_per_batch, 0, 0))
    if not steps_per_epoch:
        raise TrainingError(
            f"the training split has fewer than the {settings.families_per_batch} families of a batch"
        )

    def remember() -> None:
        state.model, state.optimizer = model.state_dict(), optimizer.state_dict()
        state.scaler, state.random = scaler.state_dict(), _random_state()
        save_state(files.state, state)

    while state.step < settings.epochs * steps_per_epoch:
        epoch, done = divmod(state.step, steps_per_epoch)
        freeze_trunks(model, epoch < settings.frozen_epochs)
        batches = list(family_batches(data.train.families, settings.families_per_batch, settings.seed, epoch))
        bar = progress_bar(
            batches[done:], len(batches) - done, description=f"epoch {epoch + 1}", unit="batch"
        )
        for batch in bar:
            wall, cpu = time.perf_counter(), time.process_time()
            rate = learning_rate(settings, state.step, steps_per_epoch)
            for group in optimizer.param_groups:
                group["lr"] = rate * group["rate"]
            with torch.autocast(
                chosen.type, _AUTOCAST.get(settings.precision), enabled=settings.precision in _AUTOCAST
            ):
                loss = _batch_loss(model, data.train, batch, chosen)
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            scaler.step(optimizer)
            scaler.update()
            value = loss.item()
            if value != value or value in (float("inf"), float("-inf")):
                raise TrainingError(
                    f"the loss is {value} at step {state.step + 1}; lower training.learning_rate or "
                    "train in float32"
                )
            state.step += 1
            state.epoch_loss += value
            state.seconds += time.perf_counter() - wall
            state.cpu_seconds += time.process_time() - cpu
            if state.step % _STATE_EVERY == 0 and state.step % steps_per_epoch:
                remember()
        found = evaluate(model, data.validation, chosen)
        entry = {
            "event": "epoch",
            "epoch": epoch + 1,
            "step": state.step,
            "loss": round(state.epoch_loss / steps_per_epoch, 4),
            "gamma": round(model.logit_scale.exp().item(), 3),
            "learning_rate": rate,
            "validation": found,
            "seconds": round(state.seconds, 1),
            "cpu_seconds": round(state.cpu_seconds, 1),
        }
        if found["recall"]["1"] > state.best_recall:
            state.best_recall, state.best_epoch = found["recall"]["1"], epoch + 1
            state.best = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
        state.epoch_loss = 0.0
        state.log.append(entry)
        remember()
        _write_log(files.log, state.log)
        report(entry)

    end = _store_best(config, state, data, files, chosen)
    report(end)
    _write_log(files.log, [*state.log, end])
    files.state.unlink(missing_ok=True)
    return end


def _batch_loss(model: RetrievalModel, queries: QuerySet, batch: Tensor, device: torch.device) -> Tensor:
    """The system's own loss, or batch classification over the batch's distinct targets.

    Every image is encoded once, whatever its roles.
    """
    lengths = queries.lengths[batch]
    tokens = queries.tokens[batch, : int(lengths.max())]
    text = model.encode_text(tokens.to(device), lengths.to(device))
    references = queries.references[batch]
    targets, own = torch.unique(queries.targets[batch], return_inverse=True)
    if "reference" not in model.composes:
        rows = model.encode_gallery(queries.images[targets].to(device))
        seen = rows[own.to(device)]  # not read
    elif model.reference_is_gallery_row:
        images = torch.unique(torch.cat([targets, references]))
        encoded = model.encode_gallery(queries.images[images].to(device))
        rows = encoded[torch.searchsorted(images, targets).to(device)]
        seen = encoded[torch.searchsorted(images, references).to(device)]
    else:
        distinct, which = torch.unique(references, return_inverse=True)
        seen = model.encode_reference(queries.images[distinct].to(device))[which.to(device)]
        loss = model.own_loss(
            seen,
            text,
            queries.images[targets].to(device),
            own.to(device),
            (targets[None] == references[:, None]).to(device),
        )
        if loss is not None:
            return loss
        rows = model.encode_gallery(queries.images[targets].to(device))
    scores = pairwise_scores(model.compose(seen, text), rows)
    return batch_classification_loss(scores, own.to(device), model.logit_scale)


def _load(config: TrainingConfig) -> _Data:
    dataset = ScenesDataset.open(config.data.path)
    if config.data.view not in dataset.views:
        raise TrainingError(
            f"{dataset.root} has the views {', '.join(dataset.views)}, not {shown(config.data.view)}; "
            "change data.view or generate that view"
        )
    size = image_size(config.model)
    if not isinstance(size, int) or not 8 <= size <= 1024:
        raise TrainingError(f"model.image.size: {shown(size)}; expected pixels a side, from 8 to 1024")
    spec = PixelInput(
        size, size, (ToRgb(), PadSquare(255, "artemis"), Resize((size, size), "bilinear")), True
    )
    splits = {name: dataset.split(name) for name in ("train", "validation", "test")}
    tokenizer = build_tokenizer(vocabulary_from_texts(q.text for q in splits["train"].queries))
    sets = {
        name: query_set(split, config.data.view, spec, tokenizer, max(1, torch.get_num_threads()))
        for name, split in splits.items()
    }
    digest = hashlib.sha256()
    for split in splits.values():
        digest.update(repr((split.ids, [s.to_json() for s in split.scenes], split.queries)).encode())
    return _Data(
        **sets,
        tokenizer=tokenizer,
        image=plain_resize(size),
        text=word_text(max_tokens(config.model)),
        digest=digest.hexdigest(),
    )


def _build(config: TrainingConfig, data: _Data) -> RetrievalModel:
    try:
        return build_model(with_vocabulary(config.model, data.tokenizer.get_vocab_size()))
    except UsageError as error:
        raise TrainingError(f"model: {error}") from error


def _start_from(model: RetrievalModel, weights: dict[str, Tensor], where: str) -> None:
    """Takes over the weights of another model that have the same names and shapes, single numbers too."""
    own = model.state_dict()
    shared = {n: w for n, w in weights.items() if n in own and own[n].shape == w.shape}
    if not any(weight.ndim for weight in shared.values()):  # every system has the temperature
        raise TrainingError(f"{where} shares no weight with system {shown(model.system)}")
    model.load_state_dict(shared, strict=False)


def _device(name: str, precision: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise TrainingError(f"device {shown(name)} cannot be used ({reason}); try --device cpu") from error
    if precision == "float16" and device.type == "cpu":
        raise TrainingError("training.precision: float16 needs a GPU; use bfloat16 or float32 on a CPU")
    return device


def _random_state() -> dict[str, Any]:
    state: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def _set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


def _start_entry(
    config: TrainingConfig, model: RetrievalModel, data: _Data, device: torch.device
) -> dict[str, Any]:
    return {
        "event": "start",
        "model": model.config,
        "training": asdict(config.training),
        "parameters": sum(p.numel() for p in model.parameters()),
        "train": {"queries": len(data.train), "images": len(data.train.images), "view": config.data.view},
        "device": device.type if device.type == "cpu" else torch.cuda.get_device_name(device),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
    }


def _store_best(
    config: TrainingConfig, state: TrainingState, data: _Data, files: TrainingFiles, device: torch.device
) -> dict[str, Any]:
    """Write the best epoch's model, and measure what was written on the test split."""
    model = _build(config, data)
    model.load_state_dict(state.best)
    provenance: dict[str, Any] = {
        "trained_by": "cir-train",
        "data": "scenes",
        "domain": domain_of("scenes"),
        "vocabulary": known_words(data.tokenizer),
        "data_digest": data.digest,
        "view": config.data.view,
        "epoch": state.best_epoch,
        "training": asdict(config.training),
    }
    trained = TrainedModel(model.eval(), data.tokenizer, data.image, data.text, provenance)
    try:
        save_model(files.model, trained, config.training.weights)
        stored = load_model(files.model)
        found = evaluate(stored.model.to(device), data.test, device)
        provenance["test"] = found
        save_model(files.model, trained, config.training.weights)
    except CirError as error:
        raise TrainingError(f"the trained model cannot be stored: {error}") from error
    return {
        "event": "end",
        "system": model.system,
        "seed": config.training.seed,
        "best_epoch": state.best_epoch,
        "validation_recall_at_1": state.best_recall,
        "test": found,
        "parameters": sum(p.numel() for p in model.parameters()),
        "bytes": files.model.stat().st_size,
        "seconds": round(state.seconds, 1),
        "cpu_seconds": round(state.cpu_seconds, 1),
    }


def _write_log(path: Path, entries: list[dict[str, Any]]) -> None:
    try:
        path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    except OSError as error:
        raise TrainingError(f"{path} cannot be written: {error.strerror}") from error
