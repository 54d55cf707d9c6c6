"""What the expert can do: successes on random placements, measured and kept beside this module.

    python -m sim_bridge.expert.measured --task-suite libero_goal --tasks 1,4 --placements 10

measures tasks without rendering and writes them into the table; `./rsd collect --list` prints it.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from rsd_policy.files import write_text

TABLE = Path(__file__).with_name("measured.json")

ATTEMPTS = 6
"""Grasps per placement, as in the published figures of scripted experts."""

FIRST_SEED = 3000
"""Placements are drawn from this seed on; canonical initial states are never used."""

RELIABLE = 0.8
"""Share of the placements that a reliable task is solved from."""


@dataclass(frozen=True)
class Measured:
    """One task's result.

    Attributes:
        suite: LIBERO suite. task: index within it.
        solved: placements solved within the task's step limit. placements: tried.
        median_steps: of the solved ones, None without any.
        date: day of the measurement.
    """

    suite: str
    task: int
    solved: int
    placements: int
    median_steps: float | None
    date: str

    @property
    def reliable(self) -> bool:
        """Solved from at least 8 of 10 placements."""
        return self.solved >= RELIABLE * self.placements


def read_table(path: Path = TABLE) -> list[Measured]:
    """All results, by suite and task."""
    entries = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    return sorted((Measured(**entry) for entry in entries), key=lambda m: (m.suite, m.task))


def write_result(result: Measured, path: Path = TABLE) -> None:
    """Put a result into the table in place of the task's earlier one."""
    others = [m for m in read_table(path) if (m.suite, m.task) != (result.suite, result.task)]
    entries = sorted([*others, result], key=lambda m: (m.suite, m.task))
    lines = ",\n".join("  " + json.dumps(asdict(entry)) for entry in entries)
    write_text(path, f"[\n{lines}\n]\n")


def measure(suite: str, task: int, seeds: range) -> Iterator[tuple[int, int | None]]:
    """Let the expert try a task: (seed, control steps to success, or None)."""
    from sim_bridge.expert.scripted import ScriptedExpert
    from sim_bridge.libero_env import LiberoEnv

    with LiberoEnv(suite, task, render=False) as env:
        expert = ScriptedExpert(env, max_attempts=ATTEMPTS)
        for seed in seeds:
            env.reset(None, seed=seed)
            expert.reset()
            steps, solved = 0, False
            while not solved and not expert.failed and steps < env.max_steps:
                solved = env.step(expert.act(), render=False)
                steps += 1
            yield seed, steps if solved else None


def main(argv: list[str]) -> int:
    """Measure the tasks that are asked for."""
    parser = argparse.ArgumentParser(prog="python -m sim_bridge.expert.measured", description="Measure the expert.")
    parser.add_argument("--task-suite", required=True)
    parser.add_argument("--tasks", required=True, help="e.g. 1,4")
    parser.add_argument("--placements", type=int, default=10, help="random placements per task (default 10)")
    parser.add_argument("--table", type=Path, default=TABLE, help="table to write into (default: the package's)")
    arguments = parser.parse_args(argv)
    for task in map(int, arguments.tasks.split(",")):
        steps = []
        for seed, count in measure(arguments.task_suite, task, range(FIRST_SEED, FIRST_SEED + arguments.placements)):
            print(f"{arguments.task_suite} {task} seed {seed}: {count or 'not solved'}", flush=True)
            steps += [count] if count else []
        median = float(np.median(steps)) if steps else None
        today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
        write_result(
            Measured(arguments.task_suite, task, len(steps), arguments.placements, median, today), arguments.table
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
