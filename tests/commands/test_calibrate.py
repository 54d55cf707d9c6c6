"""rsd calibrate: what is recorded is what the engine would see, and what is written is a gate that the engine takes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rsd_policy import Observation, RSDInferenceEngine, load_policy
from rsd_policy.checkpoints.loading import save_policy
from rsd_policy.commands.calibrate import calibrate, load_rollouts, main
from rsd_policy.engine.gate import Gate
from rsd_policy.errors import RSDError
from rsd_policy.training.gate.fit import split, to_chunks, to_rows
from rsd_policy.training.gate.plot import plot_calibration
from rsd_policy.training.gate.rollouts import Place, Rollout, fingerprint, look, roll_out
from sim_bridge.libero_assets import load_init_states, task_spec
from sim_bridge.libero_env import LiberoEnv
from tests.policies import random_observation, small_policy

TOLERANCE = np.full(6, 0.1, dtype=np.float32)


def rollout(task: int, seed: int, rng: np.random.Generator, chunks: int = 10) -> Rollout:
    """A recording for `small_policy` in which drafts deviate where their margins are small."""
    margins = rng.exponential(2.0, (chunks, 1, 1, 1)) * rng.uniform(0.5, 1.5, (chunks, 3, 8, 7))
    main_actions = rng.uniform(-0.5, 0.5, (chunks, 8, 7)).astype(np.float32)
    main_actions[..., 6] = 1.0
    draft_actions = main_actions.copy()
    deviates = rng.random(chunks) < np.exp(-2.0 * margins.mean(axis=(1, 2, 3)))
    draft_actions[deviates, 3:, 0] += 0.3
    last = np.ones((chunks, 7), np.float32)
    last[0] = 0.0
    return Rollout(
        place=Place("libero_spatial", task, seed),
        policy=fingerprint(small_policy()),
        execute_steps=8,
        success=True,
        hidden=rng.normal(size=(chunks, 8, 32)).astype(np.float16),
        margins=margins.astype(np.float32),
        draft_actions=draft_actions,
        main_actions=main_actions,
        last_action=last,
        first=np.arange(chunks) == 0,
        executed_draft=np.zeros(chunks, dtype=bool),
    )


@pytest.fixture(scope="module")
def rollouts() -> list[Rollout]:
    rng = np.random.default_rng(0)
    return [rollout(task, seed, rng) for task in range(10) for seed in range(16)]


def test_written_checkpoint_gates_and_its_manifest_tells_how(rollouts: list[Rollout], tmp_path: Path) -> None:
    policy = small_policy()
    policy.drop_gate()
    curve = calibrate(policy, rollouts, steps=8, alpha=0.1, seed=0)
    save_policy(tmp_path / "gated", policy)
    plot_calibration(curve, (0.1,), tmp_path / "calibration.png")
    loaded = load_policy(tmp_path / "gated")
    entry = loaded.manifest["gate"]
    assert entry["predictor"]["auc"] > 0.75
    assert [point["alpha"] for point in entry["thresholds"]] == [0.02, 0.05, 0.1, 0.2]
    point = entry["thresholds"][2]
    assert point["skip_rate"] > 0.2 and point["deviation_rate"] < point["bound"] <= 0.1
    assert entry["calibration"]["episodes"] == 160 and entry["calibration"]["calibrating_episodes"] == 80
    gate = RSDInferenceEngine(loaded, "gated").gate
    assert gate == Gate(point["threshold"], alpha=0.1, steps=8, start_gripper=-1.0)
    assert (tmp_path / "calibration.png").stat().st_size > 10_000


def test_engine_gates_by_the_score_that_was_calibrated() -> None:
    policy = small_policy()
    observation = random_observation(np.random.default_rng(3))
    row: dict[str, Any] = look(policy, observation)
    last = np.full(7, row["draft_actions"][0, 6], np.float32)
    stacked = {name: value[None] for name, value in row.items()}
    stacked |= {"last_action": last[None], "first": np.array([False])}
    recorded = replace(rollout(0, 0, np.random.default_rng(0), chunks=1), **stacked)
    assert policy.deviation is not None
    score = float(to_chunks(to_rows([recorded], TOLERANCE, 8), policy.deviation, 8).score[0])
    assert 0.0 < score < 1.0
    for offset, skipped in ((-1e-5, True), (1e-5, False)):
        gate = Gate(score + offset, alpha=1.0, steps=8, gripper_rule=False)
        engine = RSDInferenceEngine(policy, "gated", gate=gate)
        engine._last_action = last
        chunk = engine.infer(observation)
        assert chunk.skipped is skipped
        assert np.array_equal(chunk.actions, row["draft_actions" if skipped else "main_actions"])


def test_halves_share_no_episode_and_every_task_is_in_both(rollouts: list[Rollout]) -> None:
    train, stop, held = split(rollouts, seed=3)
    parts = [{(r.place.task, r.place.seed) for r in part} for part in (train, stop, held)]
    assert sum(map(len, parts)) == len(rollouts) == len(set.union(*parts))
    assert len(held) == 80 and len(stop) == 20
    assert {task for task, _ in parts[2]} == {task for task, _ in parts[0]} == set(range(10))
    assert parts[2] != {(r.place.task, r.place.seed) for r in split(rollouts, seed=4)[2]}
    with pytest.raises(RSDError, match="at least 6 episodes, got 5"):
        split(rollouts[:5], seed=0)


def test_too_few_episodes_give_no_threshold_and_gated_refuses(rollouts: list[Rollout]) -> None:
    policy = small_policy()
    calibrate(policy, rollouts[:20], steps=8, alpha=0.05, seed=0)
    assert all(point["threshold"] is None for point in policy.manifest["gate"]["thresholds"][:2])
    with pytest.raises(RSDError, match=r"no threshold keeps alpha = 0\.05"):
        RSDInferenceEngine(policy, "gated")


def test_recordings_of_another_policy_or_broken_ones_are_refused(tmp_path: Path) -> None:
    recorded = rollout(3, 9, np.random.default_rng(0))
    recorded.save(tmp_path)
    (back,) = load_rollouts(tmp_path, small_policy(), 8)
    for name, value in vars(recorded).items():
        assert np.array_equal(getattr(back, name), value), name
    with pytest.raises(RSDError, match="another --rollouts"):
        load_rollouts(tmp_path, small_policy(seed=1), 8)
    with pytest.raises(RSDError, match="4 executed"):
        load_rollouts(tmp_path, small_policy(), 4)
    recorded.place.path(tmp_path).write_bytes(b"PK no archive")
    with pytest.raises(RSDError, match="record it again"):
        load_rollouts(tmp_path, small_policy(), 8)


def test_fingerprint_ignores_the_gate_and_sees_a_weight() -> None:
    policy = small_policy()
    before = fingerprint(policy)
    policy.drop_gate()
    assert fingerprint(policy) == before
    policy.draft.position[0, 0] += 0.1
    assert fingerprint(policy) != before


def distance_to_canonical(env: LiberoEnv) -> float:
    """How far (m, in x or y) the worst placed object is from its place in the most similar canonical state."""
    canonical = load_init_states(task_spec(env.suite, env.task))[:, 1:]
    columns = []
    for thing in env.raw.objects_dict.values():
        start = env.sim.model.get_joint_qpos_addr(thing.joints[0])[0]
        columns += [start, start + 1]
    return float(np.abs(canonical[:, columns] - env.sim.data.qpos[columns]).max(axis=1).min())


def test_rollout_records_what_both_heads_say_where_their_chunks_lead() -> None:
    policy = load_policy("mini")
    with LiberoEnv("libero_spatial", 0) as env:
        env.reset(0)
        assert distance_to_canonical(env) < 1e-3, "the measure does not find a canonical state"
        env.max_steps = 18
        seen: list[Observation] = []
        observe = env.observe

        def recorded_observe() -> Observation:
            if not seen:
                assert distance_to_canonical(env) > 2e-3
            seen.append(observe())
            return seen[-1]

        env.observe = recorded_observe  # type: ignore[method-assign]
        episode = roll_out(env, policy, Place("libero_spatial", 0, 9_000_000), "digest", 8)
    assert len(seen) == len(episode.first) == 3 and not episode.success
    assert episode.first.tolist() == [True, False, False]
    speculative = RSDInferenceEngine(policy, "speculative")
    for i, observation in enumerate(seen):
        provisional, final = speculative.stream(observation)
        assert np.array_equal(provisional.actions, episode.draft_actions[i])
        assert np.array_equal(final.actions, episode.main_actions[i])
    executed = np.where(episode.executed_draft[:, None, None], episode.draft_actions, episode.main_actions)
    assert np.array_equal(episode.last_action[1:], executed[:-1, -1])
    assert not np.array_equal(seen[0].images["wrist"], seen[1].images["wrist"])
    assert torch.isfinite(torch.from_numpy(episode.hidden.astype(np.float32))).all()


def test_recording_is_done_by_workers_and_never_repeated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--tasks", "2", "--episodes", "1", "--workers", "2", "--rollouts", str(tmp_path), "--rollouts-only"]
    assert main(arguments) == 0
    (path,) = tmp_path.rglob("*.npz")
    assert path == Place("libero_spatial", 2, 9_000_000).path(tmp_path)
    written = path.stat().st_mtime_ns
    assert main(arguments) == 0
    assert path.stat().st_mtime_ns == written
    assert "1 rollouts" in capsys.readouterr().out
    (recorded,) = load_rollouts(tmp_path, load_policy("mini"), 8)
    assert len(recorded.first) >= 4  # chunks of eight steps: no task is solved sooner


def test_wrong_arguments_are_refused_before_anything_runs(tmp_path: Path) -> None:
    save_policy(tmp_path / "out", small_policy())
    with pytest.raises(RSDError, match="holds a checkpoint already"):
        main(["--out", str(tmp_path / "out")])
    common = ["--out", str(tmp_path / "new"), "--policy", str(tmp_path / "out"), "--rollouts", str(tmp_path)]
    with pytest.raises(RSDError, match=r"1 \.\. 8, got 9"):
        main([*common, "--execute-steps", "9"])
    with pytest.raises(RSDError, match="tasks 0-9"):
        main([*common, "--tasks", "8-12"])
    for wrong in (["--alpha", "1.5"], ["--episodes", "0"], ["--task-suite", "libero_moon"]):
        with pytest.raises(SystemExit):
            main([*common, *wrong])
