"""Collecting demonstrations of the scripted expert from random placements, in worker processes.

The canonical initial states of the published evaluation are never used. One file per episode; an interrupted collection
goes on where it was when the same command is given again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sim_bridge.crew import CurrentEnv, results_of, telling
from sim_bridge.demonstrations import demonstration_path, write_demonstration

if TYPE_CHECKING:  # both import what workers must import after they have chosen an OpenGL back end
    from sim_bridge.drive import Pilot
    from sim_bridge.libero_env import LiberoEnv

FAILED_SUFFIX = ".failed.json"

BROKEN_IN_A_ROW = 3
"""Errors after which a worker gives up: what meets every seed is no bad luck."""

LEAD = 10
"""Seeds by which a task may be ahead of the one that is furthest behind before its workers turn to that one.

A worker stays with a task, because a change costs it a new environment (seconds), but not for as long as the task has
seeds: a collection that is ended by the clock would then hold nothing of the tasks that no worker began with.
"""


class PilotSource(Protocol):
    """What drives part of an episode, as it travels to the worker processes: loaded there, once."""

    def load(self) -> Callable[[int, int], Pilot]:
        """The maker of a pilot: (seed of the episode, step limit of its task) -> pilot."""
        ...


@dataclass(frozen=True)
class CollectConfig:
    """What to collect.

    Attributes:
        suite: LIBERO suite, or that of composed tasks. tasks: indices within it.
        seeds: range of placement seeds, the same for each task.
        out: directory to write to.
        noise: probability per control step that a burst of noise begins.
        image_size: edge of the stored frames, px. every: control steps per stored frame.
        pilot: drives most of a first part of each episode (DAgger), or None.
        looks: vary colours, light and cameras.
    """

    suite: str
    tasks: tuple[int, ...]
    seeds: range
    out: Path
    noise: float
    image_size: int
    every: int
    pilot: PilotSource | None
    looks: bool = False


@dataclass(frozen=True)
class Outcome:
    """Result of one seed; a demonstration was written when it succeeded.

    Attributes:
        phase: the expert's last phase, or the error that ended the attempt.
        broken: it ended with an error. No note is kept: the same command tries the seed again.
    """

    task: int
    seed: int
    success: bool
    steps: int
    phase: str
    broken: bool = False


def failed_path(config: CollectConfig, task: int, seed: int) -> Path:
    """Note about a seed that gave no demonstration, so that it is not tried again."""
    return demonstration_path(config.out, config.suite, task, seed).with_suffix(FAILED_SUFFIX)


def open_seeds(config: CollectConfig) -> dict[int, list[int]]:
    """Seeds of each task that have neither a demonstration nor a note."""
    return {
        task: [
            seed
            for seed in config.seeds
            if not demonstration_path(config.out, config.suite, task, seed).exists()
            and not failed_path(config, task, seed).exists()
        ]
        for task in config.tasks
    }


def collect(config: CollectConfig, workers: int) -> tuple[list[Outcome], float]:
    """Run every open seed in worker processes.

    Returns:
        outcomes of the seeds run now, and the seconds that took.

    Raises:
        EpisodeError: a worker ended before its work was done.
    """
    todo = open_seeds(config)
    total = len(config.tasks) * len(config.seeds)
    remaining = sum(map(len, todo.values()))
    outcomes: list[Outcome] = []
    start = time.monotonic()
    if remaining == 0:
        return outcomes, 0.0
    columns = (
        TextColumn("collect {task.fields[suite]}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:.2f} demos/s  success {task.fields[success]:.1%}  ETA"),
        TimeRemainingColumn(),
    )
    results = results_of(_work, (config, todo), tasks=len(config.tasks), jobs=remaining, workers=workers)
    with Progress(*columns, console=Console(stderr=True)) as progress, closing(results):
        bar = progress.add_task("", total=total, completed=total - remaining, suite=config.suite, rate=0.0, success=0.0)
        for outcome in results:
            outcomes.append(outcome)
            good = sum(o.success for o in outcomes)
            rate = good / (time.monotonic() - start)
            progress.update(bar, advance=1, rate=rate, success=good / len(outcomes))
    return outcomes, time.monotonic() - start


def _work(config: CollectConfig, todo: dict[int, list[int]], taken: Any, results: Any, index: int) -> None:
    """A worker process: takes seeds, staying with one task (one environment) for as long as `_take` lets it."""
    from sim_bridge.compose.env import open_task

    with telling(results, index), closing(CurrentEnv(open_task)) as envs:
        make_pilot = None if config.pilot is None else config.pilot.load()

        def attempt(task: int, seed: int) -> Outcome:
            try:
                return _attempt(config, envs.of(config.suite, task), make_pilot, seed)
            except Exception:
                envs.close()  # whatever state the error left the simulator in is not that of the next seed
                raise

        first = config.tasks[index % len(config.tasks)]
        run_seeds(lambda task: _take(config, todo, taken, first if task is None else task), attempt, results.put)


def run_seeds(
    take: Callable[[int | None], tuple[int, int] | None],
    attempt: Callable[[int, int], Outcome],
    report: Callable[[Outcome], object],
) -> None:
    """Attempt seeds until there is none left. An error costs its seed; BROKEN_IN_A_ROW errors end the worker.

    A long collection should not be lost with one odd state of the simulator; a fault that every seed meets should not
    be met a thousand times.

    Args:
        take: gives the next (task, seed) after a seed of the given task (None at first), None when there is none.
        attempt: drives one. report: told every outcome.
    """
    broken = 0
    task: int | None = None
    while (job := take(task)) is not None:
        task, seed = job
        try:
            outcome = attempt(task, seed)
            broken = 0
        except Exception as error:
            broken += 1
            if broken == BROKEN_IN_A_ROW:
                raise
            outcome = Outcome(task, seed, False, 0, f"{type(error).__name__}: {error}", broken=True)
        report(outcome)


def _attempt(
    config: CollectConfig, env: LiberoEnv, make_pilot: Callable[[int, int], Pilot] | None, seed: int
) -> Outcome:
    from sim_bridge.drive import drive

    driven = drive(
        env,
        seed,
        noise=config.noise,
        image_size=config.image_size,
        every=config.every,
        pilot=None if make_pilot is None else make_pilot(seed, env.max_steps),
        looks=config.looks,
    )
    outcome = Outcome(env.task, seed, driven.success, driven.steps, driven.phase)
    if driven.demonstration is not None and driven.trace is not None:
        write_demonstration(config.out, driven.demonstration, driven.trace)
    else:
        note = failed_path(config, env.task, seed)
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(json.dumps(asdict(outcome)))
    return outcome


def _take(config: CollectConfig, todo: dict[int, list[int]], taken: Any, task: int) -> tuple[int, int] | None:
    """The next (task, seed), and None when all are taken: see `next_task`."""
    with taken.get_lock():
        following = next_task(config.tasks, [len(todo[t]) for t in config.tasks], list(taken), task)
        if following is None:
            return None
        task = following
        position = config.tasks.index(task)
        seed = todo[task][taken[position]]
        taken[position] += 1
        return task, seed


def next_task(tasks: Sequence[int], seeds: Sequence[int], taken: Sequence[int], current: int) -> int | None:
    """The current task, until it has no seed left or is LEAD seeds ahead of another; then the one furthest behind.

    Args:
        tasks: of the collection. seeds, taken: of each task, how many were open at the start and have been taken since.
        current: the worker's task.

    Returns:
        a task with an open seed, or None when there is none.
    """
    open_tasks = [i for i in range(len(tasks)) if taken[i] < seeds[i]]
    if not open_tasks:
        return None
    position, behind = tasks.index(current), min(open_tasks, key=lambda i: taken[i])
    stays = position in open_tasks and taken[position] < taken[behind] + LEAD
    return current if stays else tasks[behind]
