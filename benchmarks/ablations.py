"""What each part of the policy is worth in closed loop, in process, over canonical initial states.

Every variant runs the same episodes. Variants of the engine: the gate at several alphas, without its gripper rule, and
letting every draft through. Of the chunk: the main head's coarse levels alone, half of the steps. Of the instruction:
other words for the same task, and the words of another task of the suite (which should fail: the policy listens).

    .venv/bin/python -m benchmarks.ablations --num-trials 2 --workers 2 --json ablations.json
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from rsd_policy import ActionChunk, Observation, Policy, RSDInferenceEngine, load_policy
from rsd_policy.engine.gate import Gate
from rsd_policy.errors import CheckpointError, RSDError
from rsd_policy.evaluation import provenance
from rsd_policy.evaluation.episode import run_episode
from rsd_policy.evaluation.protocol import EpisodeSpec, parse_indices
from rsd_policy.evaluation.results import SUCCESS
from rsd_policy.evaluation.statistics import wilson_interval
from rsd_policy.training.paraphrase import wordings
from sim_bridge.libero_assets import SUITES, task_spec
from sim_bridge.libero_env import LiberoEnv

ALPHAS = (0.02, 0.05, 0.1, 0.2)
WORDING_SEED = 77
"""Other than training's, so that most of the sentences are new (their words are not)."""


class Driver:
    """An engine with what a variant changes before and after it.

    Args:
        ask: the observation that the policy gets to see. answer: the chunk that is executed.
    """

    needs_images = True

    def __init__(
        self,
        engine: RSDInferenceEngine,
        ask: Callable[[Observation], Observation] = lambda observation: observation,
        answer: Callable[[ActionChunk], ActionChunk] = lambda chunk: chunk,
    ) -> None:
        self._engine, self._ask, self._answer = engine, ask, answer

    def reset(self, env: LiberoEnv) -> None:
        self._engine.reset()

    def infer(self, env: LiberoEnv) -> ActionChunk:
        return self._answer(self._engine.infer(self._ask(env.observe())))


@dataclass(frozen=True)
class Job:
    """All variants over all trials of one task."""

    suite: str
    task: int
    trials: int
    variants: tuple[str, ...]
    policy: str
    device: str


@dataclass(frozen=True)
class Outcome:
    """One episode."""

    variant: str
    suite: str
    task: int
    trial: int
    success: bool
    steps: int
    chunks: int
    skipped: int
    accepted: int
    compared: int
    inference_ms: float


def make_driver(variant: str, policy: Policy, job: Job, trial: int) -> Driver:
    """The driver of a variant.

    Raises:
        CheckpointError: the gate keeps no such alpha.
    """
    name, _, value = variant.partition(":")
    horizon = policy.horizon

    def engine(mode: str, **options: Any) -> RSDInferenceEngine:
        return RSDInferenceEngine(policy, mode=mode, device=job.device, **options)  # type: ignore[arg-type]

    if name in ("baseline", "speculative"):
        return Driver(engine(name))
    if name == "gated":
        return Driver(engine("gated", alpha=float(value)))
    if name == "gated-without-gripper-rule":
        return Driver(engine("gated", gate=replace(Gate.from_manifest(policy.manifest["gate"]), gripper_rule=False)))
    if name == "draft-only":
        return Driver(engine("gated", gate=Gate(threshold=0.0, alpha=1.0, steps=horizon, gripper_rule=False)))
    if name == "execute":
        steps = int(value)
        return Driver(
            engine("speculative", execute_steps=steps), answer=lambda c: replace(c, actions=c.actions[:steps])
        )
    if name == "levels":
        return Driver(engine("baseline"), answer=lambda c: replace(c, actions=_coarse(policy, c, int(value))))
    if name == "paraphrased":
        own = task_spec(job.suite, job.task).instruction
        others = [text for text in wordings(own, 64, WORDING_SEED) if text != own.lower()]
        return Driver(engine("baseline"), ask=lambda o: replace(o, instruction=others[trial % len(others)]))
    if name == "wrong-instruction":
        other = task_spec(job.suite, (job.task + 1 + trial % 9) % 10).instruction
        return Driver(engine("baseline"), ask=lambda o: replace(o, instruction=other))
    raise RSDError(f"variant: expected one of {', '.join(VARIANTS)}, got '{variant}'")


VARIANTS = (
    "baseline",
    "speculative",
    *(f"gated:{alpha}" for alpha in ALPHAS),
    "gated-without-gripper-rule",
    "draft-only",
    "execute:4",
    "levels:1",
    "levels:2",
    "levels:3",
    "levels:5",
    "paraphrased",
    "wrong-instruction",
)


