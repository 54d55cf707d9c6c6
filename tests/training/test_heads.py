"""`rsd train-heads`: real hidden states, head before draft, resumable; what cannot be done is said before it begins."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rsd_policy import Observation, RSDInferenceEngine, load_policy
from rsd_policy.checkpoints.loading import Policy, save_policy
from rsd_policy.commands import train_heads as heads_cli
from rsd_policy.errors import CheckpointError, NonFiniteError, RSDError
from rsd_policy.training.heads.extract import HiddenStates, Source, extract_episode
from rsd_policy.training.heads.fit import HeadConfig, HeadProgress, fit_heads
from sim_bridge.demonstrations import Demonstration, SimulatorTrace, write_demonstration
from tests.policies import small_policy

CPU = torch.device("cpu")
SOURCE = Source("small", exit_layer=2, every=1)


def episode(seed: int, frames: int = 6) -> Demonstration:
    """One of two tasks; the motion is constant and follows from the instruction and the brightness."""
    rng = np.random.default_rng(seed)
    task = seed % 2
    steps = 2 * frames
    motion = np.array([0.5, -0.3, 0.1, 0.0, 0.2, -0.1, 1.0], np.float32) * (1 if task else -1)
    actions = np.tile(motion, (steps, 1))
    return Demonstration(
        suite="libero_spatial",
        task=task,
        seed=seed,
        instruction=("pick up the bowl", "plate")[task],
        images=rng.integers(160 * task, 96 + 160 * task, (frames, 2, 32, 32, 3), dtype=np.uint8),
        frame_steps=np.arange(0, steps, 2),
        proprio=rng.normal(size=(frames, 8)).astype(np.float32) * 0.1,
        actions=actions,
        executed=actions,
        noisy=np.zeros(steps, dtype=bool),
    )


def collected(directory: Path, count: int) -> Path:
    for seed in range(count):
        e = episode(seed)
        trace = SimulatorTrace(
            problem="libero_tabletop_manipulation",
            name="put",
            definition="",
            quaternions=np.tile([0.0, 0.0, 0.0, 1.0], (len(e.images), 1)),
            joints=np.zeros((len(e.images), 7)),
            states=np.zeros((len(e.actions), 5)),
        )
        write_demonstration(directory, e, trace)
    return directory


def saved(directory: Path) -> Path:
    save_policy(directory, small_policy())
    return directory


def run(tmp_path: Path, *arguments: str) -> Path:
    out = tmp_path / "heads"
    common = ["--policy", str(tmp_path / "policy"), "--data", str(tmp_path / "demos"), "--out", str(out)]
    assert heads_cli.main([*common, "--device", "cpu", *arguments]) == 0
    return out


def test_trained_heads_make_a_policy_that_says_what_the_demonstrations_say(tmp_path: Path) -> None:
    saved(tmp_path / "policy")
    collected(tmp_path / "demos", 6)
    out = run(tmp_path, "--steps", "350", "--batch-size", "16", "--held-out", "0.3", "--head-width", "32")
    manifest = json.loads((out / "manifest.json").read_text())
    figures = manifest["accuracy"]
    training = manifest["provenance"]["data"]["training_episodes"]
    assert 0 < training < 6 and figures["frames"] == 6 * (6 - training)
    # one of nine digits of L0, and of three of the others, is right by chance
    assert np.mean(figures["head_teacher_forced_per_level"]) > 0.9
    assert np.mean(figures["draft_teacher_forced_per_level"]) > 0.85
    assert np.mean(figures["draft_equals_head_per_level"]) > 0.85
    assert manifest["gate"] is None, "the old gate's promise was about other heads"
    held_out = episode(5)
    policy = load_policy(out)
    images = dict(zip(("agentview", "wrist"), held_out.images[0], strict=True))
    observation = Observation(images, held_out.proprio[0], held_out.instruction)
    chunk = RSDInferenceEngine(policy, "speculative").infer(observation)
    assert np.abs(chunk.actions - held_out.actions[:8]).mean() < 0.1
    before = load_policy(tmp_path / "policy").backbone.state_dict()
    assert all(torch.equal(value, before[key]) for key, value in policy.backbone.state_dict().items())
    with pytest.raises(CheckpointError, match="gated"):
        RSDInferenceEngine(policy, "gated")


def test_states_on_disk_are_those_of_inference(tmp_path: Path) -> None:
    policy, e = small_policy(), episode(0)
    file = load_file(extract_episode(policy.backbone, e, SOURCE, tmp_path, CPU, batch_size=4))
    assert file["early"].shape == file["late"].shape == (6, 8, 32)
    with torch.inference_mode():
        for row in range(6):
            images = dict(zip(("agentview", "wrist"), e.images[row], strict=True))
            observation = Observation(images, e.proprio[row], e.instruction)
            x = policy.backbone.embed(policy.backbone.preprocess([observation]))
            x = policy.backbone.forward_layers(x, 0, 2)
            assert torch.allclose(file["early"][row], policy.backbone.exit_hidden(x)[0], atol=1e-4)
            x = policy.backbone.forward_layers(x, 2, 4)
            assert torch.allclose(file["late"][row], policy.backbone.action_hidden(x)[0], atol=1e-4)
    assert np.array_equal(file["actions"][0].numpy(), e.actions[:8])
    assert file["mask"][-1].tolist() == [True] * 2 + [False] * 6


def test_extraction_keeps_what_is_there_and_replaces_what_changed(tmp_path: Path) -> None:
    policy = small_policy()
    path = extract_episode(policy.backbone, episode(0), SOURCE, tmp_path, CPU, 4)
    first = path.stat().st_mtime_ns
    assert extract_episode(policy.backbone, episode(0), SOURCE, tmp_path, CPU, 4) == path
    assert path.stat().st_mtime_ns == first
    other = episode(0, frames=9)
    assert len(load_file(extract_episode(policy.backbone, other, SOURCE, tmp_path, CPU, 4))["late"]) == 9
    path.write_bytes(b"not a file")
    with pytest.raises(RSDError, match="hidden states"):
        extract_episode(policy.backbone, episode(0), SOURCE, tmp_path, CPU, 4)


def test_states_of_another_policy_are_not_mixed_in(tmp_path: Path) -> None:
    SOURCE.claim(tmp_path)
    SOURCE.claim(tmp_path)
    with pytest.raises(RSDError, match="another --work"):
        Source("small", exit_layer=3, every=1).claim(tmp_path)


def test_failed_extraction_is_an_error_and_leaves_no_file(tmp_path: Path) -> None:
    policy = small_policy()
    policy.mini.slot.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="task00-seed00000000"):
        extract_episode(policy.backbone, episode(0), SOURCE, tmp_path, CPU, 4)
    assert not list(tmp_path.iterdir())


class Stopped(Exception):
    pass


def test_interrupted_training_ends_as_an_uninterrupted_one(tmp_path: Path) -> None:
    policy = small_policy()
    files = [extract_episode(policy.backbone, episode(s), SOURCE, tmp_path, CPU, 8) for s in range(2)]
    data = HiddenStates(files)
    config = HeadConfig(steps=12, batch_size=8, checkpoint_every=5)
    seen: list[tuple[str, int]] = []

    def trained(state: str, stop: tuple[str, int] | None = None, seed: int = 1) -> Policy:
        fresh = small_policy(seed)

        def report(progress: HeadProgress) -> None:
            seen.append((progress.phase, progress.step))
            if seen[-1] == stop:
                raise Stopped

        fit_heads(fresh, data, config, CPU, tmp_path / state, report)
        return fresh

    whole = trained("whole.pt")
    assert seen == [(phase, step) for phase in ("head", "draft") for step in range(1, 13)]
    for stop in (("head", 7), ("draft", 6)):
        with pytest.raises(Stopped):
            trained("parts.pt", stop)
    seen.clear()
    # another seed: what counts must come from the saved state
    again = trained("parts.pt", seed=2)
    assert seen == [("draft", step) for step in range(6, 13)]
    for name in ("head", "draft"):
        expected: dict[str, Any] = getattr(whole, name).state_dict()
        assert all(torch.equal(value, expected[key]) for key, value in getattr(again, name).state_dict().items())
    with pytest.raises(RSDError, match="other settings"):
        fit_heads(small_policy(), data, HeadConfig(steps=13), CPU, tmp_path / "parts.pt", lambda _: None)


def test_no_demonstrations_say_how_to_get_some(tmp_path: Path) -> None:
    saved(tmp_path / "policy")
    with pytest.raises(RSDError, match=r"found 0; record some first: \./rsd collect --out"):
        run(tmp_path)
    collected(tmp_path / "demos", 1)
    with pytest.raises(RSDError, match="found 1"):
        run(tmp_path)


def test_a_checkpoint_is_not_overwritten_and_a_wrong_layer_is_refused_before_the_extraction(tmp_path: Path) -> None:
    saved(tmp_path / "policy")
    collected(tmp_path / "demos", 2)
    with pytest.raises(RSDError, match=r"expected 1 \.\. 3.*got 4"):
        run(tmp_path, "--exit-layer", "4")
    saved(tmp_path / "heads")
    with pytest.raises(RSDError, match="holds a checkpoint already"):
        run(tmp_path)
    assert not (tmp_path / "heads.work").exists()
