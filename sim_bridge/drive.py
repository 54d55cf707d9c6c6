"""Drive one episode, disturbed on purpose, and record what a policy sees and what the expert would do there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rsd_policy.images import resize_frame
from sim_bridge.demonstrations import Demonstration, SimulatorTrace
from sim_bridge.expert import ScriptedExpert
from sim_bridge.libero_env import LiberoEnv

CAMERAS = ("agentview", "wrist")

BURST_STEPS = (2, 7)
"""Shortest and longest burst of disturbed control steps."""

BURST_AMPLITUDE = (0.2, 0.9)
"""Largest translation command of a burst, of the full scale of 0.05 m; the rotation gets a third of it."""

GRIPPER_FLIPS = 0.1
"""Share of the bursts that also turn the gripper's command round: a dropped object, or fingers that close too early."""

EXPERT_ATTEMPTS = 4
"""Grasps per demonstration: a disturbed grasp that missed is worth showing how to repeat."""


class Pilot(Protocol):
    """Something else that drives part of an episode, a chunk at a time; the expert only says what it would do (DAgger).

    Attributes:
        chunk_steps: control steps per chunk.
        last_step: from this control step on the expert drives alone.
        name: of its checkpoint.
    """

    name: str
    chunk_steps: int
    last_step: int

    def chunk(self, env: LiberoEnv) -> NDArray[np.float32] | None:
        """[chunk_steps, 7] to execute from the environment's present frame, or None to leave a chunk to the expert."""
        ...


class NoiseBursts:
    """Adds bursts of noise to an arm's commands; some turn the gripper's command round.

    Args:
        rng: source of randomness.
        rate: probability per control step that a burst begins.
    """

    def __init__(self, rng: np.random.Generator, rate: float) -> None:
        self._rng = rng
        self._rate = rate
        self._left = 0
        self._drift = np.zeros(6)
        self._flip = False

    def apply(self, action: NDArray[np.float32], *, allowed: bool) -> tuple[NDArray[np.float32], bool]:
        """[7] -> what to execute [7], and whether it differs. Without `allowed` a burst ends."""
        if not allowed:
            self._left = 0
            return action, False
        if self._left == 0:
            if self._rng.random() >= self._rate:
                return action, False
            self._left = int(self._rng.integers(BURST_STEPS[0], BURST_STEPS[1] + 1))
            amplitude = self._rng.uniform(*BURST_AMPLITUDE)
            self._drift = amplitude * self._rng.uniform(-1.0, 1.0, 6) * np.repeat([1.0, 1 / 3], 3)
            self._flip = bool(self._rng.random() < GRIPPER_FLIPS)
        self._left -= 1
        executed = action.copy()
        jitter = self._rng.normal(0.0, 0.1, 6) * np.repeat([1.0, 1 / 3], 3)
        executed[:6] = np.clip(executed[:6] + self._drift + jitter, -1.0, 1.0)
        if self._flip:
            executed[6] = -executed[6]
        return executed, bool(np.any(executed != action))


@dataclass(frozen=True)
class Driven:
    """Outcome of one attempt.

    Attributes:
        success: the task's predicate was fulfilled.
        steps: control steps.
        phase: the expert's last phase.
        demonstration, trace: the recording, None without success.
    """

    success: bool
    steps: int
    phase: str
    demonstration: Demonstration | None
    trace: SimulatorTrace | None


