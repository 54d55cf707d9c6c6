"""LiberoEnv against LIBERO's own OffScreenRenderEnv: what was made faster must not have changed a bit."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rsd_policy.libero import WAIT_STEPS
from sim_bridge.libero_assets import import_libero, load_init_states, task_spec
from sim_bridge.libero_env import ARM_START_STD, CAMERAS, ROBOT_SENSORS, WAIT_ACTION, LiberoEnv

# the bowl starts in an open drawer: fixtures, drawer samplers and contacts are all at work
SUITE, TASK = "libero_spatial", 4
INIT_STATE = 7


def motion(steps: int) -> list[NDArray[np.float64]]:
    """Down into the scene and through it, with random turns and the gripper opening and closing."""
    random = np.random.default_rng(3)
    actions = []
    for step in range(steps):
        if step % 10 == 0:
            command = random.uniform(-1.0, 1.0, 7) * [1, 1, 1, 0.3, 0.3, 0.3, 1]
            command[2] = -0.8
        actions.append(command)
    return actions


def plain_episode(init_state: int | None, actions: list[NDArray[np.float64]], *, render: bool) -> list[dict[str, Any]]:
    """The published protocol with LIBERO's own classes; one record per observation, the first after the wait steps.

    Without `init_state`, the state of a plain reset with another start of the arm takes its place, laid over the
    fixtures of another plain reset.
    """
    envs = import_libero()
    spec = task_spec(SUITE, TASK)

    def fresh() -> Any:
        if render:
            return envs.OffScreenRenderEnv(bddl_file_name=str(spec.bddl_file), camera_heights=256, camera_widths=256)
        return envs.env_wrapper.ControlEnv(
            bddl_file_name=str(spec.bddl_file), has_offscreen_renderer=False, use_camera_obs=False
        )

    # Only the first reset of an environment is that of the published evaluations: later ones draw more numbers.
    env: Any = fresh()
    again: Any = fresh() if init_state is None else None
    before = np.random.get_state()
    env.seed(0)
    env.reset()
    if init_state is not None:
        state = load_init_states(spec)[init_state]
    else:
        state = env.get_sim_state()
        state[1:8] += np.random.normal(0.0, ARM_START_STD, 7)  # the time comes first, then the arm
        env.close()
        env = again
        env.reset()  # draws the fixtures anew
    np.random.set_state(before)
    env.set_init_state(state)
    for _ in range(WAIT_STEPS):
        observations, _, done, _ = env.step(list(WAIT_ACTION))
    records = []
    for action in [None, *actions]:
        if action is not None:
            observations, _, done, _ = env.step(action)
        record: dict[str, Any] = {name: np.array(observations[name]) for name in ROBOT_SENSORS}
        record |= physics(env.env.sim) | {"done": done}
        if render:
            record |= {name: observations[f"{camera}_image"][::-1, ::-1] for name, camera in CAMERAS.items()}
        records.append(record)
    env.close()
    return records


def physics(sim: Any) -> dict[str, Any]:
    return {
        "qpos": sim.data.qpos.copy(),
        "qvel": sim.data.qvel.copy(),
        "body_pos": sim.model.body_pos.copy(),
        "body_quat": sim.model.body_quat.copy(),
        "site_rgba": sim.model.site_rgba.copy(),
    }


def record_of(env: LiberoEnv, done: bool) -> dict[str, Any]:
    state = env.robot_state()
    sensors = (state.eef_position, state.eef_quaternion_xyzw, state.joint_positions, state.gripper_qpos)
    return dict(zip(ROBOT_SENSORS, sensors, strict=True)) | physics(env.sim) | {"done": done}


def assert_equal(step: int, expected: dict[str, Any], got: dict[str, Any]) -> None:
    different = [name for name in got if not np.array_equal(expected[name], got[name])]
    assert not different, f"step {step}: {different} differ from plain LIBERO"


@pytest.fixture(scope="module")
def used_env() -> Iterator[LiberoEnv]:
    """An environment that has run another episode: nothing of it may be left after a reset."""
    env = LiberoEnv(SUITE, TASK, render=False)
    env.reset(3)
    for action in motion(25):
        env.step(action, render=False)
    yield env
    env.close()


@pytest.mark.parametrize("init_state", [INIT_STATE, None])
def test_states_and_sensors_equal_plain_libero(used_env: LiberoEnv, init_state: int | None) -> None:
    """Soft reset, one physics pass per substep: joints, velocities, fixtures and sensors are those of robosuite."""
    actions = motion(60)
    plain = plain_episode(init_state, actions, render=False)
    used_env.reset(init_state)
    assert_equal(0, plain[0], record_of(used_env, False))
    contacts = []
    for step, action in enumerate(actions, start=1):
        done = used_env.step(action, render=False)
        assert_equal(step, plain[step], record_of(used_env, done))
        contacts.append(used_env.sim.data.ncon)
    assert len(set(contacts)) > 1, "expected the motion to touch something, otherwise little was compared"


def test_frames_rendered_on_demand_equal_plain_rendering() -> None:
    """Frames are those of an environment that renders every step: after reset, after 1, 2, 7 and 10 steps."""
    actions = motion(10)
    plain = plain_episode(INIT_STATE, actions, render=True)
    due = {0, 1, 2, 7, 10}
    with LiberoEnv(SUITE, TASK) as env:
        env.reset(3)
        env.step(actions[0], render=True)
        env.reset(INIT_STATE)
        seen = []
        for step, action in enumerate([None, *actions]):
            if action is not None:
                env.step(action, render=step in due)
            if step in due:
                images = env.observe().images
                assert_equal(step, plain[step], dict(images))
                seen.append(images["agentview"])
    assert all(not np.array_equal(one, other) for one, other in itertools.pairwise(seen))
