"""Latency of one inference per mode, on real frames of LIBERO.

The modes take turns on the same observations, so that a busy moment of the machine hits all of them alike.

    python -m rsd_policy.commands.bench --policy mini --threads 2 --json inference.json
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rsd_policy import Observation, RSDInferenceEngine, load_policy
from rsd_policy.errors import CheckpointError
from rsd_policy.evaluation import provenance
from rsd_policy.evaluation.statistics import latency_summary, paired_ratio
from rsd_policy.exit_status import DONE
from rsd_policy.observation import ActionChunk
from rsd_policy.settings import MODES
from sim_bridge.libero_env import LiberoEnv

WARM_UP = 5
"""Inferences per mode before measuring: first calls allocate memory and choose kernels."""


def main(argv: list[str]) -> int:
    """Measure and print; returns 0. Errors: see `measure`."""
    parser = argparse.ArgumentParser(prog="rsd bench", description="Latency of inference per mode.")
    parser.add_argument("--policy", default="mini", help="mini or a checkpoint directory (%(default)s)")
    parser.add_argument("--base", help="weights below an adapter or heads (where the checkpoint says)")
    parser.add_argument("--device", default="cpu", help="torch device (%(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="torch threads on the CPU (%(default)s)")
    parser.add_argument("--chunks", type=int, default=100, help="measured inferences per mode (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    arguments = parser.parse_args(argv)
    if arguments.threads < 1 or arguments.chunks < 1:
        parser.error("--threads and --chunks: expected at least 1")
    result = measure(arguments.policy, arguments.base, arguments.device, arguments.threads, arguments.chunks)
    for mode, row in result["modes"].items():
        latency, first = row["latency_ms"], row["first_action_ms"]
        stages = ", ".join(f"{stage} {ms:.1f}" for stage, ms in row["stage_ms"].items())
        print(
            f"{mode:>11}: p50 {latency['p50']:.1f} ms, p99 {latency['p99']:.1f} ms; "
            f"first action p50 {first['p50']:.1f} ms; {row['speedup_vs_baseline']['value']:.2f} x baseline; "
            f"skipped {100 * row['skip_rate']:.0f} %; mean ms: {stages}"
        )
    for mode, reason in result["not_measured"].items():
        print(f"{mode:>11}: not measured: {reason}")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return DONE


def measure(policy_name: str, base: str | None, device: str, threads: int, chunks: int) -> dict[str, Any]:
    """Figures per mode; a mode that the checkpoint cannot run (gated without calibration) is named with its reason.

    Raises:
        RSDError: the policy, the device or the simulation is not there.
    """
    import torch

    torch.set_num_threads(threads)
    policy = load_policy(policy_name, device, base=base)
    engines: dict[str, RSDInferenceEngine] = {}
    not_measured: dict[str, str] = {}
    for mode in MODES:
        try:
            engines[mode] = RSDInferenceEngine(policy, mode=mode, device=device)
        except CheckpointError as error:
            not_measured[mode] = str(error)
    observations = frames(8)
    measured: dict[str, list[ActionChunk]] = {mode: [] for mode in engines}
    for index in range(WARM_UP + chunks):
        for name, engine in engines.items():
            chunk = engine.infer(observations[index % len(observations)])
            if index >= WARM_UP:
                measured[name].append(chunk)
    baseline = [[chunk.stats.total_ms] for chunk in measured["baseline"]]
    return {
        "policy": policy_name,
        "threads": threads,
        "chunks": chunks,
        "modes": {name: _figures(rows, baseline) for name, rows in measured.items()},
        "not_measured": not_measured,
        "versions": provenance.versions(),
        "hardware": provenance.hardware(device),
    }


def frames(count: int) -> list[Observation]:
    """Observations of libero_spatial task 0 while the arm moves down: what a policy sees at the start of an episode."""
    observations = []
    with LiberoEnv("libero_spatial", 0) as env:
        env.reset(0)
        for _ in range(count):
            observations.append(env.observe())
            env.step([0.0, 0.0, -0.5, 0.0, 0.0, 0.0, -1.0], render=True)
    return observations


def _figures(rows: list[ActionChunk], baseline: list[list[float]]) -> dict[str, Any]:
    stages: dict[str, float] = {}
    for chunk in rows:
        for stage, milliseconds in chunk.stats.stage_ms.items():
            stages[stage] = stages.get(stage, 0.0) + milliseconds / len(rows)
    speedup = paired_ratio(baseline, [[chunk.stats.total_ms] for chunk in rows])
    assert speedup is not None
    return {
        "latency_ms": latency_summary([chunk.stats.total_ms for chunk in rows]),
        "first_action_ms": latency_summary([chunk.stats.first_action_ms for chunk in rows]),
        "stage_ms": stages,
        "skip_rate": sum(chunk.skipped for chunk in rows) / len(rows),
        "speedup_vs_baseline": asdict(speedup),
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
