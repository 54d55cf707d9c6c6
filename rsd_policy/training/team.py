"""Several processes that train one model, a GPU each.

Started by torch's own launcher, which names each process's part in environment variables:

    .venv/bin/torchrun --standalone --nproc-per-node 2 -m rsd_policy.commands.train --data DIR --out DIR

Each process reads its own part of the demonstrations and draws its own share of every batch from it; gradients are
averaged before each step, so all hold the same weights.
Averaging by hand and not with DistributedDataParallel: the compiler then sees one whole graph. The price is that
nothing is computed during the reduction (85 MB a step for the shipped `mini`); what it costs was not measured.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from rsd_policy.errors import RSDError

T = TypeVar("T")

PATIENCE = timedelta(minutes=10)
"""How long a process waits for another, which may be validating or reading demonstrations."""


@dataclass(frozen=True)
class Team:
    """Which of how many processes this one is.

    Attributes:
        rank: 0 .. size-1; 0 alone reports and writes.
        size: processes.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls, device: torch.device) -> tuple[Team, torch.device]:
        """The team that the launcher started, or a team of one without a launcher; and this process's own device.

        Raises:
            RSDError: fewer GPUs than processes on this host.
        """
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls(), device
        local = int(os.environ["LOCAL_RANK"])
        if device.type == "cuda":
            if local >= torch.cuda.device_count():
                raise RSDError(
                    f"training with {size} processes: expected a GPU each, got {torch.cuda.device_count()}; start "
                    "fewer with --nproc-per-node"
                )
            device = torch.device("cuda", local)
            torch.cuda.set_device(device)
        if device.type == "cuda":
            distributed.init_process_group("nccl", timeout=PATIENCE, device_id=device)
        else:
            distributed.init_process_group("gloo", timeout=PATIENCE)
        return cls(distributed.get_rank(), size), device

    @property
    def leads(self) -> bool:
        """Whether this process reports and writes."""
        return self.rank == 0

    def share(self, batch_size: int) -> int:
        """This process's part of a batch.

        Raises:
            RSDError: the batch cannot be shared out evenly.
        """
        if batch_size % self.size:
            raise RSDError(f"batch size: expected a multiple of {self.size} processes, got {batch_size}")
        return batch_size // self.size

    def average(self, vector: Tensor) -> None:
        """Replace a vector by its mean over the team, in place."""
        if self.size > 1:
            distributed.all_reduce(vector)
            vector /= self.size

    def gather(self, value: T) -> list[T]:
        """Every process's value, in the order of their ranks."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        distributed.all_gather_object(values, value)
        return values

    def agree(self, value: float) -> float:
        """The first process's value, in every process."""
        if self.size == 1:
            return value
        device = torch.device("cuda") if distributed.get_backend() == "nccl" else torch.device("cpu")
        shared = torch.tensor([value], dtype=torch.float64, device=device)
        distributed.broadcast(shared, src=0)
        return float(shared)

    def wait(self) -> None:
        """Until every process has come here."""
        if self.size > 1:
            distributed.barrier()

    def leave(self) -> None:
        """Wait for the others, and end."""
        self.wait()
        if self.size > 1:
            distributed.destroy_process_group()
