"""Which task a worker of `rsd collect` turns to next."""

from __future__ import annotations

from collections import Counter

from sim_bridge.collect import LEAD, next_task


def test_a_collection_ended_early_holds_every_task_though_workers_are_fewer() -> None:
    tasks, seeds = tuple(range(10)), [1000] * 10
    taken = [0] * 10
    current = [0, 1, 2]  # three workers
    changes = 0
    for turn in range(300):
        worker = turn % 3
        task = next_task(tasks, seeds, taken, current[worker])
        assert task is not None
        changes += task != current[worker]
        current[worker] = task
        taken[task] += 1
    assert min(taken) > 0 and max(taken) - min(taken) <= LEAD + 3
    assert changes < 60  # a change costs a new environment


def test_every_seed_is_taken_once_whatever_their_numbers() -> None:
    tasks, seeds = (2, 5, 7), [1, 30, 4]
    taken, order = [0, 0, 0], []
    current: int | None = 5
    while (current := next_task(tasks, seeds, taken, 5 if not order else order[-1])) is not None:
        order.append(current)
        taken[tasks.index(current)] += 1
    assert Counter(order) == {2: 1, 5: 30, 7: 4}
