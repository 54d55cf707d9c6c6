"""How the GPU benchmark times calls and compares modes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.openvla.random_policy import HORIZON
from rsd_policy import Observation, Policy, RSDInferenceEngine
from rsd_policy.engine.gate import Gate

Figures = dict[str, Any]
OPEN = Gate(threshold=0.0, alpha=0.5, steps=HORIZON, gripper_rule=False)
CLOSED = Gate(threshold=2.0, alpha=0.5, steps=HORIZON, gripper_rule=False)
NEVER = 10**9
WARM_UP = 5


def matmul_ceiling(device: torch.device) -> float:
    """TFLOP/s of a bf16 product of two random 8192 x 8192 matrices, median of ten."""
    a, b = (torch.randn(8192, 8192, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * 8192**3 / statistics.median(timed({"product": lambda: a @ b}, 10)["product"]) / 1e9


def timed(calls: dict[str, Callable[[], object]], count: int, *, answers: bool = False) -> dict[str, list[float]]:
    """Wall-clock ms of calls that take turns, without WARM_UP rounds.

    The device is synchronised before and after each call; not after engines' `answers`, which are on the host, so that
    nothing of them is left to wait for, and where the wait would be another one than the engine's own.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for index in range(WARM_UP + count):
        for name, call in calls.items():
            torch.cuda.synchronize()
            start = time.perf_counter()
            call()
            if not answers:
                torch.cuda.synchronize()
            if index >= WARM_UP:
                times[name].append((time.perf_counter() - start) * 1e3)
    return times


def spread(times: list[float]) -> Figures:
    """Median, 5 % and 95 % quantile, 99 % quantile, ms."""
    p5, p50, p95, p99 = np.percentile(times, [5, 50, 95, 99])
    return {"p50": p50, "p5": p5, "p95": p95, "p99": p99, "calls": len(times)}


def engines(policy: Policy, gates: dict[str, Gate]) -> dict[str, RSDInferenceEngine]:
    """baseline and speculative, and mode gated with each of some gates."""
    made = {mode: RSDInferenceEngine(policy, mode, "cuda") for mode in ("baseline", "speculative")}  # type: ignore[arg-type]
    for name, gate in gates.items():
        made[name] = RSDInferenceEngine(policy, "gated", "cuda", gate=gate, audit_every=NEVER)
    return made


def same_chunks(running: dict[str, RSDInferenceEngine], seen: list[Observation]) -> bool:
    """Whether speculative's and a declining gate's chunks are baseline's bit for bit, and differ among observations."""
    chunks = []
    for observation in seen:
        expected = running["baseline"].infer(observation)
        chunks.append(expected.actions.tobytes())
        for name in ("speculative", "rejected"):
            chunk = running[name].infer(observation)
            if chunk.actions.tobytes() != chunks[-1] or not np.array_equal(chunk.tokens, expected.tokens):
                return False
    return len(set(chunks)) > 1


def modes(running: dict[str, RSDInferenceEngine], seen: list[Observation], calls: int) -> tuple[Figures, Figures]:
    """Times of every mode in turn, and median stage times of baseline and skipped."""
    turn = iter(range(10**9))
    stages: dict[str, dict[str, list[float]]] = {}
    first: list[float] = []

    def infer(name: str) -> None:
        chunk = running[name].infer(seen[next(turn) % len(seen)])
        if name == "speculative":
            first.append(chunk.stats.first_action_ms)
        for stage, ms in chunk.stats.stage_ms.items():
            stages.setdefault(name, {}).setdefault(stage, []).append(ms)

    times = timed({name: lambda name=name: infer(name) for name in running}, calls, answers=True)  # type: ignore[misc]
    rows = {name: spread(values) for name, values in times.items()}
    rows["first action"] = spread(first[WARM_UP:])
    medians = {name: {s: statistics.median(v) for s, v in by.items()} for name, by in stages.items()}
    return rows, medians


def mixed(engine: RSDInferenceEngine, seen: list[Observation], calls: int) -> Figures:
    """Mean over chunks of which the gate lets seven of ten through."""
    times = []
    for index in range(calls - calls % 10):
        engine.gate = OPEN if index % 10 < 7 else CLOSED
        start = time.perf_counter()
        chunk = engine.infer(seen[index % len(seen)])
        times.append((time.perf_counter() - start) * 1e3)
        assert chunk.skipped == (index % 10 < 7)
    return {"mean": statistics.fmean(times), "p50": statistics.median(times), "calls": len(times)}
