"""One closed-loop episode in process, in the same order of events as the ROS graph in lockstep."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from rsd_policy.control.chunk_executor import ChunkExecutor
from rsd_policy.evaluation.in_process.drivers import Driver
from rsd_policy.evaluation.protocol import EpisodeSpec
from rsd_policy.evaluation.results import FAILURE, SUCCESS, ChunkRecord, EpisodeResult
from rsd_policy.observation import ACTION_DIM
from rsd_policy.settings import EXECUTE_STEPS, LIMIT
from sim_bridge.libero_env import LiberoEnv

StepCallback = Callable[[int, "float | None"], None]
"""Called after each control step: steps done, and the ms of the inference before it (None when there was none)."""


def run_episode(
    env: LiberoEnv,
    driver: Driver,
    spec: EpisodeSpec,
    on_step: StepCallback = lambda step, ms: None,
    *,
    execute_steps: int = int(EXECUTE_STEPS.default),
    limit: float = LIMIT.default,
) -> EpisodeResult:
    """Run one episode to success or to the step limit.

    Whenever the executor has no command left, the driver looks at the newest frame and gives a chunk. A frame is
    rendered after a step only when that step used the chunk's last command, as the ROS bridge does, so both loops
    see the same frames and execute the same actions. `execute_steps` and `limit` are those of `EvalConfig`.

    Raises:
        RSDError: whatever the simulation, the policy or the executor refuses; the episode then has no outcome.
    """
    start = time.monotonic()
    env.reset(spec.trial, seed=spec.seed)
    driver.reset(env)
    executor = ChunkExecutor(period=env.control_dt, execute_steps=execute_steps, limits=limit)
    actions: list[np.ndarray] = []
    chunks: list[ChunkRecord] = []
    success = False
    while not success and len(actions) < env.max_steps:
        stamp = len(actions) * env.control_dt
        inference_ms = None
        command = executor.next_action(stamp)
        if command is None:
            chunk = driver.infer(env, actions[-1] if actions else None)
            chunks.append(ChunkRecord.from_chunk(len(actions), chunk))
            inference_ms = chunks[-1].inference_ms
            executor.set_chunk(chunk.actions, stamp=stamp, verified=chunk.verified)
            command = executor.next_action(stamp)
            assert command is not None, "the executor holds a chunk that was set for this very step"
        success = env.step(command.values, render=driver.needs_images and command.remaining == 0)
        actions.append(np.array(command.values, dtype=np.float32))
        on_step(len(actions), inference_ms)
    return EpisodeResult(
        spec=spec,
        outcome=SUCCESS if success else FAILURE,
        steps=len(actions),
        instruction=env.instruction,
        actions=np.asarray(actions, np.float32).reshape(-1, ACTION_DIM),
        chunks=tuple(chunks),
        wall_s=time.monotonic() - start,
    )
