"""A LIBERO task as an environment with the protocol of published evaluations.

256x256 images of two cameras turned by 180 degrees, fixtures placed with a seed (0 in published evaluations), a
canonical initial state, 10 wait steps, then at most `max_steps` control steps at 20 Hz; the task's own predicate says
success.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rsd_policy.errors import ActionError, NonFiniteError, SetupError, SimulationError
from rsd_policy.libero import CONTROL_FREQUENCY, MAX_STEPS, WAIT_STEPS
from rsd_policy.observation import ACTION_DIM, Observation, pose_from_base, proprio_from_pose
from sim_bridge.libero_assets import TaskSpec, import_libero, load_init_states, task_spec
from sim_bridge.looks import vary_looks
from sim_bridge.opengl import INSTALL_GL, choose_renderer
from sim_bridge.render_on_demand import release_context, upright

WAIT_ACTION = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0)
"""No motion, gripper open."""

ARM_START_STD = 0.02
"""Standard deviation (rad) of each arm joint's start around robosuite's rest pose, in random placements.

robosuite's default `initialization_noise`; LIBERO's canonical states were made with it (0.019 to 0.022 in every joint,
over those of any suite). LIBERO's environments switch it off, so a reset of theirs always starts from the rest pose.
"""

CAMERAS = {"agentview": "agentview", "wrist": "robot0_eye_in_hand"}
"""Camera name of an Observation -> robosuite's camera name."""


ROBOT_SENSORS = ("robot0_eef_pos", "robot0_eef_quat", "robot0_joint_pos", "robot0_gripper_qpos")
"""robosuite's names of what a RobotState holds."""


@dataclass(frozen=True)
class RobotState:
    """Robot state as robosuite samples it for an observation.

    Attributes:
        eef_position: [3], gripper site in the simulator's world frame, m.
        eef_quaternion_xyzw: [4], orientation of the hand in the world frame, scalar last.
        joint_positions: [7], arm joints, rad.
        gripper_qpos: [2], finger joints, m.
        stamp: simulated seconds since the episode's first observation.
    """

    eef_position: NDArray[np.float64]
    eef_quaternion_xyzw: NDArray[np.float64]
    joint_positions: NDArray[np.float64]
    gripper_qpos: NDArray[np.float64]
    stamp: float


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """LIBERO draws from numpy's global generator; seed it and give it back as it was."""
    before = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before)