class _Recording:
    """What becomes a demonstration."""

    def __init__(self, image_size: int) -> None:
        self._image_size = image_size
        self._images: list[NDArray[np.uint8]] = []
        self._proprio: list[NDArray[np.float32]] = []
        self._poses: list[NDArray[np.float32]] = []
        self._frame_steps: list[int] = []
        self._actions: list[NDArray[np.float32]] = []
        self._executed: list[NDArray[np.float32]] = []
        self._quaternions: list[NDArray[np.float64]] = []
        self._joints: list[NDArray[np.float64]] = []
        self._states: list[NDArray[np.float64]] = []

    def __len__(self) -> int:
        return len(self._actions)

    def frame(self, env: LiberoEnv) -> None:
        observation = env.observe()
        self._images.append(np.stack([resize_frame(observation.images[name], self._image_size) for name in CAMERAS]))
        self._proprio.append(observation.proprio)
        assert observation.pose is not None  # the simulation knows where the base is
        self._poses.append(observation.pose)
        self._frame_steps.append(len(self))
        robot = env.robot_state()
        self._quaternions.append(robot.eef_quaternion_xyzw)
        self._joints.append(robot.joint_positions)

    def step(self, env: LiberoEnv, label: NDArray[np.float32], command: NDArray[np.float32]) -> None:
        """Call it before the environment steps."""
        self._states.append(env.sim.get_state().flatten())
        self._actions.append(label)
        self._executed.append(command)

    def demonstration(self, env: LiberoEnv, seed: int, pilot: str) -> Demonstration:
        actions, executed = np.stack(self._actions), np.stack(self._executed)
        return Demonstration(
            suite=env.suite,
            task=env.task,
            seed=seed,
            instruction=env.instruction,
            images=np.stack(self._images),
            frame_steps=np.array(self._frame_steps, dtype=np.int64),
            proprio=np.stack(self._proprio),
            actions=actions,
            executed=executed,
            noisy=np.any(actions != executed, axis=1),
            pilot=pilot,
            pose=np.stack(self._poses),
        )

    def trace(self, env: LiberoEnv) -> SimulatorTrace:
        return SimulatorTrace(
            problem=type(env.raw).__name__.lower(),
            name=env.bddl_file.stem,
            definition=env.bddl_file.read_text(encoding="utf-8"),
            quaternions=np.stack(self._quaternions),
            joints=np.stack(self._joints),
            states=np.stack(self._states),
        )


def drive(
    env: LiberoEnv,
    seed: int,
    *,
    noise: float,
    image_size: int,
    every: int,
    pilot: Pilot | None = None,
    looks: bool = False,
) -> Driven:
    """Place everything at random from `seed` and let the expert solve the task.

    Every control step is labelled with the expert's own action for the state at hand, whoever drives.

    Args:
        env: with a renderer.
        seed: of the placement and of the disturbances.
        noise: probability per control step that a burst of noise begins, where the expert drives.
        image_size: frames are stored at this size, px, resized as the policy does it.
        every: a frame is stored before every such step.
        pilot: drives some chunks of the first part; the expert then has the task's whole step limit.
        looks: colours, light and cameras are drawn from `seed` as well.
    """
    env.reset(None, seed=seed, looks=looks)
    expert = ScriptedExpert(env, max_attempts=EXPERT_ATTEMPTS)
    expert.reset()
    bursts = NoiseBursts(np.random.default_rng(seed), noise)
    recording = _Recording(image_size)
    piloted_steps = 0 if pilot is None else pilot.last_step
    chunk: NDArray[np.float32] | None = None
    success = False
    while not success and not expert.failed and len(recording) < piloted_steps + env.max_steps:
        step = len(recording)
        if step % every == 0:
            recording.frame(env)
        if pilot is not None and step % pilot.chunk_steps == 0 and step <= piloted_steps:
            chunk = pilot.chunk(env) if step < piloted_steps else None
            # labels of a chunk then follow from the state at its start, and the expert's misses were not its own
            expert.reset()
        label = expert.act()
        if pilot is not None and chunk is not None:
            command = chunk[step % pilot.chunk_steps]
        else:
            command, _ = bursts.apply(label, allowed=expert.phase != "release")
        following = step + 1
        due = following % every == 0 or (pilot is not None and following % pilot.chunk_steps == 0)
        recording.step(env, label, command)
        success = env.step(command, render=due)
    if not success:
        return Driven(False, len(recording), expert.phase, None, None)
    demonstration = recording.demonstration(env, seed, "" if pilot is None else pilot.name)
    return Driven(True, len(recording), expert.phase, demonstration, recording.trace(env))
