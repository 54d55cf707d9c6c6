"""Composed tasks by number: the same number is the same task, on every machine."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rsd_policy.errors import SimulationError
from sim_bridge.compose.goals import ComposedGoal, goals
from sim_bridge.compose.layout import Layout, draw_layout, write_definition
from sim_bridge.compose.scenes import SceneDefinition, scenes

SUITE = "composed"
"""Name under which demonstrations of composed tasks are kept."""

MAX_STEPS = 520
"""Control steps that an episode of a composed task may take: as many as LIBERO's longest suite allows."""

EXTRA = (0.6, 0.3, 0.1)
"""How often no, one and two objects of other scenes are added."""


@dataclass(frozen=True)
class ComposedTask:
    """A task that LIBERO does not have.

    Attributes:
        number: decides everything about it.
        scene, goal, layout: what it was made from.
        definition: its BDDL text; its instruction depends on the placement, so the text holds only the skill.
    """

    number: int
    scene: SceneDefinition
    goal: ComposedGoal
    layout: Layout
    definition: str


def compose(number: int) -> ComposedTask:
    """The task of that number.

    Raises:
        SimulationError: no layout with room for its goal was found, which no number is known to give.
    """
    rng = np.random.default_rng([number, 18])
    choices = scenes()
    weights = np.array([scene.weight for scene in choices])
    scene = choices[int(rng.choice(len(choices), p=weights / weights.sum()))]
    known = [category for other in choices for category in other.objects.values()]
    for _ in range(200):
        skills = goals(scene)
        skill = sorted(skills)[int(rng.integers(len(skills)))]
        goal = skills[skill][int(rng.integers(len(skills[skill])))]
        count = int(rng.choice(len(EXTRA), p=EXTRA))
        extra = [known[int(rng.integers(len(known)))] for _ in range(count)]
        layout = draw_layout(scene, goal, extra, rng)
        if layout is not None:
            text = write_definition(scene, layout, goal, f"{SUITE} {number} {goal.skill}")
            return ComposedTask(number, scene, goal, layout, text)
    raise SimulationError(f"composed task {number}: expected a layout with room for its goal, found none in 200 draws")
