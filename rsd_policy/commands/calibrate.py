"""`rsd calibrate`: roll the policy out, train the predictor of the deviation, choose the gate's thresholds.

Writes a copy of the checkpoint with predictor, curve and thresholds. All rollouts in --rollouts are used, those of
earlier calls too, so that suites can be recorded one after the other.
"""

from __future__ import annotations

import argparse
import math
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from rsd_policy import __version__
from rsd_policy.checkpoints.loading import Policy, load_policy, save_policy
from rsd_policy.checkpoints.manifest import MANIFEST
from rsd_policy.device import parse_device
from rsd_policy.engine.calibration import Curve, episodes_needed
from rsd_policy.errors import RSDError
from rsd_policy.evaluation.protocol import parse_tasks
from rsd_policy.libero import SUITES
from rsd_policy.training.gate.fit import (
    START_GRIPPER,
    fit_predictor,
    measure_curve,
    quality,
    split,
    to_chunks,
    to_rows,
)
from rsd_policy.training.gate.plot import plot_calibration
from rsd_policy.training.gate.pool import record
from rsd_policy.training.gate.rollouts import DRAFT_SHARE, Place, Rollout, fingerprint

FIRST_SEED = 9_000_000
"""Far from the seeds of `rsd collect`, so that no placement was trained on."""

ALPHAS = (0.02, 0.05, 0.1, 0.2)
"""Promises reported and stored next to the checkpoint's own; the engine takes any other as well."""


def main(argv: list[str]) -> int:
    """Parse arguments, record, fit, write. Returns the exit status; errors are raised as RSDError."""
    arguments = _parse(argv)
    if not arguments.rollouts_only and (arguments.out / MANIFEST).exists():
        raise RSDError(f"--out {arguments.out}: holds a checkpoint already; choose another directory or remove it")
    parse_device(arguments.device)
    policy = load_policy(arguments.policy, base=arguments.base)
    steps = policy.horizon if arguments.execute_steps is None else arguments.execute_steps
    if not 1 <= steps <= policy.horizon:
        raise RSDError(f"--execute-steps: expected 1 .. {policy.horizon}, got {steps}")
    if arguments.bags:
        return _by_bags(policy, arguments, steps)
    load_rollouts(arguments.rollouts, policy, steps)  # another policy's are refused before hours are spent
    places = [
        Place(suite, task, seed)
        for suite in arguments.task_suite
        for task in parse_tasks(arguments.tasks, suite)
        for seed in range(arguments.seed, arguments.seed + arguments.episodes)
    ]
    record(
        places, arguments.rollouts, str(arguments.policy), arguments.base, arguments.device, steps, arguments.workers
    )
    rollouts = load_rollouts(arguments.rollouts, policy, steps)
    if arguments.rollouts_only:
        print(f"{len(rollouts)} rollouts in {arguments.rollouts}")
        return 0
    return _write(policy, calibrate(policy, rollouts, steps, arguments.alpha, arguments.split_seed), arguments.out)


def _by_bags(policy: Policy, arguments: argparse.Namespace, steps: int) -> int:
    """Calibrate on the user's own recordings."""
    # bags need rosbags and mcap, which a calibration in simulation does without
    from rsd_policy.robots.contract import load_contract
    from rsd_policy.training.gate.bags import SOURCE, check_number, find_bags, from_bag

    contract = load_contract(arguments.robot)
    bags = find_bags(arguments.bags)
    check_number(bags, arguments.alpha)
    rollouts = []
    for number, bag in enumerate(bags):
        rollouts.append(from_bag(bag, contract, policy, steps, number, arguments.period))
        print(f"{bag}: {len(rollouts[-1].first)} observations", flush=True)
    curve = calibrate(policy, rollouts, steps, arguments.alpha, arguments.split_seed)
    # nobody has said whether the task of a bag was solved, and both heads were only asked
    summary = policy.manifest["gate"]["calibration"]
    summary |= {"source": SOURCE.format(robot=contract.robot), "success_rate": None}
    return _write(policy, curve, arguments.out)


