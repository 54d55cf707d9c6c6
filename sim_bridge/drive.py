"""Drive one episode with the expert, disturbed on purpose, and record what a policy sees and should do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rsd_policy.backbones.mini import resize_frame
from sim_bridge.demonstrations import Demonstration
from sim_bridge.expert import ScriptedExpert
from sim_bridge.libero_env import LiberoEnv

CAMERAS = ("agentview", "wrist")

BURST_STEPS = (2, 7)
"""Shortest and longest burst of disturbed control steps."""

BURST_AMPLITUDE = (0.2, 0.9)
"""Largest translation command of a burst, of the full scale of 0.05 m; the rotation gets a third of it."""

EXPERT_ATTEMPTS = 3
"""Grasps per demonstration: a disturbed grasp that missed is worth showing how to repeat."""

Prefix = Callable[[LiberoEnv], bool]
"""Steps the environment before the expert takes over; True when the task was already solved. Its last step must be
rendered."""


class NoiseBursts:
    """Adds bursts of noise to an arm's commands.

    Args:
        rng: source of randomness.
        rate: probability per control step that a burst begins.
    """

    def __init__(self, rng: np.random.Generator, rate: float) -> None:
        self._rng = rng
        self._rate = rate
        self._left = 0
        self._drift = np.zeros(6)

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
        self._left -= 1
        executed = action.copy()
        jitter = self._rng.normal(0.0, 0.1, 6) * np.repeat([1.0, 1 / 3], 3)
        executed[:6] = np.clip(executed[:6] + self._drift + jitter, -1.0, 1.0)
        return executed, bool(np.any(executed != action))


@dataclass(frozen=True)
class Driven:
    """Outcome of one attempt.

    Attributes:
        success: the task's predicate was fulfilled.
        steps: control steps after the prefix.
        phase: the expert's last phase.
        demonstration: the recording, None without success or when the prefix solved the task.
    """

    success: bool
    steps: int
    phase: str
    demonstration: Demonstration | None


def drive(
    env: LiberoEnv,
    seed: int,
    *,
    noise: float,
    image_size: int,
    every: int,
    prefix: Prefix | None = None,
) -> Driven:
    """Place everything at random from `seed` and let the expert solve the task.

    Args:
        env: with a renderer.
        seed: of the placement and of the disturbances.
        noise: probability per control step that a burst of noise begins. Labels stay those of the expert.
        image_size: frames are stored at this size, px, resized as the policy does it.
        every: a frame is stored before every such step.
        prefix: something else drives first (DAgger); its steps are not recorded.
    """
    env.reset(None, seed=seed)
    if prefix is not None and prefix(env):
        return Driven(True, 0, "prefix", None)
    expert = ScriptedExpert(env, max_attempts=EXPERT_ATTEMPTS)
    expert.reset()
    bursts = NoiseBursts(np.random.default_rng(seed), noise)
    frames: list[NDArray[np.uint8]] = []
    states: list[NDArray[np.float32]] = []
    frame_steps: list[int] = []
    actions: list[NDArray[np.float32]] = []
    executed: list[NDArray[np.float32]] = []
    noisy: list[bool] = []
    success = False
    while not success and not expert.failed and len(actions) < env.max_steps:
        step = len(actions)
        if step % every == 0:
            observation = env.observe()
            frames.append(np.stack([resize_frame(observation.images[camera], image_size) for camera in CAMERAS]))
            states.append(observation.proprio)
            frame_steps.append(step)
        label = expert.act()
        # a hand pushed while the fingers close misses: that would only show how to fail
        command, is_noisy = bursts.apply(label, allowed=expert.phase in ("approach", "carry"))
        success = env.step(command, render=(step + 1) % every == 0)
        actions.append(label)
        executed.append(command)
        noisy.append(is_noisy)
    if not success:
        return Driven(False, len(actions), expert.phase, None)
    demonstration = Demonstration(
        suite=env.suite,
        task=env.task,
        seed=seed,
        instruction=env.instruction,
        images=np.stack(frames),
        frame_steps=np.array(frame_steps, dtype=np.int64),
        proprio=np.stack(states),
        actions=np.stack(actions),
        executed=np.stack(executed),
        noisy=np.array(noisy),
    )
    return Driven(True, len(actions), expert.phase, demonstration)
