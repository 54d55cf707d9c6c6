"""In-process episodes in worker processes: one simulation and one policy each, supervised by the caller.

Workers run even when there is one: a simulation that crashes, hangs or is killed for memory then ends one episode with
a name instead of the whole program without one.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from rsd_policy.errors import EpisodeError
from rsd_policy.evaluation.in_process.worker import Job, work
from rsd_policy.evaluation.protocol import EvalConfig
from rsd_policy.evaluation.recorder import Recorder
from rsd_policy.evaluation.results import ERROR, EpisodeResult

STALL_TIMEOUT_S = 300.0
"""A busy worker that reports nothing for so long is wedged: far above creating an environment or loading a policy."""

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "LP_NUM_THREADS")
"""OpenMP (torch), MKL, OpenBLAS (numpy) and Mesa's software renderer read these when they start."""


@dataclass
class _Worker:
    process: Any
    connection: Connection
    log: Path
    job: Job | None = None
    task: int | None = None
    ready: bool = False
    heard: float = field(default_factory=time.monotonic)


def run_in_workers(
    config: EvalConfig,
    recorder: Recorder,
    jobs: Sequence[Job],
    *,
    workers: int,
    video: bool,
    stall_timeout_s: float = STALL_TIMEOUT_S,
) -> None:
    """Run the jobs; every finished episode is recorded at once, and is followed by its video when `video` is set.

    An episode that raises is recorded as an error and the next one is run. A worker that dies or hangs takes no
    further job; the others finish what is left. What the workers printed (worker-*.log) is kept when there are errors.

    Raises:
        CheckpointError, SetupError: a worker could not load the policy.
        EpisodeError: jobs are left and no worker is, or a video could not be made.
    """
    queue = list(jobs)
    failures: list[str] = []
    crew: list[_Worker] = []
    try:
        for index in range(min(workers, len(queue))):
            crew.append(_start(config, recorder.store.directory, index, workers, video))
        while crew and (queue or any(worker.job for worker in crew)):
            for worker in crew:
                if worker.ready and worker.job is None and queue:
                    _assign(worker, queue, crew, recorder)
            waiting = [worker.connection for worker in crew] + [worker.process.sentinel for worker in crew]
            ready = wait(waiting, timeout=1.0)
            for worker in list(crew):
                problem = None
                if worker.connection in ready or worker.process.sentinel in ready:
                    problem = _hear(worker, queue, recorder, failures, video)
                elif (worker.job or not worker.ready) and time.monotonic() - worker.heard > stall_timeout_s:
                    problem = f"worker {worker.process.pid} reported nothing for {stall_timeout_s:.0f} s and was ended"
                if problem:
                    crew.remove(worker)
                    _end([worker])
                    _blame(worker, problem, recorder, failures)
        if queue:
            failures.append(f"{len(queue)} episodes or videos were not begun: no worker is left")
    finally:
        _end(crew)
    if failures:
        raise EpisodeError("; ".join(failures))
    if not any(result.outcome == ERROR for result in recorder.store.episodes()):
        for log in recorder.store.directory.glob("worker-*.log"):
            log.unlink()


def _assign(worker: _Worker, queue: list[Job], crew: Sequence[_Worker], recorder: Recorder) -> None:
    """Give the next job: of the task whose environment the worker has, else of a task that nobody works on."""
    taken = {other.task for other in crew if other is not worker and other.job}
    best = min(queue, key=lambda job: (job.spec.task != worker.task, job.spec.task in taken))
    queue.remove(best)
    worker.job, worker.task, worker.heard = best, best.spec.task, time.monotonic()
    recorder.progress.started(best.spec, "video of " if best.replay else "")
    try:
        worker.connection.send(best)
    except ConnectionError:
        return  # it just died: its sentinel says so in the next round, and the job is named there


def _hear(worker: _Worker, queue: list[Job], recorder: Recorder, failures: list[str], video: bool) -> str | None:
    """Take what a worker says. Returns what went wrong when it is gone."""
    worker.heard = time.monotonic()
    try:
        while worker.connection.poll():
            kind, *content = worker.connection.recv()
            if kind == "ready":
                worker.ready = True
            elif kind == "refused":
                raise content[0]
            elif kind == "step" and worker.job is not None:
                recorder.stepped(worker.job.spec, *content)
            elif kind == "result":
                result: EpisodeResult = content[0]
                recorder.finished(result)
                worker.job = None
                if video and result.outcome != ERROR:
                    queue.insert(0, Job(result.spec, replay=result))
            elif kind == "video" and worker.job is not None:
                recorder.progress.ended(worker.job.spec)
                worker.job = None
                if content[0] is not None:
                    failures.append(content[0])
    except (EOFError, ConnectionError):
        worker.process.join(timeout=10)
        code = worker.process.exitcode
        if code is not None and code < 0:
            reason = f"was killed by {signal.Signals(-code).name}"
            reason += " (out of memory?)" if code == -signal.SIGKILL else ""
        else:
            reason = f"ended with status {code}"
        return f"worker {worker.process.pid} {reason}; its output is in {worker.log}"
    return None


def _blame(worker: _Worker, problem: str, recorder: Recorder, failures: list[str]) -> None:
    if worker.job is None:
        failures.append(problem)
        return
    failures.append(f"{worker.job}: {problem}")
    if worker.job.replay is None:
        recorder.finished(EpisodeResult(worker.job.spec, ERROR, steps=0, error=problem))


def _start(config: EvalConfig, directory: Path, index: int, workers: int, video: bool) -> _Worker:
    ours, theirs = multiprocessing.Pipe()
    log = directory / f"worker-{index}.log"
    # One worker has the machine to itself, as the policy node has: equal thread counts give equal sums, bit for bit.
    share = max(1, len(os.sched_getaffinity(0)) // workers)
    threads = {name: str(share) for name in _THREAD_VARIABLES} if workers > 1 else {}
    process = multiprocessing.get_context("spawn").Process(
        target=work, args=(theirs, config, directory, log, video), name=f"rsd-eval-{index}", daemon=True
    )
    with _environment(threads), _blocked_interrupt():
        process.start()
    theirs.close()
    return _Worker(process, ours, log)


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Set variables for child processes; what the user has set wins."""
    added = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


@contextmanager
def _blocked_interrupt() -> Iterator[None]:
    """A child started here never sees Ctrl-C (the blocked mask is inherited): the parent decides when it ends."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end(crew: Sequence[_Worker]) -> None:
    for worker in crew:
        worker.connection.close()  # an idle worker ends by itself at this
        worker.process.join(timeout=0.2)
        worker.process.terminate()
    for worker in crew:
        worker.process.join(timeout=5)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()