class LiberoEnv:
    """One task of a LIBERO suite. Call `reset` before anything else.

    Args:
        suite: one of `EVALUATED_SUITES`.
        task: index within the suite.
        image_size: height and width of both cameras, px; published evaluations use 256.
        render: create a renderer; without it `observe` is not available and everything is faster.

    Raises:
        SimulationError: unknown suite or task, or unusable image size.
        SetupError: LIBERO, its assets or an OpenGL back end are missing.
    """

    def __init__(self, suite: str, task: int, *, image_size: int = 256, render: bool = True) -> None:
        spec = task_spec(suite, task)
        self._open(spec, load_init_states(spec), MAX_STEPS[suite], image_size=image_size, render=render)

    def _open(
        self, spec: TaskSpec, init_states: NDArray[np.float64], max_steps: int, *, image_size: int, render: bool
    ) -> None:
        """Create the simulation of a task; `__init__` in all but name, for tasks of other origin as well."""
        if isinstance(image_size, bool) or not isinstance(image_size, int) or not 16 <= image_size <= 2048:
            raise SimulationError(f"image_size: expected an integer 16..2048 (px), got {image_size!r}")
        self.suite = spec.suite
        self.task = spec.task
        self.instruction = spec.instruction
        self.bddl_file = spec.bddl_file
        self.max_steps = max_steps
        self.control_dt = 1.0 / CONTROL_FREQUENCY
        self.image_size = image_size
        self.render = render
        self._init_states = init_states
        self._raw: Any = None
        self._observations: dict[str, Any] = {}
        self._steps: int | None = None
        self._frame_is_current = False
        envs = import_libero()
        if render and choose_renderer() == "disable":
            raise SetupError(f"rendering: expected EGL or OSMesa, found neither; {INSTALL_GL}")
        self._raw = _create(envs, str(spec.bddl_file), image_size, render)
        # PyOpenGL shuts EGL down when the interpreter exits: an environment left open must be closed before that
        self._at_exit = functools.partial(_close_left_open, weakref.ref(self))
        atexit.register(self._at_exit)

    @property
    def num_init_states(self) -> int:
        """Number of canonical initial states of this task."""
        return len(self._init_states)

    @property
    def raw(self) -> Any:
        """robosuite's environment, for code that works from privileged state."""
        if self._raw is None:
            raise SimulationError("environment: expected an open one, got a closed one; create a new LiberoEnv")
        return self._raw

    @property
    def sim(self) -> Any:
        """robosuite's MjSim. After `reset`, `step` and `set_privileged_state` its poses are those of its joints."""
        return self.raw.sim

    def reset(self, init_state: int | None, seed: int = 0, *, looks: bool = False) -> None:
        """Start an episode: place everything, wait 10 steps, render one frame.

        Args:
            init_state: canonical initial state 0 .. num_init_states - 1, or None for a random placement drawn from
                `seed`, as varied as the canonical states are: see `_randomize`.
            seed: draws the fixtures' places (and, for a random placement, everything else's); published evaluations: 0.
            looks: also draw colours, light and cameras, for this episode (see sim_bridge/looks.py).

        Raises:
            SimulationError: no such initial state or seed; the episode that was running goes on.
        """
        raw = self.raw
        if init_state is not None and (
            isinstance(init_state, bool)
            or not isinstance(init_state, (int, np.integer))
            or not 0 <= init_state < self.num_init_states
        ):
            raise SimulationError(
                f"init_state of {self.suite} task {self.task}: expected an integer 0..{self.num_init_states - 1}, "
                f"or None for a random placement, got {init_state!r}"
            )
        if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**32:
            raise SimulationError(f"seed: expected an integer 0..2^32-1, got {seed!r}")
        self._steps = None
        raw.render_due = False
        with _seeded(int(seed)):
            raw.place()
            state = self._randomize() if init_state is None else self._init_states[init_state]
        if looks:
            vary_looks(raw.sim.model, np.random.default_rng([int(seed), 5]))
        raw.sim.set_state_from_flattened(state)
        raw.sim.forward()
        raw._check_success()
        raw._post_process()
        raw._update_observables(force=True)
        wait = np.array(WAIT_ACTION)
        for step in range(WAIT_STEPS):
            self._advance(wait, render=self.render and step == WAIT_STEPS - 1)
        self._steps = 0

    def _randomize(self) -> NDArray[np.float64]:
        """Vary a fresh placement in the two ways in which published episodes differ from a plain reset of LIBERO.

        The arm does not start from the rest pose, which stays the controller's own. And fixtures are drawn again: a
        canonical state holds objects only and is laid over fixtures drawn without it, so that what stands in a drawer
        or on a stove is not at its usual place there.

        Returns:
            MuJoCo's state for `set_state_from_flattened`.
        """
        raw = self.raw
        state: NDArray[np.float64] = raw.sim.get_state().flatten()
        joints = 1 + np.asarray(raw.robots[0]._ref_joint_pos_indexes)  # after the time
        state[joints] += np.random.normal(0.0, ARM_START_STD, len(joints))
        raw.place()
        return state

    def step(self, action: ArrayLike, *, render: bool) -> bool:
        """Run one control step (1/20 s).

        Args:
            action: [7], OSC_POSE deltas and gripper in [-1, 1]; +-1 is 0.05 m and 0.5 rad; gripper -1 opens, +1 closes.
            render: the frame after this step will be read. Has no effect on an environment without a renderer.

        Returns:
            True when the task's goal is fulfilled.

        Raises:
            ActionError: wrong shape or range (NonFiniteError for NaN or infinity); nothing was executed.
            SimulationError: no episode is running, or its physics became unstable, which ends it.
        """
        steps = self._require_episode()
        values = _checked_action(action)
        self._steps = None
        done = self._advance(values, render=render and self.render)
        self._steps = steps + 1
        return done

    def _advance(self, action: NDArray[np.float64], *, render: bool) -> bool:
        raw = self.raw
        raw.render_due = render
        self._observations, _, done, _ = raw.step(action)
        self._frame_is_current = render
        return bool(done)

    def _require_episode(self) -> int:
        if self._raw is None:
            raise SimulationError("environment: expected an open one, got a closed one; create a new LiberoEnv")
        if self._steps is None:
            raise SimulationError("episode: expected a running one, got none; call reset first")
        return self._steps

    def observe(self) -> Observation:
        """What the policy reads after the last step.

        Raises:
            SimulationError: that step was not rendered, or no episode is running.
        """
        self._require_episode()
        if not self._frame_is_current:
            raise SimulationError(
                "frame: expected the last step to be rendered, it was not; "
                "create the environment with render=True and call step(action, render=True)"
            )
        state = self.robot_state()
        said = (state.eef_position, state.eef_quaternion_xyzw, state.gripper_qpos)
        return Observation(
            images={name: upright(self._observations, camera) for name, camera in CAMERAS.items()},
            proprio=proprio_from_pose(*said),
            instruction=self.instruction,
            stamp=state.stamp,
            pose=pose_from_base(*said, self.base_position),
        )

    @property
    def base_position(self) -> NDArray[np.float64]:
        """[3], place of the robot's base in the simulator's world frame, m; it differs between LIBERO's scenes."""
        root = self.sim.model.body_name2id(self.raw.robots[0].robot_model.root_body)
        return np.array(self.sim.data.body_xpos[root])

    def robot_state(self) -> RobotState:
        """State of the robot after the last step; never needs rendering."""
        steps = self._require_episode()
        position, quaternion, joints, gripper = (
            np.array(self._observations[name], dtype=np.float64) for name in ROBOT_SENSORS
        )
        return RobotState(position, quaternion, joints, gripper, stamp=steps * self.control_dt)

    def privileged_state(self) -> NDArray[np.float64]:
        """Everything that places the bodies: time, joint positions and velocities, then position [3] and quaternion [4]
        (wxyz) of each fixture, in the order of their names. Fixtures are placed at reset, outside MuJoCo's state."""
        self._require_episode()
        bodies = self._fixture_bodies()
        model = self.sim.model
        return np.concatenate(
            [self.sim.get_state().flatten(), model.body_pos[bodies].ravel(), model.body_quat[bodies].ravel()]
        )

    def set_privileged_state(self, state: ArrayLike) -> None:
        """Put the bodies where another environment of the same task has them (see `privileged_state`).

        `sim` and `robot_state` then show that state; frames do not.

        Raises:
            SimulationError: the state has another length or is not finite; nothing changed.
        """
        raw, sim, bodies = self.raw, self.sim, self._fixture_bodies()
        values = np.asarray(state, dtype=np.float64)
        split = 1 + sim.model.nq + sim.model.nv
        expected = split + 7 * len(bodies)
        if values.shape != (expected,) or not np.all(np.isfinite(values)):
            raise SimulationError(
                f"privileged state of {self.suite} task {self.task}: expected {expected} finite numbers, "
                f"got shape {list(values.shape)}; take it from an environment of the same task"
            )
        positions, quaternions = np.split(values[split:], [3 * len(bodies)])
        sim.model.body_pos[bodies] = positions.reshape(-1, 3)
        sim.model.body_quat[bodies] = quaternions.reshape(-1, 4)
        sim.set_state_from_flattened(values[:split])
        sim.forward()
        # read the sensors directly: an update of the observables would shift robosuite's sampling clock
        self._observations = {name: raw._observables[name]._sensor({}) for name in ROBOT_SENSORS}
        self._frame_is_current = False
        self._steps = self._steps or 0

    def _fixture_bodies(self) -> list[int]:
        raw = self.raw
        # tables and floors are part of the arena: they have no body of their own and never move
        return [raw.obj_body_id[name] for name in sorted(raw.fixtures_dict)]

    def close(self) -> None:
        """Free the simulation and its OpenGL context; can be called twice."""
        if self._raw is None:
            return
        atexit.unregister(self._at_exit)
        raw, self._raw = self._raw, None
        self._steps = None
        self._observations = {}
        raw.close()
        del raw
        gc.collect()

    def __enter__(self) -> LiberoEnv:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _close_left_open(environment: weakref.ref[LiberoEnv]) -> None:
    left_open = environment()
    if left_open is not None:
        left_open.close()


