"""Drafts at several layers: what is frozen stays, each draft learns from its own layer, times are told apart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.ablations import exit_layer
from benchmarks.ablations.exit_layer import candidate, fit, judge
from rsd_policy.checkpoints.loading import save_policy
from rsd_policy.errors import ArgumentError
from rsd_policy.training.mini.dataset import to_frames
from rsd_policy.training.mini.trainer import TrainConfig
from sim_bridge.demonstrations import write_demonstration
from tests.policies import small_policy
from tests.training.test_training import episode, trace

CPU = torch.device("cpu")


def test_drafts_learn_and_the_rest_stays() -> None:
    policy = small_policy(choice="mode")
    drafts = {k: candidate(policy, k) for k in (1, 3)}
    frames = to_frames([episode(seed, steps=24) for seed in range(4)], policy.mini.tokenizer, policy.horizon)
    before = judge(policy, drafts, frames, 100, CPU)
    fit(policy, drafts, frames, TrainConfig(steps=40, batch_size=16, warmup_steps=4, learning_rate=1e-2), CPU)
    after = judge(policy, drafts, frames, 100, CPU)
    for k, draft in drafts.items():
        assert draft.exit_layer == k
        assert sum(after[k]["draft_equals_head_per_level"]) > sum(before[k]["draft_equals_head_per_level"]) + 0.3
        assert after[k]["frames"] == len(frames)
        own = draft.mini.state_dict()
        assert all(
            torch.equal(own[key], value) for key, value in policy.mini.state_dict().items() if "readers" not in key
        )
        assert all(torch.equal(a, b) for a, b in zip(draft.head.parameters(), policy.head.parameters(), strict=True))
    assert not torch.equal(drafts[1].draft.project.weight, drafts[3].draft.project.weight)


def test_command_writes_what_it_found_and_takes_times_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint, data, path = tmp_path / "checkpoint", tmp_path / "demos", tmp_path / "exit_layer.json"
    save_policy(checkpoint, small_policy())
    for seed in range(4):
        write_demonstration(data, episode(seed), trace(episode(seed)))
    common = ["--policy", str(checkpoint), "--data", str(data), "--device", "cpu", "--chunks", "2", "--json", str(path)]
    assert exit_layer.main([*common, "--layers", "9"]) == 2
    assert "expected 1 .. 3" in capsys.readouterr().err
    learning = ["--layers", "1,2", "--steps", "2", "--batch-size", "4", "--held-out", "0.5"]
    assert exit_layer.main([*common, *learning, "--measure", "acceptance"]) == 0
    assert "need --measure times too" in capsys.readouterr().out and not path.with_suffix(".png").exists()
    with pytest.raises(ArgumentError, match="--measure times"):
        exit_layer.section(path, tmp_path)
    assert exit_layer.main([*common, *learning]) == 0
    first = json.loads(path.read_text())
    assert list(first["acceptance"]["per_layer"]) == list(first["times"]["draft_chunk_ms"]) == ["1", "2"]
    assert (first["acceptance"]["training_episodes"], first["acceptance"]["held_out_episodes"]) == (2, 2)
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert exit_layer.main([*common, "--layers", "1,2", "--measure", "times", "--chunks", "3"]) == 0
    second = json.loads(path.read_text())
    assert second["acceptance"] == first["acceptance"] and second["times"]["chunks"] == 3
    plots = tmp_path / "results"
    plots.mkdir()
    text = exit_layer.section(path, plots)
    assert "(results/exit_layer.png)" in text and (plots / "exit_layer.png").is_file()
    assert "| 2 (the checkpoint's) |" in text and "--steps 2" in text and "--measure times" in text
    assert exit_layer.main([*common, "--layers", "1-3", "--measure", "times"]) == 2
    assert "expected layers [1, 2, 3], got [1, 2]" in capsys.readouterr().err
