"""Processes that run simulations side by side: started, heard and ended in one way."""

from __future__ import annotations

import multiprocessing
import os
import queue
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rsd_policy.errors import EpisodeError

if TYPE_CHECKING:  # workers must import it after they have chosen an OpenGL back end
    from sim_bridge.libero_env import LiberoEnv


def results_of(
    work: Callable[..., None], arguments: tuple[Any, ...], *, tasks: int, jobs: int, workers: int
) -> Generator[Any, None, None]:
    """Results of `jobs` jobs as they come; close the iterator to end the processes early.

    Args:
        work: a module's function, run in each process as `work(*arguments, taken, results, index)`: it takes jobs under
            the lock of `taken` until there are none and puts one result into `results` for each.
        tasks: length of `taken`, zeros at first: how many jobs of each task were given out.

    Raises:
        EpisodeError: a worker said what ended it (`telling`), or ended before the work was done.
    """
    # one thread each: the workers are the parallelism (read by OpenMP and by Mesa's llvmpipe)
    os.environ.update(LP_NUM_THREADS="1", OMP_NUM_THREADS="1")
    context = multiprocessing.get_context("spawn")
    taken = context.Array("q", tasks)
    results: Any = context.Queue()
    processes = [
        context.Process(target=work, args=(*arguments, taken, results, index), daemon=True)
        for index in range(min(workers, jobs))
    ]
    for process in processes:
        process.start()
    heard = 0
    try:
        while heard < jobs:
            result = _next(results, processes)
            heard += 1
            yield result
    finally:
        for process in processes:
            if heard < jobs:
                process.terminate()
            process.join(timeout=30)


def _next(results: Any, processes: Sequence[Any]) -> Any:
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
        if isinstance(result, Ended):
            raise EpisodeError(str(result))
        return result


class Ended(str):
    """What ended a worker, in words."""


@contextmanager
def telling(results: Any, index: int) -> Iterator[None]:
    """Tell the parent what ends this worker; it ends the run. Ctrl-C, which the parent sees as well, needs no word."""
    try:
        yield
    except KeyboardInterrupt:
        return
    except Exception as error:
        results.put(Ended(f"worker {index}: {type(error).__name__}: {error}"))
        raise


class CurrentEnv:
    """The environment of the task that is worked on; that of another task, which takes seconds, replaces it.

    Args:
        make: gives the environment of a suite's task.
    """

    def __init__(self, make: Callable[[str, int], LiberoEnv]) -> None:
        self._make = make
        self._held: tuple[str, int, LiberoEnv] | None = None

    def of(self, suite: str, task: int) -> LiberoEnv:
        """The environment of this task."""
        if self._held is None or self._held[:2] != (suite, task):
            self.close()
            self._held = suite, task, self._make(suite, task)
        return self._held[2]

    def close(self) -> None:
        """Let go of it; the next one is new."""
        if self._held is not None:
            env = self._held[2]
            self._held = None
            env.close()
