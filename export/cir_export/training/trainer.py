"""Trains a model as a configuration says, and can be interrupted at any moment."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from cir_export.checkpoints.domains import domain_of
from cir_export.model_file import TrainedModel, load_model, save_model
from cir_export.models import RetrievalModel, build_model
from cir_export.tokenization import known_words
from cir_export.training.configuration import TrainingConfig
from cir_export.training.evaluation import evaluate, share_measured, two_way
from cir_export.training.frozen import kept_while_frozen
from cir_export.training.initial import start_from
from cir_export.training.loading import Loaded, load_data
from cir_export.training.optimisation import build_optimizer, freeze_trunks, learning_rate
from cir_export.training.processes import Processes, join_processes
from cir_export.training.reading import reading_of
from cir_export.training.state import Begun, TrainingState, load_state, save_state
from cir_export.training.step import step_of
from cir_export.training.systems import with_vocabulary
from cir_infer.console.progress import progress_bar
from cir_infer.errors import CirError, TrainingError, UsageError, shown
from cir_infer.processes.locked_files import alone_in
from cir_infer.processes.outputs import check_apart, replacing

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


def train(
    config: TrainingConfig,
    folder: Path,
    device: str = "auto",
    restart: bool = False,
    report: Callable[[dict[str, Any]], None] = lambda _: None,
    initial: Sequence[Path] = (),
) -> dict[str, Any]:
    """Train, or continue the interrupted training of the same configuration in the folder.

    The epoch with the best measure of the protocol (R@1 on the scenes) on the validation split is kept, the
    last one where the data set has no such split. A continued training gives the same weights, to the last
    bit, as one that was never interrupted (on one machine, with as many threads).

    Args:
        config: what to train on what, and how.
        folder: where to write, see `TrainingFiles`.
        device: "auto" (a GPU if there is one), or a PyTorch device.
        restart: train anew, whatever the folder holds of a training, interrupted or finished.
        report: called with every entry of the log.
        initial: files or folders to start from, see `initial.py`; a later one overrides an earlier one.

    Returns:
        The last entry of the log, with the recall of the stored model on the test split; nothing in any but
        the first of several processes.

    Raises:
        TrainingError: the configuration does not fit, the loss is no longer finite, another process trains
            in the folder, the interrupted training was another, or the folder holds a model already.
        UsageError: it starts from the folder's own model.
        DatasetError: the data set is missing or damaged.
    """
    config, reading = reading_of(config, initial)
    files = TrainingFiles(folder)
    check_apart(files.model, initial)  # and an interrupted training would begin with what it has written
    if files.model.exists() and not (restart or files.state.exists()):
        raise TrainingError(
            f"{files.model} is there, of a training that has ended; give another folder (-o), or --restart "
            "to train anew and replace it"
        )
    chosen = _device(device, config.training.precision)
    processes = join_processes(chosen)
    data = load_data(config, reading)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"{folder} cannot be made: {error.strerror}") from error
    with alone_in(folder, TrainingError, "trains") if processes.first else nullcontext():
        if restart and processes.first:
            files.state.unlink(missing_ok=True)
        processes.wait()
        return _train(config, files, chosen, processes, data, report, initial)


def _train(
    config: TrainingConfig,
    files: TrainingFiles,
    chosen: torch.device,
    processes: Processes,
    data: Loaded,
    report: Callable[[dict[str, Any]], None],
    initial: Sequence[Path],
) -> dict[str, Any]:
    """See `train`."""
    settings = config.training
    torch.manual_seed(settings.seed)
    model = _build(config, data)
    starts = [asdict(start_from(model, path, data.tokenizer)) for path in initial]
    weights = tuple(str(start["sha256"]) for start in starts)
    begun = Begun(config.digest, data.digest, weights, data.contents)
    model.to(chosen)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = build_optimizer(model, settings)
    # float16 gradients underflow without a scale; the other precisions need none.
    scaler = torch.amp.GradScaler(chosen.type, enabled=settings.precision == "float16")
    state = load_state(files.state, begun) or TrainingState(begun)
    if state.step:
        try:
            model.load_state_dict(state.model)
            optimizer.load_state_dict(state.optimizer)
            scaler.load_state_dict(state.scaler)
            _set_random_state(state.random)
        except Exception as error:  # another release may have other layers by the same configuration
            raise TrainingError(
                f"{files.state} does not fit the model ({shown(error)}); start anew with --restart"
            ) from error
    else:
        state.log = [{**_start_entry(config, model, data, chosen), "initial": starts}]
    for entry in state.log if processes.first else ():
        report(entry)

    freeze_trunks(model, settings.frozen_epochs > 0)
    keeper = kept_while_frozen(model, settings, files.folder, chosen) if processes.count == 1 else None
    steps_per_epoch = len(data.train.numbers(0))
    if not steps_per_epoch:
        raise TrainingError(
            f"the training split has fewer than the {settings.families_per_batch} families of a batch"
        )

    def remember() -> None:
        if not processes.first:
            return
        state.model, state.optimizer = model.state_dict(), optimizer.state_dict()
        state.scaler, state.random = scaler.state_dict(), _random_state()
        save_state(files.state, state)

    while state.step < settings.epochs * steps_per_epoch:
        epoch, done = divmod(state.step, steps_per_epoch)
        freeze_trunks(model, epoch < settings.frozen_epochs)
        kept = keeper if epoch < settings.frozen_epochs else None
        loss_of = step_of(model, settings, kept, processes)
        bar = progress_bar(
            data.train.batches(epoch, done, None if kept is None else kept.rows(data.train.images)),
            steps_per_epoch - done,
            description=f"epoch {epoch + 1}",
            unit="batch",
        )
        for batch in bar:
            wall, cpu = time.perf_counter(), time.process_time()
            rate = learning_rate(settings, state.step, steps_per_epoch)
            for group in optimizer.param_groups:
                group["lr"] = rate * group["rate"]
            with torch.autocast(
                chosen.type, _AUTOCAST.get(settings.precision), enabled=settings.precision in _AUTOCAST
            ):
                processes.seed(settings.seed, state.step)
                loss = loss_of(batch.to(chosen))
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            scaler.step(optimizer)
            scaler.update()
            value = processes.mean(loss)
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
        if not processes.first:
            state.epoch_loss = 0.0
            continue
        found = None
        if data.validation is not None:
            halves = data.validation is data.test
            found = evaluate(model, data.validation, data.train.tokens, chosen, halves, kept)
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
        if found is None or share_measured(found) > state.best_recall:
            state.best_recall, state.best_epoch = share_measured(found), epoch + 1
            state.best = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
        state.epoch_loss = 0.0
        state.log.append(entry)
        remember()
        _write_log(files.log, state.log)
        report(entry)

    if not processes.first:
        return {}
    end = _store_best(config, state, data, files, chosen)
    report(end)
    _write_log(files.log, [*state.log, end])
    files.state.unlink(missing_ok=True)
    return end


def _build(config: TrainingConfig, data: Loaded) -> RetrievalModel:
    try:
        return build_model(with_vocabulary(config.model, data.tokenizer.get_vocab_size()))
    except UsageError as error:
        raise TrainingError(f"model: {error}") from error


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
        torch.cuda.set_rng_state_all(state["cuda"][: torch.cuda.device_count()])


def _start_entry(
    config: TrainingConfig, model: RetrievalModel, data: Loaded, device: torch.device
) -> dict[str, Any]:
    return {
        "event": "start",
        "model": model.config,
        "training": asdict(config.training),
        "parameters": model.parameter_count(),
        "data": {name: value for name, value in config.data_said.items() if value},
        "data_digest": data.digest,
        "pictures": asdict(data.contents),
        "train": {
            "data": data.name,
            "queries": len(data.train.split),
            "images": len(data.train.images),
            **({"view": data.view} if data.view else {}),
        },
        "device": device.type if device.type == "cpu" else torch.cuda.get_device_name(device),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
    }


def _store_best(
    config: TrainingConfig, state: TrainingState, data: Loaded, files: TrainingFiles, device: torch.device
) -> dict[str, Any]:
    """Write the best epoch's model, and measure what was written on the test split."""
    model = _build(config, data)
    model.load_state_dict(state.best)
    provenance: dict[str, Any] = {
        "trained_by": "cir-train",
        "data": data.name,
        "domain": domain_of(data.name),
        "vocabulary": known_words(data.tokenizer),
        "data_digest": data.digest,
        **({"data_licence": data.licence} if data.licence else {}),
        **({"view": data.view} if data.view else {}),
        "epoch": state.best_epoch,
        "training": asdict(config.training),
        "initial": state.log[0]["initial"],
    }
    trained = TrainedModel(model.eval(), data.tokenizer, data.image, data.text, provenance)
    try:
        save_model(files.model, trained, config.training.weights)
        found = None
        if data.test is not None:
            stored = load_model(files.model)
            found = evaluate(stored.model.to(device), data.test, data.train.tokens, device)
            provenance["test"] = found
            save_model(files.model, trained, config.training.weights)
    except CirError as error:
        raise TrainingError(f"the trained model cannot be stored: {error}") from error
    return {
        "event": "end",
        "system": model.system,
        "seed": config.training.seed,
        "best_epoch": state.best_epoch,
        "validation_measure": None if data.validation is None else state.best_recall,
        "test": found,
        **({"two_way": crossed} if (crossed := two_way(state.log)) else {}),
        "parameters": model.parameter_count(),
        "bytes": files.model.stat().st_size,
        "seconds": round(state.seconds, 1),
        "cpu_seconds": round(state.cpu_seconds, 1),
    }


def _write_log(path: Path, entries: list[dict[str, Any]]) -> None:
    """Write the log; an interruption, or a full disk, leaves the old one or the new one."""
    try:
        with replacing(path) as file:
            file.write("".join(json.dumps(entry) + "\n" for entry in entries).encode())
    except OSError as error:
        raise TrainingError(f"{path} cannot be written: {error.strerror}") from error
