"""Training: labels are masked where they lie, the loop learns and resumes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from rsd_policy.backbones.mini import WordTokenizer, resize_frame
from rsd_policy.errors import RSDError
from rsd_policy.training.mini.augment import augment_images
from rsd_policy.training.mini.corpus import COLLECTED, OTHERS, Corpus
from rsd_policy.training.mini.dataset import Demonstrations, held_out_rows, load_demonstrations, to_frames
from rsd_policy.training.mini.log import TrainingLog
from rsd_policy.training.mini.paraphrase import wordings
from rsd_policy.training.mini.trainer import Progress, TrainConfig, Validation, distillation_loss, train
from rsd_policy.training.mini.validate import accuracy, predict
from rsd_policy.training.team import Team
from sim_bridge.demonstrations import Demonstration, SimulatorTrace, read_demonstrations, write_demonstration
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


def trace(demonstration: Demonstration) -> SimulatorTrace:
    frames, steps = len(demonstration.frame_steps), len(demonstration.actions)
    return SimulatorTrace(
        "libero_tabletop_manipulation", "put", "", np.ones((frames, 4)), np.ones((frames, 7)), np.ones((steps, 9))
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
    drawn = frames.rows(frames.draw(4000, torch.Generator().manual_seed(0)))
    last_of_short = frames.actions[-1, 0, 0]
    share = (drawn.actions[:, 0, 0] == last_of_short).double().mean().item()
    assert share == pytest.approx(0.75 / 4, abs=0.03)  # task 1 has 3/4 of the weight and 4 frames


def test_files_are_read_back_and_split_by_episode(tmp_path: Path) -> None:
    for seed in range(10):
        write_demonstration(tmp_path, episode(seed), trace(episode(seed)))
    training, held_out = load_demonstrations(tmp_path, held_out=0.2, image_size=32)
    assert len(training) + len(held_out) == 10 and 0 < len(held_out) < 6
    again = load_demonstrations(tmp_path, held_out=0.2, image_size=32)[1]
    assert [e.seed for e in again] == [e.seed for e in held_out]
    assert np.array_equal(training[0].images, episode(training[0].seed).images)
    (tmp_path / "broken.hdf5").write_bytes(b"not a file")
    with pytest.raises(RSDError, match=r"broken\.hdf5"):
        load_demonstrations(tmp_path, held_out=0.2, image_size=32)


def test_files_of_128_and_of_256_px_are_resized_as_the_policys_input_is(tmp_path: Path) -> None:
    """LIBERO's files have 128 px, regenerated ones 256; in one folder they ended in numpy's broadcasting error."""
    for seed, size in enumerate((128, 256)):
        images = np.random.default_rng(seed).integers(0, 256, (10, 2, size, size, 3), dtype=np.uint8)
        demonstration = replace(episode(seed), images=images)
        write_demonstration(tmp_path, demonstration, trace(demonstration))
    read = {e.seed: e for part in load_demonstrations(tmp_path, held_out=0.5, image_size=128) for e in part}
    written = {e.seed: e for e in read_demonstrations(tmp_path)}
    assert np.array_equal(read[0].images, written[0].images)
    assert np.array_equal(read[1].images[3, 1], resize_frame(written[1].images[3, 1], 128))
    assert to_frames([*read.values()], WordTokenizer(WORDS), 8).images.shape == (20, 2, 128, 128, 3)


def test_the_provenance_does_not_call_other_projects_demonstrations_the_experts() -> None:
    """It said "scripted expert, canonical initial states held out" of whatever lay in the folder."""
    own, other = episode(0), replace(episode(1), collected=False)
    sources = [Corpus.of(Team(), part, "axis_angle").summary()["source"] for part in ([own], [other], [own, other])]
    assert sources == [COLLECTED, OTHERS, f"{COLLECTED} and {OTHERS}"]
    assert Corpus.of(Team(), [own, other], "axis_angle").summary()["episodes_of_others"] == 1


def test_the_parts_of_several_processes_hold_every_episode_once(tmp_path: Path) -> None:
    for seed in range(12):
        write_demonstration(tmp_path, episode(seed), trace(episode(seed)))
    parts = [sorted(e.seed for e in read_demonstrations(tmp_path, share=(i, 3))) for i in range(3)]
    assert sorted(seed for part in parts for seed in part) == list(range(12))
    assert all(parts), "each has some"
    assert sorted(e.seed for side in load_demonstrations(tmp_path, 0.2, 32, (1, 3)) for e in side) == parts[1]


def test_an_episode_stays_held_out_when_others_are_added() -> None:
    names = [f"libero_spatial {task} {seed}" for task in range(10) for seed in range(100)]
    few, many = held_out_rows(names[::7], 0.1), held_out_rows(names, 0.1)
    assert {names[::7][i] for i in few} == {names[i] for i in many} & set(names[::7])
    assert 0.06 < len(many) / len(names) < 0.14
    assert len(held_out_rows(names[:2], 1e-9)) == 1


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
        instruction=torch.arange(count) % 3,
        actions=chunk.expand(count, -1, -1).clone(),
        mask=torch.ones(count, 8, dtype=torch.bool),
        weight=torch.ones(count, dtype=torch.float64),
        wordings=torch.randint(1, 60, (3, 4, 32)),
    )


def test_frames_are_given_in_other_words_in_half_of_the_draws() -> None:
    frames = to_frames([episode(0), episode(2)], WordTokenizer(WORDS), 8)
    own = torch.tensor(WordTokenizer(WORDS)("pick up the bowl"))
    assert torch.equal(frames.words(), own.expand(20, -1))
    generator = torch.Generator().manual_seed(0)
    drawn = frames.rows(frames.draw(400, generator)).reworded(generator)
    share = (drawn == own).all(1).double().mean().item()
    assert 0.4 < share < 0.75  # half, and what other wordings repeat


def test_wordings_keep_what_is_moved_and_where_to() -> None:
    instruction = "pick up the black bowl on the stove and place it on the plate"
    texts = wordings(instruction, 200, seed=1)
    assert texts[0] == instruction and texts == wordings(instruction, 200, seed=1)
    assert len(set(texts)) > 50
    for text in texts:
        plain = text.replace("the ", "").replace("onto", "on")
        assert "bowl on stove" in plain and plain.endswith("on plate")


def test_loop_learns_resumes_and_predicts(tmp_path: Path) -> None:
    frames = constant_frames(32)
    log = TrainingLog(tmp_path / "log.jsonl")
    config = TrainConfig(
        steps=140, batch_size=16, learning_rate=3e-3, warmup_steps=5, ema_decay=0.9, checkpoint_every=140
    )
    state = tmp_path / "state.pt"
    policy = train(small_policy(choice="mode"), frames, frames, config, CPU, state, log.append)
    first, last = min(log.progress), max(log.progress)
    assert log.progress[last].loss < 0.5 * log.progress[first].loss
    resumed: list[Progress | Validation] = []
    longer = TrainConfig(steps=142, batch_size=16, learning_rate=3e-3, warmup_steps=5, ema_decay=0.9)
    train(small_policy(1, "mode"), frames, frames, longer, CPU, state, resumed.append)
    final = [r for r in resumed if isinstance(r, Progress)][-1]
    assert final.step == 142 and final.loss < 0.5 * log.progress[first].loss
    assert [r.step for r in resumed if isinstance(r, Validation)] == [142]
    figures = accuracy(predict(policy, frames, CPU), [0.1] * 6)
    assert figures["head_teacher_forced_per_level"][0] > 0.9
    assert figures["frames"] == 32
    again = TrainingLog(tmp_path / "log.jsonl")
    assert again.validations[140].figures == log.validations[140].figures
    assert again.validations[140].figures["draft_equals_head_per_level"][0] > 0.8
    assert [again.progress[s].loss for s in again.progress] == [log.progress[s].loss for s in log.progress]


def test_distillation_pulls_the_draft_to_the_main_heads_probabilities() -> None:
    main = torch.randn(8, 2, 8, 7, 3, generator=torch.Generator().manual_seed(0))
    weights = torch.ones(8)
    least = distillation_loss(main[:3].clone(), main, weights)
    other = distillation_loss(torch.zeros(3, 2, 8, 7, 3), main, weights)
    assert other > least
    probabilities = main[:3].softmax(-1)
    entropy = -(probabilities * probabilities.log()).sum(-1).mean(dim=(1, 2, 3)).sum()
    torch.testing.assert_close(least, entropy)


def test_a_digit_that_a_level_does_not_have_adds_nothing_to_the_distillation() -> None:
    """Its logit is -inf on both sides, and 0 times -inf would be no number."""
    main = torch.randn(8, 2, 8, 7, 3, generator=torch.Generator().manual_seed(0))
    draft = torch.randn(3, 2, 8, 7, 3, generator=torch.Generator().manual_seed(1))
    weights = torch.ones(8)
    padded = functional.pad(draft, (0, 6), value=float("-inf")).requires_grad_()
    loss = distillation_loss(padded, functional.pad(main, (0, 6), value=float("-inf")), weights)
    torch.testing.assert_close(loss, distillation_loss(draft, main, weights))
    loss.backward()
    assert padded.grad is not None and bool(torch.isfinite(padded.grad).all())


@pytest.mark.parametrize(("term", "share"), [("consistency", 0.5), ("codistillation", 0.7)])
def test_draft_and_main_head_are_drawn_together(tmp_path: Path, term: str, share: float) -> None:
    """On steps without a label nothing else does that."""
    frames = to_frames([episode(seed) for seed in range(4)], WordTokenizer(WORDS), horizon=8)
    frames = replace(frames, mask=frames.mask & (torch.arange(8) == 0))
    config = TrainConfig(
        steps=60,
        batch_size=16,
        learning_rate=3e-3,
        warmup_steps=5,
        ema_decay=0.9,
        distillation=0.0,
        codistillation=0.0,
        consistency=0.0,
    )

    def apart(weight: float) -> float:
        chosen, state = replace(config, **{term: weight}), tmp_path / f"{weight}.pt"  # type: ignore[arg-type]
        policy = train(small_policy(), frames, frames, chosen, CPU, state, lambda report: None)
        predictions = predict(policy, frames, CPU)
        return float(np.abs(predictions.draft_actions - predictions.main_actions)[:, 1:, :6].mean())

    assert apart(1.0) < share * apart(0.0)
