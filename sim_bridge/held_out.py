"""What training must never see: LIBERO-PRO's wordings, and the placements of every shipped initial state."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from rsd_policy.errors import SetupError
from rsd_policy.libero import BASE_SUITE, EVALUATED_SUITES, SUITES
from rsd_policy.training.mini.paraphrase import plain
from sim_bridge.libero_assets import import_libero, load_init_states, num_tasks, task_spec

APART = 0.01
"""A placement counts as another one when at least one object stands so far (m) from where a shipped state has it."""

FEWEST = 2
"""Objects that two placements must share to be compared: any place of a single object is near to some state's."""

ROBOT_JOINTS = 9
"""MuJoCo's positions of the Panda: seven joints and two fingers; those of the objects, seven each, follow them."""


@cache
def held_out_wordings() -> frozenset[str]:
    """`plain` wordings that stand in LIBERO-PRO's task definitions and are not LIBERO's own; none where no LIBERO with
    perturbed suites is installed."""
    try:
        own = {plain(task_spec(suite, task).instruction) for suite in SUITES for task in range(num_tasks(suite))}
        perturbed = [task_spec(suite, task) for suite in BASE_SUITE for task in range(num_tasks(suite))]
    except SetupError:
        return frozenset()
    defined = {spec.bddl_file.read_text(encoding="utf-8") for spec in perturbed}
    said = {match[1] for text in defined if (match := re.search(r"\(:language\s+([^()]+)\)", text))}
    return frozenset({plain(text) for text in said} - own)


@dataclass(frozen=True)
class _Shipped:
    names: tuple[str, ...]
    positions: NDArray[np.float64]  # [states, objects, 3], m


@cache
def _shipped(problem: str) -> tuple[_Shipped, ...]:
    """The initial states of every task, LIBERO's and LIBERO-PRO's, in scenes of one kind."""
    import_libero()
    from libero.libero.envs.bddl_utils import robosuite_parse_problem

    found = []
    for suite in EVALUATED_SUITES:
        try:
            specs = [task_spec(suite, task) for task in range(num_tasks(suite))]
        except SetupError:
            continue
        for spec in specs:
            parsed = robosuite_parse_problem(str(spec.bddl_file))
            if parsed["problem_name"] != problem:
                continue
            names = tuple(name for instances in parsed["objects"].values() for name in instances)
            first = 1 + ROBOT_JOINTS  # after the time
            states = load_init_states(spec)[:, first : first + 7 * len(names)]
            found.append(_Shipped(names, states.reshape(len(states), len(names), 7)[:, :, :3]))
    return tuple(found)


def distance_to_shipped(problem: str, placement: Mapping[str, NDArray[np.float64]]) -> float:
    """How far (m) the object that moved most is from where the most similar shipped state has it.

    Args:
        problem: LIBERO's name of the problem class, e.g. "libero_tabletop_manipulation".
        placement: name of each movable object -> its position [3], m.

    Returns:
        infinity where no shipped state has `FEWEST` of these objects.
    """
    nearest = float("inf")
    for shipped in _shipped(problem):
        common = [index for index, name in enumerate(shipped.names) if name in placement]
        if len(common) >= FEWEST:
            here = np.stack([placement[shipped.names[index]] for index in common])
            apart = np.linalg.norm(shipped.positions[:, common] - here, axis=2).max(axis=1)
            nearest = min(nearest, float(apart.min()))
    return nearest
