"""Training: labels are masked where they lie, the loop learns and resumes, the gate's threshold keeps its promise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from rsd_policy.backbones.mini import WordTokenizer
from rsd_policy.errors import RSDError
from rsd_policy.training.augment import augment_images
from rsd_policy.training.dataset import Demonstrations, load_demonstrations, to_frames
from rsd_policy.training.trainer import Progress, TrainConfig, train
from rsd_policy.training.validate import Predictions, accuracy, calibrate_gate, predict
from sim_bridge.demonstrations import Demonstration, write_demonstration
from tests.policies import WORDS, small_policy

CPU = torch.device("cpu")


def episode(seed: int = 0, steps: int = 20, noisy_step: int | None = None) -> Demonstration:
    rng = np.random.default_rng(seed)
    frame_steps = np.arange(0, steps, 2)
    actions = np.tile(np.linspace(-1, 1, steps, dtype=np.float32)[:, None], (1, 7))
    noisy = np.zeros(steps, dtype=bool)
    if noisy_step is not None:
        noisy[noisy_step] = True
    return Demonstration(
        suite="libero_spatial",
        task=seed % 2,
        seed=seed,
        instruction="pick up the bowl",
        images=rng.integers(0, 256, (len(frame_steps), 2, 32, 32, 3), dtype=np.uint8),
        frame_steps=frame_steps,
        proprio=rng.normal(size=(len(frame_steps), 8)).astype(np.float32),
        actions=actions,
        executed=actions,
        noisy=noisy,
    )


def test_labels_behind_a_noisy_step_and_behind_the_end_are_masked() -> None:
    frames = to_frames([episode(noisy_step=5)], WordTokenizer(WORDS), horizon=8)
    assert len(frames) == 10
    assert frames.mask[0].tolist() == [True] * 6 + [False] * 2  # steps 0..5: the noisy step's own label is clean
    assert frames.mask[2].tolist() == [True] * 2 + [False] * 6  # steps 4, 5
    assert frames.mask[3].tolist() == [True] * 8  # steps 6..13
    assert frames.mask[9].tolist() == [True] * 2 + [False] * 6  # steps 18, 19, then the end
    np.testing.assert_allclose(frames.actions[3].numpy(), episode().actions[6:14])


def test_tasks_are_drawn_by_their_weight_whatever_their_length() -> None:
    frames = to_frames(
        [episode(0, steps=40), episode(1, steps=8)],
        WordTokenizer(WORDS),
        8,
        task_weights={("libero_spatial", 1): 3.0},
    )
    drawn = frames.sample(4000, torch.Generator().manual_seed(0))
    last_of_short = frames.actions[-1, 0, 0]
    share = (drawn.actions[:, 0, 0] == last_of_short).double().mean().item()
    assert share == pytest.approx(0.75 / 4, abs=0.03)  # task 1 has 3/4 of the weight and 4 frames


def test_files_are_read_back_and_split_by_episode(tmp_path: Path) -> None:
    for seed in range(10):
        write_demonstration(tmp_path, episode(seed))
    training, held_out = load_demonstrations(tmp_path, held_out=0.2)
    assert len(training) == 8 and len(held_out) == 2
    again = load_demonstrations(tmp_path, held_out=0.2)[1]
    assert [e.seed for e in again] == [e.seed for e in held_out]
    assert np.array_equal(training[0].images, episode(training[0].seed).images)
    (tmp_path / "broken.npz").write_bytes(b"not a file")
    with pytest.raises(RSDError, match=r"broken\.npz"):
        load_demonstrations(tmp_path, held_out=0.2)


def test_augmentation_without_strength_is_the_identity() -> None:
    images = torch.randint(0, 256, (3, 2, 16, 16, 3), dtype=torch.uint8)
    plain = images.permute(0, 1, 4, 2, 3).float() / 127.5 - 1.0
    assert torch.allclose(augment_images(images, max_shift=0, colour=0.0), plain, atol=1e-6)
    assert not torch.allclose(augment_images(images, max_shift=3, colour=0.0), plain)


def constant_frames(count: int) -> Demonstrations:
    """Frames whose label is a fixed chunk: what any working training loop must learn."""
    torch.manual_seed(0)
    chunk = (torch.rand(8, 7) * 2 - 1) * torch.tensor([1, 1, 1, 0.5, 0.5, 0.5, 1])
    return Demonstrations(
        images=torch.randint(0, 256, (count, 2, 32, 32, 3), dtype=torch.uint8),
        proprio=torch.randn(count, 8),
        words=torch.randint(0, 60, (count, 32)),
        actions=chunk.expand(count, -1, -1).clone(),
        mask=torch.ones(count, 8, dtype=torch.bool),
        weight=torch.ones(count, dtype=torch.float64),
    )


def test_loop_learns_resumes_and_predicts(tmp_path: Path) -> None:
    frames = constant_frames(32)
    history: list[Progress] = []
    config = TrainConfig(
        steps=60, batch_size=16, learning_rate=3e-3, warmup_steps=5, ema_decay=0.9, checkpoint_every=60
    )
    state = tmp_path / "state.pt"
    policy = train(small_policy(), frames, config, CPU, state, history.append)
    assert history[-1].loss < 0.5 * history[0].loss
    resumed: list[Progress] = []
    longer = TrainConfig(steps=62, batch_size=16, learning_rate=3e-3, warmup_steps=5, ema_decay=0.9)
    train(small_policy(1), frames, longer, CPU, state, resumed.append)
    assert resumed[-1].step == 62 and resumed[-1].loss < 0.5 * history[0].loss
    figures = accuracy(predict(policy, frames, CPU))
    assert figures["head_teacher_forced_per_level"][0] > 0.9
    assert figures["frames"] == 32


def synthetic_predictions(count: int, rng: np.random.Generator) -> Predictions:
    """Drafts whose chance to deviate falls with their margin."""
    confidence = rng.random(count)
    bad = rng.random(count) < 0.6 * (1 - confidence)
    main = np.zeros((count, 8, 7), dtype=np.float32)
    main[..., 6] = 1.0
    draft = main.copy()
    draft[bad, 0, 0] = 0.5
    zeros = np.zeros((8, count, 8, 7), dtype=np.int64)
    margins = np.broadcast_to(confidence[None, :, None, None] * 4, (3, count, 8, 7)).astype(np.float32)
    mask = np.ones((count, 8), dtype=bool)
    return Predictions(zeros, zeros[:3], zeros, main, draft, main, margins, mask, np.ones(8), np.ones(3))


def test_calibrated_gate_keeps_its_bound_on_fresh_data() -> None:
    rng = np.random.default_rng(0)
    tolerance = np.full(6, 0.1, dtype=np.float32)
    rates, skips = [], []
    for _ in range(100):
        entry = calibrate_gate(synthetic_predictions(400, rng), tolerance, alpha=0.1)
        fresh = synthetic_predictions(400, rng)
        threshold = np.inf if entry["threshold"] is None else entry["threshold"]
        skipped = fresh.margins[0, :, 0, 0] >= threshold
        deviates = np.abs(fresh.draft_actions - fresh.main_actions).max(axis=(1, 2)) > 0.1
        rates.append(deviates[skipped].mean() if skipped.any() else 0.0)
        skips.append(skipped.mean())
    assert np.mean(rates) <= 0.11
    assert np.mean(skips) > 0.2


def test_gate_that_cannot_keep_the_bound_is_not_calibrated() -> None:
    predictions = synthetic_predictions(50, np.random.default_rng(0))
    predictions.draft_actions[:, 0, 0] = 0.5
    assert calibrate_gate(predictions, np.full(6, 0.1, dtype=np.float32), alpha=0.1)["threshold"] is None
