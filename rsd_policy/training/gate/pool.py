"""Worker processes that record calibration rollouts, and the progress display above them."""

from __future__ import annotations

import multiprocessing
import os
import queue
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from rsd_policy.errors import EpisodeError
from rsd_policy.training.gate.rollouts import Place


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
    # one thread each: the workers are the parallelism (read by OpenMP and by Mesa's llvmpipe)
    os.environ.update(LP_NUM_THREADS="1", OMP_NUM_THREADS="1")
    groups: dict[tuple[str, int], list[Place]] = {}
    for place in todo:
        groups.setdefault((place.suite, place.task), []).append(place)
    tasks = list(groups.values())
    context = multiprocessing.get_context("spawn")
    taken = context.Array("q", len(tasks))
    results: Any = context.Queue()
    processes = [
        context.Process(
            target=_work,
            args=(tasks, taken, results, index, directory, policy, base, device, execute_steps),
            daemon=True,
        )
        for index in range(min(workers, len(todo)))
    ]
    for process in processes:
        process.start()
    columns = (
        TextColumn("rollouts"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[chunks]} chunks  success {task.fields[success]:.1%}  {task.fields[rate]:.2f}/s  ETA"),
        TimeRemainingColumn(),
    )
    done = solved = chunks = 0
    start = time.monotonic()
    try:
        with Progress(*columns, console=Console(stderr=True)) as progress:
            bar = progress.add_task(
                "", total=len(places), completed=len(places) - len(todo), chunks=0, success=0.0, rate=0.0
            )
            while done < len(todo):
                success, count = _next(results, processes)
                done, solved, chunks = done + 1, solved + success, chunks + count
                rate = done / (time.monotonic() - start)
                progress.update(bar, advance=1, chunks=chunks, success=solved / done, rate=rate)
    finally:
        for process in processes:
            if done < len(todo):
                process.terminate()
            process.join(timeout=30)
    return done


def _next(results: Any, processes: Sequence[Any]) -> tuple[bool, int]:
    while True:
        try:
            result = results.get(timeout=1.0)
        except queue.Empty:
            codes = [process.exitcode for process in processes]
            if any(code not in (None, 0) for code in codes) or None not in codes:
                raise EpisodeError(
                    f"workers: expected them to finish their episodes, got exit codes {codes}; "
                    "see their messages above (memory: about 2 GiB a worker), then give the same command again"
                ) from None
            continue
        if isinstance(result, str):
            raise EpisodeError(result)
        success, count = result
        return bool(success), int(count)


def _work(
    tasks: list[list[Place]],
    taken: Any,
    results: Any,
    index: int,
    directory: Path,
    policy_name: str,
    base: str | None,
    device: str,
    execute_steps: int,
) -> None:
    """A worker process: takes episodes, staying with one task for as long as it has any."""
    import torch

    from rsd_policy.checkpoints.loading import load_policy
    from rsd_policy.training.gate.rollouts import fingerprint, roll_out
    from sim_bridge.libero_env import LiberoEnv

    env: LiberoEnv | None = None
    try:
        torch.set_num_threads(1)
        policy = load_policy(policy_name, base=base)
        digest = fingerprint(policy)
        policy.to(torch.device(device))
        row = index % len(tasks)
        while (job := _take(tasks, taken, row)) is not None:
            row, place = job
            if env is None or (env.suite, env.task) != (place.suite, place.task):
                if env is not None:
                    env.close()
                env = LiberoEnv(place.suite, place.task)
            rollout = roll_out(env, policy, place, digest, execute_steps)
            rollout.save(directory)
            results.put((rollout.success, len(rollout.first)))
    except KeyboardInterrupt:
        return
    except Exception as error:  # whatever happened goes to the parent, which ends the run
        results.put(f"worker {index}: {type(error).__name__}: {error}")
        raise
    finally:
        if env is not None:
            env.close()


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
