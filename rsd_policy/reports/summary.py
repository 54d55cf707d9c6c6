"""summary.json: the figures of one run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rsd_policy.evaluation.protocol import EvalConfig
from rsd_policy.evaluation.results import ERROR, ChunkRecord, EpisodeResult
from rsd_policy.evaluation.statistics import latency_summary, wilson_interval
from rsd_policy.evaluation.store import ResultStore
from rsd_policy.files import write_json

SUMMARY = "summary.json"
COMPARISON = "comparison.json"
"""Written by `rsd compare` into the directory of the run that is compared with a reference."""


def summarise(
    config: EvalConfig,
    episodes: Sequence[EpisodeResult],
    versions: dict[str, Any],
    hardware: dict[str, Any],
    speedup_vs_baseline: float | None = None,
) -> dict[str, Any]:
    """All fields of summary.json. Errors count neither as episodes nor as failures."""
    finished = [episode for episode in episodes if episode.outcome != ERROR]
    chunks = [chunk for episode in finished for chunk in episode.chunks]
    successes = sum(episode.success for episode in finished)
    return {
        "suite": config.suite,
        "policy": config.policy,
        "policy_sha256": config.policy_sha256,
        "mode": config.mode,
        "alpha": config.alpha,
        "norm_key": config.norm_key,
        "clock": config.clock,
        "transport": "ros" if config.ros else "in-process",
        "seed": config.seed,
        "tasks": list(config.tasks),
        "trials": list(config.trials),
        "episodes_planned": len(config.episodes()),
        "complete": len(finished) == len(config.episodes()),
        **_success(finished),
        "per_task": {
            str(task): {
                "instruction": next((e.instruction for e in finished if e.spec.task == task), None),
                **_success([e for e in finished if e.spec.task == task]),
            }
            for task in config.tasks
        },
        "mean_steps_of_successes": _mean([e.steps for e in finished if e.success]) if successes else None,
        "chunks": len(chunks),
        "latency_ms": latency_summary([chunk.inference_ms for chunk in chunks]),
        "first_action_ms": latency_summary([chunk.first_action_ms for chunk in chunks]),
        "stage_ms": _stages(chunks),
        **_drafts(chunks),
        "speedup_vs_baseline": speedup_vs_baseline,
        "errors": [
            {"task": e.spec.task, "trial": e.spec.trial, "error": e.error} for e in episodes if e.outcome == ERROR
        ],
        "versions": versions,
        "hardware": hardware,
    }


def write_summary(store: ResultStore) -> dict[str, Any]:
    """Compute summary.json from the stored episodes and replace it atomically. Returns its content."""
    versions, hardware = store.provenance()
    summary = summarise(store.config, store.episodes(), versions, hardware, _compared_speedup(store.directory))
    write_json(store.directory / SUMMARY, summary)
    return summary


def _success(episodes: Sequence[EpisodeResult]) -> dict[str, Any]:
    successes = sum(episode.success for episode in episodes)
    return {
        "episodes": len(episodes),
        "successes": successes,
        "success_rate": successes / len(episodes) if episodes else None,
        "success_ci95": list(wilson_interval(successes, len(episodes))),
    }


def _drafts(chunks: Sequence[ChunkRecord]) -> dict[str, Any]:
    compared = [chunk.accepted for chunk in chunks if chunk.accepted is not None]
    agreements = [chunk.token_agreement for chunk in chunks if chunk.token_agreement]
    levels = max((len(agreement) for agreement in agreements), default=0)
    return {
        "draft_acceptance_rate": _mean(compared),
        "skip_rate": _mean([chunk.skipped for chunk in chunks]),
        "token_agreement": [_mean([a[level] for a in agreements if len(a) > level]) for level in range(levels)],
        "audit": {
            "checked": sum(chunk.audited for chunk in chunks),
            "deviated": sum(chunk.audit_deviated is True for chunk in chunks),
        },
    }


def _stages(chunks: Sequence[ChunkRecord]) -> dict[str, float]:
    """Mean ms per chunk of each stage; a chunk in which a stage did not run counts as 0 ms."""
    stages: dict[str, float] = {}
    for chunk in chunks:
        for stage, value in chunk.stage_ms.items():
            stages[stage] = stages.get(stage, 0.0) + value / len(chunks)
    return stages


def _mean(values: Sequence[float | bool]) -> float | None:
    return sum(values) / len(values) if values else None


def _compared_speedup(directory: Path) -> float | None:
    path = directory / COMPARISON
    if not path.is_file():
        return None
    speedup: float | None = json.loads(path.read_text(encoding="utf-8"))["speedup_vs_baseline"]
    return speedup
