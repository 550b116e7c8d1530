"""Two processes train what one does: the same losses, the same weights up to rounding."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, multiprocessing

from cir_export.training.configuration import TrainingConfig
from cir_export.training.processes import ALONE, Processes
from cir_export.training.step import step_of
from cir_export.training.trainer import TrainingFiles, train
from cir_infer.errors import TrainingError
from cir_infer.processes.locked_files import alone_in
from tests.training.test_data_sets import cirr_features, configuration


def config(root: Path) -> TrainingConfig:
    """On features: without batch normalisation, whose statistics are each process's own."""
    model: dict[str, Any] = {"image": {"features": 64, "normalize": True}}
    return configuration(root, {"dataset": "cirr"}, model, epochs=2)


def one_of_two(rank: int, port: int, root: Path, out: Path) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE="2")
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    torch.set_num_threads(1)
    end = train(config(root), out, "cpu")
    assert bool(end) == (rank == 0)


@pytest.mark.slow
def test_two_processes_give_the_loss_of_one(tmp_path: Path) -> None:
    root = cirr_features(tmp_path / "data")
    train(config(root), tmp_path / "one", "cpu")
    # As torchrun does: the store listens before the processes begin, on a port that the system chose.
    store = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    multiprocessing.spawn(one_of_two, (store.port, root, tmp_path / "two"), nprocs=2)  # type: ignore[no-untyped-call]
    logs = [
        [json.loads(line) for line in TrainingFiles(tmp_path / name).log.read_text().splitlines()]
        for name in ("one", "two")
    ]
    losses = [[entry["loss"] for entry in log if entry["event"] == "epoch"] for log in logs]
    assert losses[0] == pytest.approx(losses[1], abs=2e-4)
    one, two = (
        torch.load(TrainingFiles(tmp_path / name).model, weights_only=True)["weights"]
        for name in ("one", "two")
    )
    assert all(torch.allclose(one[name], two[name], atol=1e-3) for name in one)


def refused_of_two(rank: int, port: int, root: Path, out: Path, said: Any) -> None:
    with pytest.raises(TrainingError) as error:
        one_of_two(rank, port, root, out)
    said.put((rank, str(error.value)))


@pytest.mark.slow
def test_where_the_first_process_is_refused_the_others_end_in_a_line(tmp_path: Path) -> None:
    """They wait for it, and ended in an exception from the depths of PyTorch."""
    root, out = cirr_features(tmp_path / "data"), tmp_path / "out"
    out.mkdir()
    store = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    said = multiprocessing.get_context("spawn").SimpleQueue()
    with alone_in(out, TrainingError, "trains"):
        multiprocessing.spawn(refused_of_two, (store.port, root, out, said), nprocs=2)  # type: ignore[no-untyped-call]
    lines = dict(said.get() for _ in range(2))
    assert "another process trains there" in lines[0]
    assert lines[1].startswith("another process of this training has ended") and len(lines[1]) < 400


def test_a_loss_of_its_own_is_not_shared() -> None:
    from tests.export.systems.examples import example

    settings = config(Path()).training
    for name in ("sac", "composeae"):
        with pytest.raises(TrainingError, match=f"system '{name}' has a loss of its own"):
            step_of(example(name), settings, None, Processes(0, 2))
    assert callable(step_of(example("sac"), settings, None, ALONE))


def test_without_a_launcher_one_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from cir_export.training.processes import join_processes

    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert join_processes(torch.device("cpu")) is ALONE
    monkeypatch.setenv("WORLD_SIZE", "two")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(TrainingError, match="start them with torchrun"):
        join_processes(torch.device("cpu"))
