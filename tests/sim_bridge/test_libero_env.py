"""LiberoEnv: refusals leave the episode alone, episodes are reproducible, a mirror sees the same scene."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rsd_policy.errors import ActionError, NonFiniteError, SimulationError
from rsd_policy.libero import SUITES
from sim_bridge.demonstrations_libero import frame_lag
from sim_bridge.libero_assets import num_tasks, task_spec
from sim_bridge.libero_env import LiberoEnv

MOVE = np.array([0.3, -0.2, -0.4, 0.0, 0.1, 0.0, -1.0])


@pytest.fixture(scope="module")
def env() -> Iterator[LiberoEnv]:
    environment = LiberoEnv("libero_goal", 1, render=False)
    yield environment
    environment.close()


@pytest.mark.parametrize(
    ("suite", "task"),
    [("libero_spatail", 0), ("libero_spatial", 10), ("libero_spatial", -1), ("libero_90", 90), ("libero_goal", 1.0),
     ("libero_goal", True)],
)  # fmt: skip
def test_unknown_suite_or_task_is_refused(suite: str, task: Any) -> None:
    with pytest.raises(SimulationError, match="expected"):
        LiberoEnv(suite, task)


@pytest.mark.parametrize("size", [0, -256, 10_000, 256.0])
def test_unusable_image_size_is_refused(size: Any) -> None:
    with pytest.raises(SimulationError, match="image_size"):
        LiberoEnv("libero_spatial", 0, image_size=size)


@pytest.mark.parametrize(
    ("action", "error"),
    [
        (np.zeros(6), ActionError),
        (np.zeros((1, 7)), ActionError),
        ([0.0] * 6 + ["open"], ActionError),
        ([0.0, 0.0, 1.001, 0.0, 0.0, 0.0, -1.0], ActionError),
        ([0.0, np.nan, 0.0, 0.0, 0.0, 0.0, -1.0], NonFiniteError),
        ([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, np.inf], NonFiniteError),
    ],
)
def test_bad_action_is_refused_and_nothing_moves(env: LiberoEnv, action: Any, error: type[Exception]) -> None:
    env.reset(0)
    env.step(MOVE, render=False)
    before, stamp = env.privileged_state(), env.robot_state().stamp
    with pytest.raises(error):
        env.step(action, render=False)
    assert np.array_equal(env.privileged_state(), before)
    assert env.robot_state().stamp == stamp


@pytest.mark.parametrize(
    ("init_state", "seed"), [(50, 0), (-1, 0), (0.0, 0), (True, 0), (None, -1), (None, 2**32), (0, "0")]
)
def test_bad_reset_is_refused_and_the_episode_goes_on(env: LiberoEnv, init_state: Any, seed: Any) -> None:
    env.reset(0)
    env.step(MOVE, render=False)
    before = env.privileged_state()
    with pytest.raises(SimulationError, match="expected"):
        env.reset(init_state, seed)
    assert np.array_equal(env.privileged_state(), before)
    env.step(MOVE, render=False)
    assert env.robot_state().stamp == pytest.approx(0.1)


@pytest.mark.parametrize("state", [np.zeros(3), np.full(200, np.nan)])
def test_foreign_privileged_state_is_refused(env: LiberoEnv, state: Any) -> None:
    env.reset(0)
    before = env.privileged_state()
    with pytest.raises(SimulationError, match="privileged state"):
        env.set_privileged_state(state)
    assert np.array_equal(env.privileged_state(), before)


def test_a_frame_that_was_not_rendered_is_refused(env: LiberoEnv) -> None:
    env.reset(0)
    env.step(MOVE, render=True)  # no renderer: the request has no effect
    with pytest.raises(SimulationError, match="rendered"):
        env.observe()


def test_nothing_works_before_reset_or_after_close() -> None:
    env = LiberoEnv("libero_spatial", 0, render=False)
    with pytest.raises(SimulationError, match="reset"):
        env.step(MOVE, render=False)
    with pytest.raises(SimulationError, match="reset"):
        env.robot_state()
    env.close()
    env.close()
    with pytest.raises(SimulationError, match="closed"):
        env.reset(0)


def test_unstable_physics_ends_the_episode(env: LiberoEnv, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MuJoCo silently restarts from its defaults when values explode; that must not pass for a policy's failure."""
    monkeypatch.chdir(tmp_path)  # MuJoCo writes its warning to a file there
    env.reset(0)
    env.sim.data.qvel[:] = 1e11
    with pytest.raises(SimulationError, match="physics"):
        env.step(MOVE, render=False)
    with pytest.raises(SimulationError, match="reset"):
        env.step(MOVE, render=False)
    env.reset(0)
    assert env.step(MOVE, render=False) is False


