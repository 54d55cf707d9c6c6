"""rsd collect: writes what training reads, never redoes a seed, labels are the expert's own."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from rsd_policy.commands.collect import main
from sim_bridge.demonstrations import read_demonstrations
from sim_bridge.drive import BURST_STEPS, NoiseBursts
from sim_bridge.libero_assets import load_init_states, task_spec
from sim_bridge.libero_env import LiberoEnv


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    out = tmp_path_factory.mktemp("demos")
    arguments = ["--tasks", "2", "--demos", "1", "--workers", "1", "--seed", "1000", "--noise", "0.05"]
    arguments += ["--every", "8", "--out", str(out)]
    assert main(arguments) == 0
    return arguments, out


def test_demonstration_is_complete_and_its_labels_are_clean(collected: tuple[list[str], Path]) -> None:
    (demonstration,) = read_demonstrations(collected[1])
    d = demonstration
    steps = len(d.actions)
    assert (d.suite, d.task, d.seed) == ("libero_spatial", 2, 1000)
    assert d.instruction == "pick up the black bowl from table center and place it on the plate"
    assert d.frame_steps.tolist() == list(range(0, steps, 8))
    assert d.images.shape == (len(d.frame_steps), 2, 128, 128, 3) and d.images.dtype == np.uint8
    assert d.images.std(axis=(1, 2, 3, 4)).min() > 10, "a frame is blank"
    assert not np.array_equal(d.images[0], d.images[-1])
    assert d.proprio.shape == (len(d.frame_steps), 8)
    assert d.actions.shape == d.executed.shape == (steps, 7) and np.abs(d.executed).max() <= 1.0
    differs = np.any(d.actions != d.executed, axis=1)
    assert np.array_equal(differs, d.noisy)
    assert differs.any(), "the noise asked for was never applied"
    assert set(np.unique(d.actions[:, 6])) <= {-1.0, 1.0}


def largest_offset(qpos: np.ndarray, canonical: np.ndarray, env: LiberoEnv) -> float:
    """How far (m) the worst placed object is from its place in the most similar canonical state."""
    columns = []
    for thing in env.raw.objects_dict.values():
        start = env.sim.model.get_joint_qpos_addr(thing.joints[0])[0]
        columns += [start, start + 1]
    return float(np.abs(canonical[:, 1:][:, columns] - qpos[columns]).max(axis=1).min())


@pytest.mark.parametrize(("suite", "task"), [("libero_spatial", 2), ("libero_object", 0), ("libero_goal", 1)])
def test_training_placements_are_none_of_the_canonical_ones(suite: str, task: int) -> None:
    """2 mm in the worst placed object: the canonical states were drawn from the same distribution."""
    canonical = load_init_states(task_spec(suite, task))
    with LiberoEnv(suite, task, render=False) as env:
        env.reset(0)
        assert largest_offset(env.sim.data.qpos, canonical, env) < 1e-3, "the measure does not find a canonical state"
        for seed in [*range(1000, 1015), *range(200000, 200005)]:
            env.reset(None, seed=seed)
            assert largest_offset(env.sim.data.qpos, canonical, env) > 2e-3, f"seed {seed}"


def test_a_recorded_episode_starts_at_the_placement_of_its_seed(collected: tuple[list[str], Path]) -> None:
    (path,) = collected[1].rglob("*.hdf5")
    with h5py.File(path) as file:
        recorded = file["data/demo_0/states"][0]
    with LiberoEnv("libero_spatial", 2, render=False) as env:
        env.reset(None, seed=1000)
        assert np.array_equal(env.sim.get_state().flatten(), recorded)


def test_finished_seeds_are_not_redone(collected: tuple[list[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    arguments, out = collected
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    assert main(arguments) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("arguments", [["--tasks", "10"], ["--tasks", "a-b"], ["--demos", "0"], ["--noise", "2"]])
def test_wrong_arguments_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    assert "expected" in capsys.readouterr().err


def test_bursts_have_the_stated_length_and_seldom_turn_the_gripper_round() -> None:
    bursts = NoiseBursts(np.random.default_rng(0), rate=0.05)
    label = np.array([0.5, 0, 0, 0, 0, 0, 1], dtype=np.float32)
    flags, flipped = [], []
    for _ in range(4000):
        executed, noisy = bursts.apply(label, allowed=True)
        assert noisy == bool(np.any(executed != label)) and np.abs(executed).max() <= 1.0
        flags.append(noisy)
        flipped.append(noisy and executed[6] == -1)
        assert executed[6] in (1, -1)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags, [0]])))
    lengths = edges[1::2] - edges[::2]
    # two bursts may follow each other without a clean step between them
    assert lengths.min() >= BURST_STEPS[0] and np.median(lengths) <= BURST_STEPS[1]
    assert 0.03 < np.sum(flipped) / np.sum(flags) < 0.2
    assert not bursts.apply(label, allowed=False)[1]


@pytest.mark.parametrize(
    "arguments", [["--task-suite", "libero_spatial_swap"], ["--task-suite", "libero_10", "--compose"]]
)
def test_perturbed_suites_and_two_kinds_of_tasks_at_once_are_refused(arguments: list[str]) -> None:
    """LIBERO-PRO's suites are evaluated by their names; demonstrations of them must not come about by the same name."""
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
