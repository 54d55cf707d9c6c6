"""What drives an in-process episode: the engine on observations, or the scripted expert on privileged state."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from rsd_policy.evaluation.protocol import EXPERT, EvalConfig
from rsd_policy.observation import ActionChunk, ChunkStats
from rsd_policy.settings import EXECUTE_STEPS
from sim_bridge.libero_env import LiberoEnv

if TYPE_CHECKING:
    from rsd_policy.engine.gate import Gate
    from rsd_policy.settings import Mode


class Driver(Protocol):
    """Gives the next chunk for the current state of an environment."""

    needs_images: bool

    def reset(self, env: LiberoEnv) -> None:
        """A new episode has begun in `env`."""

    def infer(self, env: LiberoEnv, executed: NDArray[np.float32] | None) -> ActionChunk:
        """The final chunk for the state that `env` is in; `env` is not stepped.

        Args:
            executed: [7], the last executed command; None before the first of the episode.
        """


class EngineDriver:
    """RSDInferenceEngine on what the cameras and the robot state show."""

    needs_images = True

    def __init__(
        self,
        policy: str,
        mode: str,
        device: str,
        execute_steps: int = int(EXECUTE_STEPS.default),
        *,
        alpha: float | None = None,
        norm_key: str | None = None,
        base: str | None = None,
    ) -> None:
        from rsd_policy import RSDInferenceEngine, load_policy  # imports torch: only in the process that infers

        loaded = load_policy(policy, device, norm_key=norm_key, base=base)
        # a chunk that is shorter is executed whole
        steps = min(execute_steps, loaded.horizon)
        self._engine = RSDInferenceEngine(
            loaded, mode=cast("Mode", mode), device=device, execute_steps=steps, alpha=alpha
        )

    @property
    def gate(self) -> Gate | None:
        """What decides in mode gated whether a draft runs unverified."""
        return self._engine.gate

    def reset(self, env: LiberoEnv) -> None:
        self._engine.reset()

    def infer(self, env: LiberoEnv, executed: NDArray[np.float32] | None) -> ActionChunk:
        self._engine.executed(executed)
        return self._engine.infer(env.observe())


class ExpertDriver:
    """The scripted expert, one action at a time."""

    needs_images = False

    def __init__(self) -> None:
        self._env: LiberoEnv | None = None

    def reset(self, env: LiberoEnv) -> None:
        from sim_bridge.expert import ScriptedExpert

        if env is not self._env:
            self._env, self._expert = env, ScriptedExpert(env)
        self._expert.reset()

    def infer(self, env: LiberoEnv, executed: NDArray[np.float32] | None) -> ActionChunk:
        start = time.perf_counter()
        action = self._expert.act()
        elapsed_ms = (time.perf_counter() - start) * 1e3
        stats = ChunkStats(stage_ms={"expert": elapsed_ms}, first_action_ms=elapsed_ms, total_ms=elapsed_ms)
        return ActionChunk(actions=np.asarray(action, np.float32)[None], stats=stats)


def make_driver(config: EvalConfig) -> Driver:
    """Load what drives the episodes of `config`.

    Raises:
        CheckpointError: the checkpoint is missing, altered, or of another architecture.
    """
    if config.policy == EXPERT:
        return ExpertDriver()
    assert config.mode is not None and config.device is not None
    return EngineDriver(
        config.policy,
        config.mode,
        config.device,
        config.execute_steps,
        alpha=config.alpha,
        norm_key=config.norm_key,
        base=config.base,
    )
