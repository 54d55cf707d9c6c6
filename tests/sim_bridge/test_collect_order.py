"""Which seed a worker of `rsd collect` turns to next, and what an error costs it."""

from __future__ import annotations

from collections import Counter

import pytest

from sim_bridge.collection import BROKEN_IN_A_ROW, LEAD, Outcome, next_task, run_seeds


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
    taken = [0, 0, 0]
    order: list[int] = []
    current: int | None = 5
    while (current := next_task(tasks, seeds, taken, 5 if not order else order[-1])) is not None:
        order.append(current)
        taken[tasks.index(current)] += 1
    assert Counter(order) == {2: 1, 5: 30, 7: 4}


def test_an_error_costs_one_seed_and_a_fault_of_every_seed_ends_the_worker() -> None:
    def worker(faulty: set[int]) -> list[Outcome]:
        seeds = iter([(4, seed) for seed in range(8)])
        outcomes: list[Outcome] = []

        def attempt(task: int, seed: int) -> Outcome:
            if seed in faulty:
                raise ValueError(f"seed {seed}")
            return Outcome(task, seed, True, 50, "done")

        run_seeds(lambda task: next(seeds, None), attempt, outcomes.append)
        return outcomes

    outcomes = worker({0, 1, 5})
    assert [o.seed for o in outcomes] == list(range(8))
    assert [o.seed for o in outcomes if o.broken] == [0, 1, 5] and outcomes[5].phase == "ValueError: seed 5"
    with pytest.raises(ValueError, match=f"seed {BROKEN_IN_A_ROW + 1}"):
        worker(set(range(2, 8)))
