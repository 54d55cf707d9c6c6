"""The scenes of LIBERO's own suites, as material for composed tasks: who is there, and where fixtures stand."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

from rsd_policy.libero import SUITES
from sim_bridge.libero_assets import import_libero, num_tasks, task_spec

WEIGHT_OF_LIBERO_90 = 0.3
"""A scene is drawn as often as it has tasks; those of libero_90 count so much."""


@dataclass(frozen=True)
class Place:
    """Where a fixture stands on the table: x, y in m from its middle, yaw in rad."""

    x: float
    y: float
    yaw: float


@dataclass(frozen=True)
class SceneDefinition:
    """One scene of LIBERO.

    Attributes:
        problem: LIBERO's name of the problem class. table: name of its table or floor. table_category: of that.
        fixtures, objects: name -> category, the table not among them.
        places: of each fixture.
        regions: (fixture or object, name within it) of everything that something can be put on or into.
        weight: how often it is drawn, relative to the others.
    """

    problem: str
    table: str
    table_category: str
    fixtures: dict[str, str]
    objects: dict[str, str]
    places: dict[str, Place]
    regions: tuple[tuple[str, str], ...]
    weight: float = field(compare=False)


@cache
def scenes() -> tuple[SceneDefinition, ...]:
    """Every scene once, in the order of the suites."""
    import_libero()
    from libero.libero.envs.bddl_utils import robosuite_parse_problem

    found: dict[tuple[object, ...], SceneDefinition] = {}
    for suite in SUITES:
        for task in range(num_tasks(suite)):
            scene = _scene(
                robosuite_parse_problem(str(task_spec(suite, task).bddl_file)),
                WEIGHT_OF_LIBERO_90 if suite == "libero_90" else 1.0,
            )
            key = (scene.problem, tuple(scene.fixtures), tuple(scene.objects), tuple(scene.places.values()))
            before = found.get(key)
            found[key] = (
                scene if before is None else SceneDefinition(**{**vars(scene), "weight": scene.weight + before.weight})
            )
    return tuple(found.values())


def _scene(parsed: dict[str, Any], weight: float) -> SceneDefinition:
    named = {name: category for category, names in parsed["fixtures"].items() for name in names}
    objects = {name: category for category, names in parsed["objects"].items() for name in names}
    regions = parsed["regions"]
    places = {}
    for state in parsed["initial_state"]:
        if state[0] == "on" and state[1] in named:
            low_x, low_y, high_x, high_y = regions[state[2]]["ranges"][0]
            yaw = sum(regions[state[2]]["yaw_rotation"]) / 2
            places[state[1]] = Place((low_x + high_x) / 2, (low_y + high_y) / 2, yaw)
    (table,) = [name for name in named if name not in places]
    inner = [
        (region["target"], name.removeprefix(f"{region['target']}_"))
        for name, region in regions.items()
        if not region["ranges"] and (region["target"] in places or region["target"] in objects)
    ]
    fixtures = {name: category for name, category in named.items() if name != table}
    return SceneDefinition(
        parsed["problem_name"], table, named[table], fixtures, objects, places, tuple(sorted(inner)), weight
    )
