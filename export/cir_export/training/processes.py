"""Training by several processes: each encodes its share of a batch, all learn from the whole of it.

Started by PyTorch's own launcher, which sets the variables that are read here:

    torchrun --nproc-per-node 2 $(which cir-train) config.toml

The distinct pictures of a batch are shared out and their embeddings gathered, so that every query is told its
target from all others of the batch, as in one process. Gradients are averaged by `DistributedDataParallel`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed
from torch.autograd import Function

from cir_infer.errors import TrainingError, shown

__all__ = ["ALONE", "Processes", "join_processes"]

_PATIENCE = timedelta(hours=12)
"""How long others wait while the first process evaluates."""


@dataclass(frozen=True)
class Processes:
    """The processes of a training.

    Attributes:
        rank: this one's number, from 0; the first one measures, reports and writes.
        count: how many there are.
    """

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the one that measures, reports and writes."""
        return self.rank == 0

    @property
    def share(self) -> slice:
        """What of a batch is this process's."""
        return slice(self.rank, None, self.count)

    def gathered(self, encode: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """Embeddings of all images, of which each process encodes its share; gradients flow back to it."""
        if self.count == 1:
            return encode(images)
        own = encode(images[self.share]) if self.rank < len(images) else None
        found: Tensor = _Gather.apply(own, len(images), self)  # type: ignore[no-untyped-call]
        return found

    def wait(self) -> None:
        """Until all processes are here.

        Raises:
            TrainingError: one has ended.
        """
        if self.count > 1:
            _with_all(distributed.barrier)

    def seed(self, seed: int, step: int) -> None:
        """Dice of a step: another sequence in each process, the same when a training goes on."""
        if self.count > 1:
            torch.manual_seed((seed << 40) + step * self.count + self.rank)

    def mean(self, value: Tensor) -> float:
        """The mean over the processes."""
        if self.count == 1:
            return float(value.item())
        total = value.detach().clone()
        _with_all(distributed.all_reduce, total)
        return float(total.item()) / self.count


ALONE = Processes()


def join_processes(device: torch.device) -> Processes:
    """The processes that the launcher started, joined; one alone where it was not used.

    Raises:
        TrainingError: the launcher's variables make no sense.
    """
    if "WORLD_SIZE" not in os.environ or os.environ["WORLD_SIZE"] == "1":
        return ALONE
    try:
        found = Processes(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
        if not distributed.is_initialized():
            backend = "nccl" if device.type == "cuda" else "gloo"
            distributed.init_process_group(
                backend, rank=found.rank, world_size=found.count, timeout=_PATIENCE
            )
    except (KeyError, ValueError, RuntimeError) as error:
        raise TrainingError(
            f"the processes cannot be joined ({str(error).splitlines()[0]}); start them with torchrun"
        ) from error
    return found


def _with_all(call: Callable[..., Any], *args: Any) -> None:
    """What all processes do together."""
    try:
        call(*args)
    except RuntimeError as error:
        raise TrainingError(
            f"another process of this training has ended ({shown(error)}); what it said before says why"
        ) from error


class _Gather(Function):
    """Rows that each process has a share of, as all rows; a row's gradient is the sum of all processes'."""

    @staticmethod
    def forward(ctx: Any, own: Tensor | None, count: int, processes: Processes) -> Tensor:
        ctx.processes = processes
        if own is None:
            raise TrainingError(
                f"a batch has fewer pictures than the {processes.count} processes; use larger batches"
            )
        rows = own.new_zeros(count, *own.shape[1:])
        rows[processes.share] = own
        _with_all(distributed.all_reduce, rows)
        return rows

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        total = gradients[0].contiguous()
        _with_all(distributed.all_reduce, total)
        return total[ctx.processes.share], None, None