def test_random_placements_follow_their_seed(env: LiberoEnv) -> None:
    """Same seed, same scene; another seed, another scene; never a canonical one; numpy's generator is left alone."""
    np.random.seed(5)
    expected_draw = np.random.RandomState(5).random_sample()
    env.reset(None, seed=11)
    first = env.privileged_state()
    env.step(MOVE, render=False)
    env.reset(None, seed=12)
    second = env.privileged_state()
    env.reset(None, seed=11)
    again = env.privileged_state()
    assert np.random.random_sample() == expected_draw
    assert np.array_equal(first, again)
    robot = 1 + 9  # time, 7 arm and 2 finger joints
    assert not np.allclose(first[robot:], second[robot:], atol=1e-3)
    for init_state in range(5):
        env.reset(init_state, seed=11)
        assert not np.allclose(first[robot:], env.privileged_state()[robot:], atol=1e-3)


def test_random_placements_start_the_arm_as_canonical_states_do(env: LiberoEnv) -> None:
    """A policy that has seen only one start of the arm gets lost from others: same mean and spread of every joint."""

    def starts(resets: list[tuple[int | None, int]]) -> np.ndarray:
        joints = []
        for init_state, seed in resets:
            env.reset(init_state, seed=seed)
            joints.append(env.robot_state().joint_positions)
        return np.stack(joints)

    canonical = starts([(i, 0) for i in range(30)])
    random = starts([(None, seed) for seed in range(30)])
    spread = canonical.std(axis=0)
    np.testing.assert_allclose(random.std(axis=0) / spread, 1.0, atol=0.4)
    np.testing.assert_array_less(np.abs(random.mean(axis=0) - canonical.mean(axis=0)), 0.6 * spread)


def test_random_placements_vary_what_stands_in_a_fixture_as_canonical_states_do() -> None:
    """A bowl in a drawer: canonical states are laid over fixtures that were drawn without them."""
    with LiberoEnv("libero_spatial", 4, render=False) as env:
        bowl, cabinet = (env.raw.obj_body_id[name] for name in ("akita_black_bowl_1", "wooden_cabinet_1"))

        def spread(resets: list[tuple[int | None, int]]) -> np.ndarray:
            places = []
            for init_state, seed in resets:
                env.reset(init_state, seed=seed)
                places.append(env.sim.data.body_xpos[bowl] - env.sim.data.body_xpos[cabinet])
            return np.std(places, axis=0)[:2]

        canonical = spread([(i, 0) for i in range(30)])
        random = spread([(None, seed) for seed in range(30)])
    assert np.all(random > 0.8 * canonical) and np.all(random < 1.7 * canonical), f"{random} m, {canonical} m"


def test_seed_of_a_canonical_episode_places_the_fixtures(env: LiberoEnv) -> None:
    env.reset(4, seed=0)
    published = env.privileged_state()
    env.reset(4, seed=1)
    other = env.privileged_state()
    fixtures = 7 * len(env.raw.fixtures_dict)
    assert not np.array_equal(published[-fixtures:], other[-fixtures:])
    env.reset(4)
    assert np.array_equal(env.privileged_state(), published)


