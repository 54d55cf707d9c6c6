"""Worker processes: every job is heard, and what ends one is said."""

from __future__ import annotations

import multiprocessing
import os
import time
from typing import Any

import pytest

from rsd_policy.errors import EpisodeError
from sim_bridge.crew import CurrentEnv, results_of, telling


def _work(jobs: int, fault: str, taken: Any, results: Any, index: int) -> None:
    with telling(results, index):
        while True:
            with taken.get_lock():
                job = taken[0]
                taken[0] += 1
            if job >= jobs:
                return
            if fault == "raises":
                raise ValueError("no such seed")
            if fault == "dies":
                os._exit(3)
            if fault == "hangs" and job:
                time.sleep(600)
            results.put(job)


def test_each_job_gives_one_result() -> None:
    assert sorted(results_of(_work, (5, ""), tasks=1, jobs=5, workers=2)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("fault", "said"), [("raises", r"worker \d: ValueError: no such seed"), ("dies", r"exit codes \[3\]")]
)
def test_what_ends_a_worker_is_said(fault: str, said: str) -> None:
    with pytest.raises(EpisodeError, match=said):
        list(results_of(_work, (5, fault), tasks=1, jobs=5, workers=1))


def test_who_stops_listening_ends_the_workers() -> None:
    """An interrupted collection must not leave simulations behind that nobody waits for."""
    results = results_of(_work, (2, "hangs"), tasks=1, jobs=2, workers=1)
    assert next(results) == 0
    (child,) = multiprocessing.active_children()
    results.close()
    assert child.exitcode is not None


class _Env:
    def __init__(self, suite: str, task: int) -> None:
        self.name, self.open = (suite, task), True

    def close(self) -> None:
        self.open = False


def test_another_task_replaces_the_environment_and_the_same_keeps_it() -> None:
    envs = CurrentEnv(_Env)  # type: ignore[arg-type]
    first = envs.of("libero_goal", 1)
    assert envs.of("libero_goal", 1) is first
    second: Any = envs.of("libero_goal", 2)
    assert not first.open and second.open and second.name == ("libero_goal", 2)  # type: ignore[attr-defined]
    envs.close()
    assert not second.open and envs.of("libero_goal", 2) is not second
