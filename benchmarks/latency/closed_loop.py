"""Control steps per second of the closed loop in lockstep: over ROS against in process, on the same episodes.

Both run the same policy on the same task; resets and loading are not counted. The loops take turns, so that a busy
moment of the machine hits both.

    ./rsd setup && source ros2_ws/install/setup.bash
    .venv/bin/python -m benchmarks.latency.closed_loop --json closed_loop.json
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor

from rsd_policy.errors import RSDError
from rsd_policy.evaluation import provenance
from rsd_policy.evaluation.in_process.drivers import EngineDriver
from rsd_policy.evaluation.in_process.episode import run_episode
from rsd_policy.evaluation.protocol import EpisodeSpec, first_trials, format_indices
from rsd_policy.evaluation.results import EpisodeResult
from rsd_policy.exit_status import DONE, NOT_RUN
from rsd_policy.graph.bringup import eval_nodes
from rsd_policy.graph.supervisor import end_processes, ros_domain, start_process
from rsd_policy.nodes.conductor import Conductor
from rsd_policy.nodes.eval_node import bring_up
from sim_bridge.libero_env import LiberoEnv

ASKED = 0.8
"""What is asked for: steps/s over ROS as a fraction of in process."""

SUITE = "libero_spatial"


class Stopwatch:
    """Takes the time of each control step of an episode."""

    def __init__(self) -> None:
        self._times: dict[int, float] = {}

    def step(self, step: int, inference_ms: float | None) -> None:
        self._times.setdefault(step, time.perf_counter())

    def rate(self) -> float:
        """Steps per second from the first step to the last."""
        first, last = min(step for step in self._times if step > 0), max(self._times)
        return (last - first) / (self._times[last] - self._times[first])


def measure(policy: str, mode: str, task: int, rounds: int) -> dict[str, Any]:
    """Run `rounds` episodes in each loop.

    Raises:
        RSDError: an episode could not be run, or the two loops acted differently.
    """
    specs = eval_nodes(
        task_suite=SUITE,
        tasks=str(task),
        trials=format_indices(first_trials(rounds)),
        policy=policy,
        mode=mode,
        clock="lockstep",
        device="cpu",
        seed=0,
        out="",
        report=False,
    )
    rates: dict[str, list[float]] = {"ros": [], "in_process": []}
    with tempfile.TemporaryDirectory() as logs, ros_domain() as domain:
        processes = [
            start_process(spec, config=None, logs=Path(logs), domain=domain) for spec in specs if not spec.conducts
        ]
        context = Context()
        rclpy.init(context=context, domain_id=domain)
        node = rclpy.create_node("closed_loop", context=context)
        executor = SingleThreadedExecutor(context=context)
        executor.add_node(node)
        try:
            conductor = Conductor(node, executor, policy_node="policy_node", realtime=False, stall_timeout_s=120.0)
            bring_up(node, conductor, ["policy_node", "action_executor"])
            driver = EngineDriver(policy, mode, "cpu")
            with LiberoEnv(SUITE, task) as env:
                for trial in range(rounds):
                    spec = EpisodeSpec(SUITE, task, trial)
                    here, over_ros = Stopwatch(), Stopwatch()
                    reference = run_episode(env, driver, spec, here.step)
                    result = conductor.run_episode(spec, over_ros.step)
                    _same(result, reference)
                    rates["in_process"].append(here.rate())
                    rates["ros"].append(over_ros.rate())
                    print(
                        f"trial {trial}: in process {here.rate():.1f}, ROS {over_ros.rate():.1f} steps/s",
                        file=sys.stderr,
                    )
        finally:
            executor.shutdown()
            node.destroy_node()
            rclpy.shutdown(context=context)
            end_processes(processes)
    ratios = np.array(rates["ros"]) / np.array(rates["in_process"])
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": (
            f"python -m benchmarks.latency.closed_loop --policy {policy} --mode {mode} --task {task} --rounds {rounds}"
        ),
        "hardware": provenance.hardware("cpu", 1),
        "steps_per_s": {name: {"median": float(np.median(values)), "all": values} for name, values in rates.items()},
        "ratio": {"median": float(np.median(ratios)), "all": ratios.tolist()},
        "asked": ASKED,
    }


def _same(over_ros: EpisodeResult, reference: EpisodeResult) -> None:
    if over_ros.actions.tobytes() != reference.actions.tobytes():
        raise RSDError(
            f"{reference.spec}: the actions over ROS differ from those in process; the rates cannot be compared"
        )


def main(argv: list[str]) -> int:
    """Measure and print; returns 0, or 4 when it could not be measured."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.latency.closed_loop", description="Closed loop over ROS against in process."
    )
    parser.add_argument("--policy", default="mini", help="mini or a checkpoint directory (%(default)s)")
    parser.add_argument("--mode", default="speculative", help="inference mode (%(default)s)")
    parser.add_argument("--task", type=int, default=0, help=f"task of {SUITE} (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="episodes per loop (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    arguments = parser.parse_args(argv)
    if not 1 <= arguments.rounds <= 50:
        parser.error("--rounds: expected 1..50")
    try:
        result = measure(arguments.policy, arguments.mode, arguments.task, arguments.rounds)
    except RSDError as error:
        print(f"closed_loop: {error}", file=sys.stderr)
        return NOT_RUN
    print(f"{result['command']}\n{result['hardware']['cpu']}, {result['hardware']['cores']} cores, {result['date']}")
    for name, row in result["steps_per_s"].items():
        print(f"{name:<12}{row['median']:>8.1f} steps/s (median)")
    print(f"{'ratio':<12}{result['ratio']['median']:>8.2f} (asked: at least {ASKED})")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
