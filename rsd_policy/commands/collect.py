"""`rsd collect`: demonstrations of the scripted expert from random placements, for training.

The canonical initial states of the published evaluation are never used. One file per episode; an interrupted collection
goes on where it was when the same command is given again. With --compose the tasks are not LIBERO's: they are composed
on the fly from what its scenes hold, things anywhere on the table, and told in words of our own.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from rsd_policy.errors import ArgumentError, RSDError
from rsd_policy.evaluation.protocol import parse_tasks
from rsd_policy.exit_status import DONE, INTERRUPTED, NOT_RUN, exit_status
from rsd_policy.libero import SUITES
from sim_bridge.collection import CollectConfig, Outcome, collect
from sim_bridge.compose.task import SUITE, compose
from sim_bridge.demonstrations import demonstration_path
from sim_bridge.libero_assets import task_spec


def main(argv: list[str]) -> int:
    """Parse arguments, collect, print a table. Returns the exit status (rsd_policy/exit_status.py)."""
    if "--list" in argv:
        return _list()
    try:
        config, workers = _parse(argv)
        outcomes, seconds = collect(config, workers)
    except RSDError as error:
        print(f"rsd collect: {error}", file=sys.stderr)
        return exit_status(error)
    except KeyboardInterrupt:
        print("rsd collect: interrupted; the same command goes on from here", file=sys.stderr)
        return INTERRUPTED
    if config.suite == SUITE:
        _report_skills(config, outcomes)
    else:
        _report_tasks(config, outcomes)
    _report_total(config, outcomes, seconds)
    broken = [o for o in outcomes if o.broken]
    for o in broken:
        print(f"rsd collect: task {o.task}, seed {o.seed}: {o.phase}", file=sys.stderr)
    if broken:
        print(f"rsd collect: {len(broken)} seeds met an error; the same command tries them again", file=sys.stderr)
    return NOT_RUN if broken else DONE


PLACEMENTS = 2
"""Placements per composed task: loading another task takes about as long as an episode."""


def _report_tasks(config: CollectConfig, outcomes: list[Outcome]) -> None:
    table = Table(title=f"{config.suite}: demonstrations from random placements")
    for heading in ("task", "tried now", "solved", "steps (median)", "on disk"):
        table.add_column(heading, justify="right")
    for task in config.tasks:
        mine = [o for o in outcomes if o.task == task]
        steps = [o.steps for o in mine if o.success]
        kept = sum(demonstration_path(config.out, config.suite, task, seed).exists() for seed in config.seeds)
        table.add_row(
            str(task),
            str(len(mine)),
            str(sum(o.success for o in mine)),
            f"{np.median(steps):.0f}" if steps else "-",
            str(kept),
        )
    Console().print(table)


def _report_skills(config: CollectConfig, outcomes: list[Outcome]) -> None:
    skills = {task: compose(task).goal.skill for task in config.tasks}
    table = Table(title="composed tasks: the expert's success per skill")
    for heading in ("skill", "tried now", "solved", "steps (median)"):
        table.add_column(heading, justify="left" if heading == "skill" else "right")
    for skill in sorted(set(skills.values())):
        mine = [o for o in outcomes if skills[o.task] == skill]
        steps = [o.steps for o in mine if o.success]
        median = f"{np.median(steps):.0f}" if steps else "-"
        table.add_row(skill, str(len(mine)), str(len(steps)), median)
    Console().print(table)


def _report_total(config: CollectConfig, outcomes: list[Outcome], seconds: float) -> None:
    console = Console()
    if outcomes:
        kept = sum(o.success for o in outcomes)
        console.print(f"{kept} demonstrations in {seconds:.0f} s ({kept / seconds:.2f} a second), in {config.out}")
    else:
        console.print(f"nothing to do: all {len(config.tasks) * len(config.seeds)} seeds were tried before")


def _list() -> int:
    # imports mujoco, which workers must do after they have chosen an OpenGL back end
    from sim_bridge.expert.measured import read_table

    table = Table(title="what the expert solves, undisturbed, from random placements")
    table.add_column("suite", min_width=14, no_wrap=True)
    table.add_column("task", justify="right", min_width=4)
    # a narrow terminal cuts the instruction alone
    table.add_column("instruction", no_wrap=True, overflow="ellipsis", max_width=20)
    for heading, width in (("solved", 8), ("steps", 5), ("measured", 10)):
        table.add_column(heading, justify="right", min_width=width)
    results = read_table()
    for m in results:
        steps = "-" if m.median_steps is None else f"{m.median_steps:.0f}"
        instruction = task_spec(m.suite, m.task).instruction
        solved = f"{m.solved} of {m.placements}"
        table.add_row(m.suite, str(m.task), instruction, solved, steps, m.date, style="" if m.reliable else "dim")
    console = Console()
    console.print(table)
    console.print(f"{sum(m.reliable for m in results)} of {len(results)} measured tasks solved from at least 8 of 10")
    console.print("measured with: python -m sim_bridge.expert.measured --task-suite SUITE --tasks 0,1,...")
    return 0


def _parse(argv: list[str]) -> tuple[CollectConfig, int]:
    parser = argparse.ArgumentParser(prog="rsd collect", description=__doc__)
    tasks_of = parser.add_mutually_exclusive_group()
    tasks_of.add_argument("--task-suite", default="libero_spatial", choices=SUITES)
    tasks_of.add_argument(
        "--compose", action="store_true", help=f"compose tasks on the fly, with {PLACEMENTS} placements each"
    )
    parser.add_argument("--tasks", default="0-9", help="of the suite, e.g. 0-9 or 0,4,9 (default 0-9)")
    parser.add_argument("--demos", type=int, default=2, help="placements tried per task, or in all with --compose (2)")
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 1), help="processes")
    parser.add_argument("--out", type=Path, default=Path("out/demos"))
    parser.add_argument("--seed", type=int, default=1000, help="first placement seed, or composed task (default 1000)")
    parser.add_argument("--noise", type=float, default=0.03, help="bursts of noise per control step (default 0.03)")
    parser.add_argument("--image-size", type=int, default=128, help="edge of the stored frames, px (default 128)")
    parser.add_argument("--looks", action="store_true", help="vary colours, light and cameras from episode to episode")
    parser.add_argument("--every", type=int, default=2, help="control steps per stored frame (default 2)")
    parser.add_argument("--policy", default=None, help="checkpoint that drives most of a first part (DAgger)")
    parser.add_argument("--device", default="cpu", help="of that policy (default cpu)")
    parser.add_argument("--list", action="store_true", help="print which tasks the expert solves, as measured")
    arguments = parser.parse_args(argv)
    for name, low in (("demos", 1), ("workers", 1), ("every", 1), ("image_size", 16), ("seed", 0)):
        if getattr(arguments, name) < low:
            parser.error(f"--{name.replace('_', '-')}: expected at least {low}, got {getattr(arguments, name)}")
    if not 0.0 <= arguments.noise <= 1.0:
        parser.error(f"--noise: expected a probability 0..1, got {arguments.noise}")
    try:
        tasks = parse_tasks(arguments.tasks, arguments.task_suite)
    except ArgumentError as error:
        parser.error(f"--tasks: {error}")
    pilot = None
    if arguments.policy is not None:
        from rsd_policy.training.pilot import PolicySource  # imports torch

        pilot = PolicySource(arguments.policy, arguments.device)
    seeds = range(arguments.seed, arguments.seed + arguments.demos)
    if arguments.compose:
        tasks = tuple(range(arguments.seed, arguments.seed + -(-arguments.demos // PLACEMENTS)))
        seeds = range(min(PLACEMENTS, arguments.demos))
    config = CollectConfig(
        suite=SUITE if arguments.compose else arguments.task_suite,
        tasks=tasks,
        seeds=seeds,
        out=arguments.out,
        noise=arguments.noise,
        image_size=arguments.image_size,
        every=arguments.every,
        pilot=pilot,
        looks=arguments.looks,
    )
    return config, arguments.workers
