"""Worker processes that record calibration rollouts, and the progress display above them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from rsd_policy.training.gate.rollouts import Place
from sim_bridge.crew import CurrentEnv, results_of, telling


def record(
    places: Sequence[Place],
    directory: Path,
    policy: str,
    base: str | None,
    device: str,
    execute_steps: int,
    workers: int,
) -> int:
    """Record every place that has no file yet; an interrupted call goes on where it was.

    Args:
        places: episodes; those of one task in a row, since an environment is made once per task.
        policy, base: see `load_policy`; loaded by each worker.

    Returns:
        the number of episodes recorded now.

    Raises:
        EpisodeError: a worker ended before its work was done.
    """
    todo = [place for place in places if not place.path(directory).exists()]
    if not todo:
        return 0
    groups: dict[tuple[str, int], list[Place]] = {}
    for place in todo:
        groups.setdefault((place.suite, place.task), []).append(place)
    tasks = list(groups.values())
    columns = (
        TextColumn("rollouts"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[chunks]} chunks  success {task.fields[success]:.1%}  {task.fields[rate]:.2f}/s  ETA"),
        TimeRemainingColumn(),
    )
    done = solved = chunks = 0
    start = time.monotonic()
    arguments = (tasks, directory, policy, base, device, execute_steps)
    results = results_of(_work, arguments, tasks=len(tasks), jobs=len(todo), workers=workers)
    before = len(places) - len(todo)
    with Progress(*columns, console=Console(stderr=True)) as progress, closing(results):
        bar = progress.add_task("", total=len(places), completed=before, chunks=0, success=0.0, rate=0.0)
        for success, count in results:
            done, solved, chunks = done + 1, solved + success, chunks + count
            rate = done / (time.monotonic() - start)
            progress.update(bar, advance=1, chunks=chunks, success=solved / done, rate=rate)
    return done


def _work(
    tasks: list[list[Place]],
    directory: Path,
    policy_name: str,
    base: str | None,
    device: str,
    execute_steps: int,
    taken: Any,
    results: Any,
    index: int,
) -> None:
    """A worker process: takes episodes, staying with one task for as long as it has any."""
    import torch

    from rsd_policy.checkpoints.loading import load_policy
    from rsd_policy.training.gate.rollouts import fingerprint, roll_out
    from sim_bridge.libero_env import LiberoEnv

    with telling(results, index), closing(CurrentEnv(LiberoEnv)) as envs:
        torch.set_num_threads(1)
        policy = load_policy(policy_name, base=base)
        digest = fingerprint(policy)
        policy.to(torch.device(device))
        row = index % len(tasks)
        while (job := _take(tasks, taken, row)) is not None:
            row, place = job
            rollout = roll_out(envs.of(place.suite, place.task), policy, place, digest, execute_steps)
            rollout.save(directory)
            results.put((rollout.success, len(rollout.first)))


def _take(tasks: list[list[Place]], taken: Any, row: int) -> tuple[int, Place] | None:
    """The next episode: of the same task while it has any, else of the task with most left."""
    with taken.get_lock():
        left = [len(places) - taken[i] for i, places in enumerate(tasks)]
        if left[row] <= 0:
            row = left.index(max(left))
        if left[row] <= 0:
            return None
        place = tasks[row][taken[row]]
        taken[row] += 1
        return row, place