def _create(envs: Any, bddl_file: str, image_size: int, render: bool) -> Any:
    """The environment that LIBERO's OffScreenRenderEnv would wrap, rendering on demand."""
    from libero.libero.envs import bddl_utils
    from robosuite import load_controller_config

    # imports mujoco, which must come after the choice of an OpenGL back end
    from sim_bridge.libero_sim import simulation_class

    problem = envs.TASK_MAPPING[bddl_utils.get_problem_info(bddl_file)["problem_name"]]
    with _seeded(0):
        simulation = simulation_class(problem)(
            bddl_file,
            robots=["Panda"],
            controller_configs=load_controller_config(default_controller="OSC_POSE"),
            gripper_types="default",
            initialization_noise=None,
            use_camera_obs=render,
            has_renderer=False,
            has_offscreen_renderer=render,
            control_freq=CONTROL_FREQUENCY,
            # success ends an episode, and max_steps: robosuite's own horizon of 1000 steps would refuse longer retries
            ignore_done=True,
            camera_names=list(CAMERAS.values()),
            camera_heights=image_size,
            camera_widths=image_size,
        )
    if render:
        release_context()
    return simulation


def _checked_action(action: ArrayLike) -> NDArray[np.float64]:
    try:
        values = np.asarray(action, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ActionError(f"action: expected {ACTION_DIM} numbers, got {action!r}") from error
    if values.shape != (ACTION_DIM,):
        raise ActionError(f"action: expected shape [{ACTION_DIM}], got {list(values.shape)}")
    if not np.all(np.isfinite(values)):
        raise NonFiniteError(f"action: expected finite numbers, got {values.tolist()}")
    if np.any(np.abs(values) > 1.0):
        raise ActionError(f"action: expected values in [-1, 1], got {values.tolist()}; clip before sending")
    return values