def _coarse(policy: Policy, chunk: ActionChunk, levels: int) -> Any:
    assert chunk.tokens is not None
    return policy.codec.decode(torch.from_numpy(chunk.tokens[:levels])).numpy()


def run_job(job: Job) -> list[Outcome]:
    """Run one task; in a worker process."""
    torch.set_num_threads(1)
    policy = load_policy(job.policy)
    env = LiberoEnv(job.suite, job.task)
    outcomes = []
    try:
        for variant in job.variants:
            for trial in range(job.trials):
                try:
                    driver = make_driver(variant, policy, job, trial)
                except CheckpointError:
                    break  # this gate keeps no such promise: reported as not available
                outcomes.append(_episode(env, driver, variant, job, trial))
    finally:
        env.close()
    return outcomes


def _episode(env: LiberoEnv, driver: Driver, variant: str, job: Job, trial: int) -> Outcome:
    result = run_episode(env, driver, EpisodeSpec(suite=job.suite, task=job.task, trial=trial, seed=0))
    compared = [c for c in result.chunks if c.accepted is not None]
    return Outcome(
        variant=variant,
        suite=job.suite,
        task=job.task,
        trial=trial,
        success=result.outcome == SUCCESS,
        steps=result.steps,
        chunks=len(result.chunks),
        skipped=sum(c.skipped for c in result.chunks),
        accepted=sum(bool(c.accepted) for c in compared),
        compared=len(compared),
        inference_ms=sum(c.inference_ms for c in result.chunks) / len(result.chunks),
    )


def summarise(outcomes: list[Outcome]) -> list[dict[str, Any]]:
    """One row per suite and variant."""
    rows = []
    for suite, variant in dict.fromkeys((o.suite, o.variant) for o in outcomes):
        mine = [o for o in outcomes if (o.suite, o.variant) == (suite, variant)]
        good = sum(o.success for o in mine)
        chunks, compared = sum(o.chunks for o in mine), sum(o.compared for o in mine)
        rows.append(
            {
                "suite": suite,
                "variant": variant,
                "successes": good,
                "episodes": len(mine),
                "success_ci95": [round(x, 4) for x in wilson_interval(good, len(mine))],
                "skip_rate": round(sum(o.skipped for o in mine) / chunks, 4),
                "acceptance": round(sum(o.accepted for o in mine) / compared, 4) if compared else None,
            }
        )
    return rows


def main(argv: list[str]) -> int:
    """Run, print a table, write JSON."""
    parser = argparse.ArgumentParser(prog="benchmarks.ablations", description=__doc__)
    parser.add_argument("--policy", default="mini")
    parser.add_argument("--task-suite", nargs="+", default=["libero_spatial"], choices=SUITES)
    parser.add_argument("--tasks", default="0-9")
    parser.add_argument("--num-trials", type=int, default=2, help="canonical initial states per task")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS, metavar="VARIANT")
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 1))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args(argv)
    jobs = [
        Job(suite, task, arguments.num_trials, (variant,), arguments.policy, arguments.device)
        for variant in arguments.variants
        for suite in arguments.task_suite
        for task in parse_indices(arguments.tasks)
    ]
    os.environ.update(OMP_NUM_THREADS="1", LP_NUM_THREADS="1")
    outcomes: list[Outcome] = []
    columns = (TextColumn("ablations"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with (
        multiprocessing.get_context("spawn").Pool(arguments.workers) as pool,
        Progress(*columns, console=Console(stderr=True)) as bar,
    ):
        for some in bar.track(pool.imap_unordered(run_job, jobs), total=len(jobs)):
            outcomes += some
    order = {variant: i for i, variant in enumerate(VARIANTS)}
    rows = sorted(summarise(outcomes), key=lambda r: (r["suite"], order[r["variant"]]))
    table = Table(title=f"{arguments.policy}: canonical initial states 0-{arguments.num_trials - 1}")
    for heading in ("suite", "variant", "successes", "95 % interval", "skipped", "accepted"):
        table.add_column(heading)
    for r in rows:
        low, high = r["success_ci95"]
        accepted = "-" if r["acceptance"] is None else f"{r['acceptance']:.0%}"
        table.add_row(
            r["suite"],
            r["variant"],
            f"{r['successes']} of {r['episodes']}",
            f"{low:.1%} - {high:.1%}",
            f"{r['skip_rate']:.0%}",
            accepted,
        )
    Console().print(table)
    report = {
        "command": "python -m benchmarks.ablations " + " ".join(argv),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "hardware": provenance.hardware(arguments.device),
        "not_available": [v for v in arguments.variants if v not in {o.variant for o in outcomes}],
        "rows": rows,
        "episodes": [asdict(o) for o in outcomes],
    }
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
