"""Hand-made results for tests of everything that comes after the episodes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rsd_policy.evaluation.protocol import EpisodeSpec, EvalConfig
from rsd_policy.evaluation.results import FAILURE, SUCCESS, ChunkRecord, EpisodeResult
from rsd_policy.evaluation.store import ResultStore

HARDWARE = {"cpu": "test", "cores": 2, "memory_gib": 1.0, "device": "cpu", "gpu": None, "workers": 1, "system": "test"}


@pytest.fixture
def config() -> EvalConfig:
    return EvalConfig(suite="libero_object", tasks=(0, 1), trials=(0, 1), mode="speculative", ros=False)


@pytest.fixture
def make_result() -> Callable[..., EpisodeResult]:
    def make(spec: EpisodeSpec, *, success: bool = True, steps: int = 16, ms: float = 40.0) -> EpisodeResult:
        rng = np.random.default_rng([spec.task, spec.trial])
        chunk = ChunkRecord(
            step=0,
            inference_ms=ms,
            first_action_ms=ms / 2,
            stage_ms={"vision": ms / 4, "head": ms / 4},
            accepted=True,
            levels=8,
            token_agreement=(1.0, 0.75, 0.5),
            max_deviation=(0.1,) * 7,
        )
        return EpisodeResult(
            spec=spec,
            outcome=SUCCESS if success else FAILURE,
            steps=steps,
            instruction=f"do task {spec.task}",
            actions=rng.uniform(-1, 1, (steps, 7)).astype(np.float32),
            chunks=(chunk, replace(chunk, step=8, accepted=False, inference_ms=3 * ms)),
            wall_s=1.5,
        )

    return make


@pytest.fixture
def open_run(tmp_path: Path) -> Callable[..., ResultStore]:
    def open_(config: EvalConfig, name: str = "run") -> ResultStore:
        return ResultStore.open_run(tmp_path / name, config, versions={"rsd_policy": "test"}, hardware=HARDWARE)

    return open_
