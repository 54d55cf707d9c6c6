"""Worker processes of `benchmarks.ablations`: each keeps a policy and the environment of its last task.

Every episode is handed over as soon as it is finished. A worker dies with its parent, whose end closes the pipe.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from rsd_policy.errors import EpisodeError

_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "LP_NUM_THREADS"), "1")


@dataclass(frozen=True, order=True)
class Spec:
    """One episode of one variant; sorted, episodes of one environment and engine are neighbours."""

    suite: str
    task: int
    variant: str
    trial: int


@dataclass(frozen=True)
class Outcome:
    """One episode.

    Attributes:
        skipped, deviated: chunks that the gate let through, and those of them that deviate from the main head's.
        compared, accepted: chunks whose draft was compared with the main head's, and those of them accepted.
        inference_ms, first_action_ms: summed over the chunks.
        error: why the episode could not be run; it is then run again by the next call.
    """

    suite: str
    task: int
    variant: str
    trial: int
    success: bool = False
    steps: int = 0
    chunks: int = 0
    skipped: int = 0
    deviated: int = 0
    compared: int = 0
    accepted: int = 0
    inference_ms: float = 0.0
    first_action_ms: float = 0.0
    error: str | None = None

    @property
    def spec(self) -> Spec:
        return Spec(self.suite, self.task, self.variant, self.trial)


def run(specs: Sequence[Spec], policy: str, device: str, workers: int) -> Generator[Outcome, None, None]:
    """Run episodes; yields each one's outcome when it is finished, in no particular order.

    Raises:
        EpisodeError: a worker died (out of memory, for example); what it had not handed over is not run.
    """
    blocks = _blocks(sorted(specs), workers)
    crew: dict[Connection, Any] = {}
    busy: dict[Connection, int] = {}
    try:
        for _ in range(min(workers, len(blocks))):
            connection, process = _start(policy, device, workers)
            crew[connection] = process
        for connection in crew:
            busy[connection] = _send(connection, blocks)
        while any(busy.values()):
            for ready in wait(list(crew)):
                assert isinstance(ready, Connection)
                connection = ready
                try:
                    outcome = connection.recv()
                except (EOFError, ConnectionError):
                    process = crew.pop(connection)
                    process.join(10)
                    left = busy.pop(connection)
                    raise EpisodeError(
                        f"worker {process.pid} ended with status {process.exitcode} and {left} episodes to run; "
                        "finished ones are kept, the same command runs the others (with fewer --workers, if memory "
                        "was short)"
                    ) from None
                busy[connection] -= 1
                if not busy[connection] and blocks:
                    busy[connection] = _send(connection, blocks)
                yield outcome
    finally:
        for connection, process in crew.items():
            connection.close()
            process.terminate()
        for process in crew.values():
            process.join(5)
            if process.is_alive():
                process.kill()


def _blocks(specs: list[Spec], workers: int) -> list[list[Spec]]:
    """Neighbours together: few enough blocks that environments are seldom made, and enough that no worker waits."""
    size = max(1, min(12, len(specs) // (4 * workers)))
    return [specs[start : start + size] for start in range(0, len(specs), size)]


def _send(connection: Connection, blocks: list[list[Spec]]) -> int:
    """Give the next block; returns how many outcomes will come."""
    block = blocks.pop(0)
    connection.send(block)
    return len(block)


def _start(policy: str, device: str, workers: int) -> tuple[Connection, Any]:
    ours, theirs = multiprocessing.Pipe()
    if workers > 1:
        os.environ.update(_ONE_THREAD)  # read by torch and the renderer when the child starts
    process = multiprocessing.get_context("spawn").Process(target=_work, args=(theirs, policy, device), daemon=True)
    # A child started here never sees Ctrl-C (the blocked mask is inherited): the parent decides when it ends.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    theirs.close()
    return ours, process


def _work(connection: Connection, policy: str, device: str) -> None:
    from benchmarks.ablations.variants import Drivers  # imports torch: not in the parent
    from rsd_policy import load_policy
    from sim_bridge.libero_env import LiberoEnv

    drivers = Drivers(load_policy(policy, device), device)
    env: LiberoEnv | None = None
    try:
        while True:
            for spec in connection.recv():
                try:
                    if env is None or (env.suite, env.task) != (spec.suite, spec.task):
                        if env is not None:
                            env.close()
                            env = None
                        env = LiberoEnv(spec.suite, spec.task)
                    outcome = _episode(env, drivers, spec)
                except Exception as error:  # recorded, and the next episode is run
                    traceback.print_exc()
                    outcome = Outcome(**vars(spec), error=f"{type(error).__name__}: {error}")
                    if env is not None:  # nobody knows what state it is in
                        env.close()
                        env = None
                connection.send(outcome)
    except (EOFError, ConnectionError):
        return  # the parent closed the pipe or is gone


def _episode(env: Any, drivers: Any, spec: Spec) -> Outcome:
    from rsd_policy.evaluation.in_process.episode import run_episode
    from rsd_policy.evaluation.protocol import EpisodeSpec
    from rsd_policy.evaluation.results import SUCCESS

    driver = drivers.make(spec.variant, spec.suite, spec.task, spec.trial)
    result = run_episode(env, driver, EpisodeSpec(spec.suite, spec.task, spec.trial, seed=0))
    compared = [chunk for chunk in result.chunks if chunk.accepted is not None]
    return Outcome(
        **vars(spec),
        success=result.outcome == SUCCESS,
        steps=result.steps,
        chunks=len(result.chunks),
        skipped=sum(chunk.skipped for chunk in result.chunks),
        deviated=sum(bool(chunk.audit_deviated) for chunk in result.chunks),
        compared=len(compared),
        accepted=sum(bool(chunk.accepted) for chunk in compared),
        inference_ms=sum(chunk.inference_ms for chunk in result.chunks),
        first_action_ms=sum(chunk.first_action_ms for chunk in result.chunks),
    )