def test_what_a_row_of_demonstrations_means_is_told_from_the_simulators_own_motion(env: LiberoEnv) -> None:
    """Observations stored with the action they led to (OpenVLA-OFT), and with the action they came from (LIBERO)."""
    env.reset(1)
    states, before, after = [], [], []
    for action in np.random.default_rng(0).uniform(-0.5, 0.5, (30, 7)):
        states.append(env.sim.get_state().flatten())
        before.append(env.robot_state().joint_positions)
        env.step(action, render=False)
        after.append(env.robot_state().joint_positions)
    assert frame_lag([(np.array(states), np.array(before))]) == 0
    assert frame_lag([(np.array(states), np.array(after))]) == 1


def test_a_mirror_sees_every_body_where_it_is(env: LiberoEnv) -> None:
    """The expert plans in a second environment: bodies, sites and fixtures must be exactly where the first has them."""
    env.reset(None, seed=21)
    with LiberoEnv("libero_goal", 1, render=False) as mirror:
        mirror.set_privileged_state(env.privileged_state())  # works without an episode of its own
        for step in range(12):
            env.step(MOVE * (-1) ** (step // 6), render=False)
            mirror.set_privileged_state(env.privileged_state())
            for name in ("xpos", "xquat", "site_xpos", "geom_xpos"):
                assert np.array_equal(getattr(mirror.sim.data, name), getattr(env.sim.data, name)), name
            assert np.array_equal(mirror.privileged_state(), env.privileged_state())
        hand = mirror.sim.data.site_xpos[mirror.raw.robots[0].eef_site_id]
        assert np.array_equal(mirror.robot_state().eef_position, hand)


def test_two_environments_in_two_threads_render_the_same_episode() -> None:
    """Same start, same actions: same frames and states, even with both drawing in one process from two threads."""
    records: dict[int, list[Any]] = {0: [], 1: []}
    environments = [LiberoEnv("libero_object", 2, image_size=128) for _ in records]

    def drive(index: int) -> None:
        env = environments[index]
        env.reset(9)
        records[index].append((env.observe(), env.privileged_state()))
        for step in range(6):
            env.step(MOVE, render=step % 3 == 2)
            if step % 3 == 2:
                records[index].append((env.observe(), env.privileged_state()))

    threads = [threading.Thread(target=drive, args=(index,)) for index in records]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for environment in environments:
        environment.close()
    assert len(records[0]) == len(records[1]) == 3
    for (one, one_state), (other, other_state) in zip(*records.values(), strict=True):
        for camera in ("agentview", "wrist"):
            assert one.images[camera].std() > 10, "expected a picture, got an empty frame"
            assert np.array_equal(one.images[camera], other.images[camera])
        assert np.array_equal(one.proprio, other.proprio)
        assert np.array_equal(one_state, other_state)
        assert one.stamp == other.stamp


def test_close_frees_the_renderer() -> None:
    """Environments opened one after another need no more memory than two (measured in a process of its own)."""
    code = """
import resource
from sim_bridge.libero_env import LiberoEnv
for count in range(1, 6):
    env = LiberoEnv("libero_object", 0, image_size=64)
    env.reset(0)
    env.close()
    if count == 2:
        two = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - two) // 1024)
"""
    grown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(grown.stdout) < 150, f"expected less than 150 MiB more, got {grown.stdout.strip()} MiB"


def test_instructions_are_libero_s_own() -> None:
    """`task.language` of every task of every suite, as LIBERO derives it."""
    from sim_bridge.libero_assets import import_libero

    import_libero()
    from libero.libero import benchmark

    for suite in SUITES:
        for task in range(num_tasks(suite)):
            spec = task_spec(suite, task)
            assert spec.instruction == benchmark.grab_language_from_filename(f"{spec.name}.bddl")
            assert spec.bddl_file.is_file()