def _write(policy: Policy, curve: Curve, out: Path) -> int:
    save_policy(out, policy)
    plot_calibration(curve, ALPHAS, out / "calibration.png")
    _print(policy, curve)
    print(f"wrote {out}")
    return 0


def load_rollouts(directory: Path, policy: Policy, steps: int) -> list[Rollout]:
    """All recordings in a directory, by suite, task and seed.

    Raises:
        RSDError: one is broken, or was recorded with another policy or another number of executed steps.
    """
    expected = fingerprint(policy)
    rollouts = [Rollout.load(path) for path in sorted(directory.glob("*/task-*/seed-*.npz"))]
    for rollout in rollouts:
        if (rollout.policy, rollout.execute_steps) != (expected, steps):
            raise RSDError(
                f"{rollout.place.path(directory)}: expected rollouts of policy {expected[:8]} with {steps} executed "
                f"steps, got policy {rollout.policy[:8]} with {rollout.execute_steps}; give another --rollouts"
            )
    return rollouts


def calibrate(policy: Policy, rollouts: Sequence[Rollout], steps: int, alpha: float, seed: int) -> Curve:
    """Give a policy predictor, curve and thresholds, in its modules and manifest.

    Args:
        policy: changed in place, on the CPU.
        alpha: the promise that mode `gated` keeps unless told otherwise.
        seed: of the split and of the predictor's training.
    """
    tolerance = np.asarray(policy.manifest["acceptance"]["tolerance"], dtype=np.float32)
    parts = split(rollouts, seed)
    train, stop, held = (to_rows(part, tolerance, steps) for part in parts)
    print(
        f"{len(rollouts)} episodes: {len(parts[0])} train the predictor ({len(train.within)} chunks), {len(parts[1])} "
        f"stop its training, {len(parts[2])} calibrate ({len(held.within)} chunks)"
    )
    predictor = fit_predictor(policy, train, stop, seed, _report_epoch)
    chunks = to_chunks(held, predictor, steps)
    curve = measure_curve(to_chunks(stop, predictor, steps), chunks)
    policy.deviation = predictor
    policy.manifest["architecture"]["deviation"] = {"width": predictor.step.shape[1]}
    policy.manifest["gate"] = {
        "alpha": alpha,
        "confidence": curve.confidence,
        "steps": steps,
        "start_gripper": START_GRIPPER,
        "thresholds": [_operating_point(curve, a) for a in sorted({alpha, *ALPHAS})],
        "curve": curve.to_manifest(),
        "predictor": quality(held, chunks, steps),
        "calibration": _summary(rollouts, parts[2], held.eligible, chunks.deviates) | {"split_seed": seed},
    }
    return curve


def _operating_point(curve: Curve, alpha: float) -> dict[str, Any]:
    index = curve.choose(alpha)
    if index is None:
        return {"alpha": alpha, "threshold": None}
    columns = ("threshold", "skip_rate", "deviation_rate", "chunk_deviation_rate", "bound")
    return {"alpha": alpha} | {name: getattr(curve, name)[index] for name in columns}


def _summary(rollouts: Sequence[Rollout], calibrating: Sequence[Rollout], eligible: Any, deviates: Any) -> Any:
    tasks = Counter(r.place.suite for r in rollouts)
    seeds = [r.place.seed for r in rollouts]
    return {
        "source": "rollouts of the policy in LIBERO from random placements, never canonical initial states; "
        f"each chunk the draft's with probability {DRAFT_SHARE}, else the main head's",
        "rsd_policy": __version__,
        "suites": dict(sorted(tasks.items())),
        "seeds": [min(seeds), max(seeds)],
        "episodes": len(rollouts),
        "success_rate": round(float(np.mean([r.success for r in rollouts])), 4),
        "calibrating_episodes": len(calibrating),
        "calibrating_chunks": len(eligible),
        "eligible_rate": round(float(np.mean(eligible)), 4),
        "within_tolerance_rate": round(float(1.0 - np.mean(deviates)), 4),
    }


