"""Two processes train one model: the same weights in both, from different frames; one of them reports and writes."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import torch
from torch import multiprocessing

from rsd_policy.errors import RSDError
from rsd_policy.training.mini.trainer import TrainConfig, train
from rsd_policy.training.team import Team
from tests.policies import small_policy
from tests.training.test_training import CPU, constant_frames

CONFIG = TrainConfig(steps=6, batch_size=8, warmup_steps=1, checkpoint_every=3, validate_every=3)


def _member(rank: int, port: int, out: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    team, device = Team.join(CPU)
    vector = torch.full((3,), rank + 1.0)
    team.average(vector)
    reports: list[object] = []
    frames = constant_frames(32)
    state_path = out / f"state{rank}.pt"
    policy = train(small_policy(), frames, frames, CONFIG, device, state_path, reports.append, team)
    weights = {name: module.state_dict() for name, module in policy.modules().items()}
    found = {
        "weights": weights,
        "mean": vector,
        "agreed": team.agree(rank + 7.0),
        "gathered": team.gather(rank),
        "reports": len(reports),
        "seed": torch.initial_seed(),
    }
    torch.save(found, out / f"member{rank}.pt")
    team.leave()


def test_two_processes_hold_the_same_weights_and_draw_different_frames(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    multiprocessing.spawn(_member, args=(port, tmp_path), nprocs=2)
    first, second = (torch.load(tmp_path / f"member{rank}.pt") for rank in (0, 1))
    for member in (first, second):
        assert member["mean"].tolist() == [1.5] * 3
        assert member["agreed"] == 7.0 and member["gathered"] == [0, 1]
    assert first["seed"] != second["seed"]
    start = small_policy().modules()["head"].state_dict()
    assert any(not torch.equal(value, start[key]) for key, value in first["weights"]["head"].items())
    for name, state in first["weights"].items():
        for key, value in state.items():
            assert torch.equal(value, second["weights"][name][key]), f"{name}.{key}"
    assert first["reports"] > 0 and second["reports"] == 0
    assert (tmp_path / "state0.pt").exists() and not (tmp_path / "state1.pt").exists()


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    assert Team(rank=1, size=4).share(512) == 128
    with pytest.raises(RSDError, match="multiple of 3"):
        Team(size=3).share(512)