def _report_epoch(stage: str, epoch: int, loss: float, held_out: float) -> None:
    if epoch % 20 == 0:
        print(f"predictor ({stage}): epoch {epoch}  loss {loss:.4f}  held out {held_out:.4f}", flush=True)


def _print(policy: Policy, curve: Curve) -> None:
    gate = policy.manifest["gate"]
    console = Console()
    console.print(f"predictor: {gate['predictor']}")
    table = Table(title=f"gate, confidence {curve.confidence:.0%}")
    for heading in ("alpha", "threshold", "skipped of all chunks", "deviating of skipped", "bound"):
        table.add_column(heading, justify="right")
    short = []
    for point in gate["thresholds"]:
        if point["threshold"] is None:
            table.add_row(f"{point['alpha']:g}", "none", "-", "-", f"{curve.bound[0]:.3f}")
            short.append(point["alpha"])
        else:
            shown = (f"{point[name]:.3f}" for name in ("threshold", "skip_rate", "deviation_rate", "bound"))
            table.add_row(f"{point['alpha']:g}", *shown)
    console.print(table)
    have = gate["calibration"]["calibrating_episodes"]
    for alpha in short:
        need = episodes_needed(alpha)
        why = (
            f"{have} calibrating episodes are too few: {need} are the least"
            if have < need
            else f"the strictest threshold deviates in {curve.deviation_rate[0]:.1%} of its skips"
        )
        console.print(f"alpha {alpha:g}: no threshold keeps it ({why}); mode 'gated' refuses this alpha")


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="rsd calibrate", description=__doc__)
    parser.add_argument("--policy", default="mini", help="shipped name or checkpoint directory (default mini)")
    parser.add_argument(
        "--task-suite", nargs="+", default=["libero_spatial"], choices=SUITES, help="one or more (libero_spatial)"
    )
    parser.add_argument("--tasks", default="0-9", help="of each suite, e.g. 0-9 or 0,4,9 (default 0-9)")
    parser.add_argument("--episodes", type=int, default=2, help="random placements per task (default 2)")
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 1), help="processes")
    parser.add_argument("--base", help="weights that heads stand on (where the checkpoint says)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda[:n], of the policy in each worker (default cpu)")
    parser.add_argument("--seed", type=int, default=FIRST_SEED, help=f"first placement seed (default {FIRST_SEED})")
    parser.add_argument("--execute-steps", type=int, help="steps executed of each chunk (default: all)")
    parser.add_argument("--alpha", type=float, default=0.1, help="bound that mode gated keeps (default 0.1)")
    parser.add_argument("--split-seed", type=int, default=0, help="of the split of episodes and the training")
    parser.add_argument("--rollouts", type=Path, default=Path("out/rollouts"), help="directory of recordings")
    parser.add_argument("--rollouts-only", action="store_true", help="record, and calibrate later")
    parser.add_argument(
        "--bags",
        type=Path,
        nargs="+",
        default=[],
        metavar="BAG",
        help="calibrate on these, or folders of them",
    )
    parser.add_argument("--robot", default="libero_sim", help="of the bags: contract, a name or a path (libero_sim)")
    parser.add_argument(
        "--period", type=float, default=0.4, help="of bags without recorded chunks: s between observations (0.4)"
    )
    parser.add_argument("--out", type=Path, default=Path("out/calibrated"), help="checkpoint directory to write")
    arguments = parser.parse_args(argv)
    for name, low in (("episodes", 1), ("workers", 1), ("seed", 0)):
        if getattr(arguments, name) < low:
            parser.error(f"--{name}: expected at least {low}, got {getattr(arguments, name)}")
    if not (math.isfinite(arguments.alpha) and 0.0 < arguments.alpha < 1.0):
        parser.error(f"--alpha: expected a probability between 0 and 1, got {arguments.alpha}")
    return arguments
