"""Where things stand in a composed task: fixtures moved or mirrored, objects anywhere that a hand reaches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sim_bridge.compose.goals import BOWLS, CABINETS, SPOT, ComposedGoal
from sim_bridge.compose.scenes import Place, SceneDefinition

WORKSPACE: dict[str, tuple[float, float, float, float]] = {
    "libero_tabletop_manipulation": (-0.25, -0.33, 0.16, 0.33),
    "libero_floor_manipulation": (-0.26, -0.31, 0.20, 0.31),
    "libero_living_room_tabletop_manipulation": (-0.30, -0.33, 0.18, 0.33),
    "libero_kitchen_tabletop_manipulation": (-0.22, -0.33, 0.14, 0.33),
    "libero_study_tabletop_manipulation": (-0.10, -0.29, 0.23, 0.29),
}
"""Where movable objects may stand, for each kind of scene: smallest x and y, largest x and y, m from the table's
middle. The hull of what LIBERO's own tasks use there, the same to both sides of the robot, and 2 to 5 cm more."""

FOOTPRINT = {
    "wooden_cabinet": 0.16, "white_cabinet": 0.16, "flat_stove": 0.17, "wine_rack": 0.13, "microwave": 0.19,
    "desk_caddy": 0.13, "wooden_two_layer_shelf": 0.16,
}  # fmt: skip
"""Radius around a fixture's origin that another fixture keeps out of, m."""

FACES_THE_ROBOT = ("flat_stove",)
"""Fixtures that keep their front where it is when they change sides."""

SHIFT, TURN = 0.06, 0.3
"""Largest displacement (m) and turn (rad) of a fixture from the place that LIBERO, or its mirror image, gives it."""

SLACK = 0.005
"""A fixture's place varies so much between placements of one composition, m."""

MIRRORED, EXCHANGED, RAISED = 0.5, 0.3, 0.35
"""How often fixtures change sides, two fixtures change places, an object starts on or in something."""

BESIDE = {"flat_stove": 0.36, "plate": 0.15, "desk_caddy": 0.22}
"""Distance of a goal on the table from the origin of what it is beside, m."""

SPOT_HALF = 0.045
"""Half the edge of such a goal, m."""


@dataclass(frozen=True)
class Layout:
    """Where things are at the beginning of a composed task.

    Attributes:
        fixtures: where each stands.
        objects: name -> category of those that are there.
        settled: object -> where it starts if not anywhere on the table: a region or object, as ("on", name), or the
            inside of a drawer, which then is open, as ("in", name).
        fixed: objects that start at a given place of the table, for a goal beside them.
        spot: centre [2] of the region of the table that is asked for, m; None when none is.
    """

    fixtures: dict[str, Place]
    objects: dict[str, str]
    settled: dict[str, tuple[str, str]]
    fixed: dict[str, Place]
    spot: tuple[float, float] | None


def draw_layout(
    scene: SceneDefinition, goal: ComposedGoal, extra: list[str], rng: np.random.Generator
) -> Layout | None:
    """A random layout, or None when this draw leaves no room for the goal: draw again.

    Args:
        extra: categories of objects to add to those of the scene.
    """
    fixtures = _fixtures(scene, rng)
    if fixtures is None:
        return None
    needed = {name for state in goal.states for name in state[1:]} | {goal.beside[1] if goal.beside else ""}
    objects = dict(scene.objects)
    unneeded = [n for n in objects if n not in needed and not any(argument.startswith(n) for argument in needed)]
    if unneeded and rng.random() < 0.3:
        del objects[unneeded[int(rng.integers(len(unneeded)))]]
    for category in extra:
        number = 1 + max((int(n.rsplit("_", 1)[1]) for n, c in objects.items() if c == category), default=0)
        objects[f"{category}_{number}"] = category
    fixed: dict[str, Place] = {}
    spot = None
    if goal.beside is not None:
        side, reference = goal.beside
        low_x, low_y, high_x, high_y = WORKSPACE[scene.problem]
        if reference in fixtures:
            origin, category = fixtures[reference], scene.fixtures[reference]
        else:
            category = objects[reference]
            origin = Place(rng.uniform(low_x + 0.08, high_x - 0.06), rng.uniform(low_y + 0.15, high_y - 0.15), 0.0)
            fixed[reference] = origin
        # the camera looks at the robot: its right is the table's +y
        away = {"front": (1.0, 0.0), "left": (0.0, -1.0), "right": (0.0, 1.0)}[side]
        spot = (origin.x + BESIDE[category] * away[0], origin.y + BESIDE[category] * away[1])
        room = [abs(np.hypot(spot[0] - p.x, spot[1] - p.y)) for n, p in fixtures.items() if n != reference]
        if not (low_x < spot[0] < high_x and low_y < spot[1] < high_y) or min(room, default=1.0) < 0.2:
            return None
    settled = _settle(scene, goal, objects, rng)
    return Layout(fixtures, objects, settled, fixed, spot)


def _fixtures(scene: SceneDefinition, rng: np.random.Generator) -> dict[str, Place] | None:
    places = dict(scene.places)
    names = list(places)
    if len(names) > 1 and rng.random() < EXCHANGED:
        a, b = rng.choice(len(names), 2, replace=False)
        first, second = places[names[a]], places[names[b]]
        # each keeps its distance from the robot, which decides what is in reach of it
        places[names[a]] = _on_side(scene, names[a], Place(first.x, first.y, first.yaw), np.sign(second.y))
        places[names[b]] = _on_side(scene, names[b], Place(second.x, second.y, second.yaw), np.sign(first.y))
    if rng.random() < MIRRORED:
        places = {name: _on_side(scene, name, place, -np.sign(place.y)) for name, place in places.items()}
    moved = {
        name: Place(
            place.x + rng.uniform(-SHIFT, SHIFT),
            place.y + rng.uniform(-SHIFT, SHIFT),
            place.yaw + rng.uniform(-TURN, TURN),
        )
        for name, place in places.items()
    }
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            apart = np.hypot(moved[a].x - moved[b].x, moved[a].y - moved[b].y)
            if apart < FOOTPRINT[scene.fixtures[a]] + FOOTPRINT[scene.fixtures[b]]:
                return None
    return moved


def _on_side(scene: SceneDefinition, name: str, place: Place, side: float) -> Place:
    if side == np.sign(place.y) or side == 0:
        return place
    yaw = place.yaw if scene.fixtures[name] in FACES_THE_ROBOT else np.pi - place.yaw
    return Place(place.x, -place.y, yaw)


def _settle(
    scene: SceneDefinition, goal: ComposedGoal, objects: dict[str, str], rng: np.random.Generator
) -> dict[str, tuple[str, str]]:
    """Puts one bowl on something or into the top drawer, if there is one that may start there."""
    taken = {argument for state in (*goal.states, *goal.begin) for argument in state[1:]}
    bowls = [name for name, category in objects.items() if category == BOWLS[0]]
    if not bowls or rng.random() >= RAISED:
        return {}
    bowl = bowls[int(rng.integers(len(bowls)))]
    if bowl in {state[2] for state in goal.states if len(state) == 3}:
        return {}
    supports = [name for name, category in objects.items() if category in ("cookies", BOWLS[2])]
    for owner, part in scene.regions:
        category = scene.fixtures.get(owner, "")
        if part == "cook_region" or (part in ("top_side", "top_region") and category in CABINETS):
            supports.append(f"{owner}_{part}")
    supports = [s for s in supports if s not in taken and not any(s.startswith(t) for t in taken)]
    if not supports:
        return {}
    support = supports[int(rng.integers(len(supports)))]
    return {bowl: ("in" if support.endswith("top_region") else "on", support)}


def write_definition(scene: SceneDefinition, layout: Layout, goal: ComposedGoal, language: str) -> str:
    """A task definition that LIBERO loads.

    Args:
        language: what it is to hold as its instruction.
    """
    regions = [_region(scene.table, "anywhere", WORKSPACE[scene.problem])]
    init = []
    for name, place in layout.fixtures.items():
        box = (place.x - SLACK, place.y - SLACK, place.x + SLACK, place.y + SLACK)
        regions.append(_region(scene.table, f"{name}_place", box, yaw=place.yaw))
        init.append(f"(On {name} {scene.table}_{name}_place)")
    for name, place in layout.fixed.items():
        box = (place.x - SLACK, place.y - SLACK, place.x + SLACK, place.y + SLACK)
        regions.append(_region(scene.table, f"{name}_place", box))
        init.append(f"(On {name} {scene.table}_{name}_place)")
    if layout.spot is not None:
        x, y = layout.spot
        regions.append(_region(scene.table, SPOT, (x - SPOT_HALF, y - SPOT_HALF, x + SPOT_HALF, y + SPOT_HALF)))
    owned = {**scene.fixtures, **layout.objects}
    regions += [f"({part} (:target {owner}))" for owner, part in scene.regions if owner in owned]
    # large things first: they find room among small ones only with luck
    loose = [name for name in layout.objects if name not in layout.fixed and name not in layout.settled]
    for name in sorted(loose, key=lambda name: layout.objects[name] not in LARGE):
        init.append(f"(On {name} {scene.table}_anywhere)")
    init += [f"({predicate.capitalize()} {name} {where})" for name, (predicate, where) in layout.settled.items()]
    opened = [("open", where) for predicate, where in layout.settled.values() if predicate == "in"]
    init += [f"({predicate.capitalize()} {' '.join(names)})" for predicate, *names in (*opened, *goal.begin)]
    wanted = " ".join(f"({predicate.capitalize()} {' '.join(names)})" for predicate, *names in goal.states)
    fixtures = {scene.table: scene.table_category, **scene.fixtures}
    interest = dict.fromkeys(name for state in goal.states for name in state[1:])
    lines = [
        f"(define (problem {scene.problem})",
        "  (:domain robosuite)",
        f"  (:language {language})",
        *_block("regions", regions),
        *_block("fixtures", [f"{name} - {category}" for name, category in fixtures.items()]),
        *_block("objects", _by_category(layout.objects)),
        *_block("obj_of_interest", list(interest)),
        *_block("init", init),
        f"  (:goal (And {wanted}))",
        ")",
    ]
    return "\n".join(lines) + "\n"


LARGE = ("basket", "wooden_tray", "plate", "chefmate_8_frypan", "white_bowl", "akita_black_bowl")


def _region(table: str, name: str, box: tuple[float, float, float, float], yaw: float | None = None) -> str:
    ranges = " ".join(f"{value:.4f}" for value in box)
    turned = "" if yaw is None else f" (:yaw_rotation (({yaw:.4f} {yaw:.4f})))"
    return f"({name} (:target {table}) (:ranges (({ranges}))){turned})"


def _by_category(objects: dict[str, str]) -> list[str]:
    """ "a_1 a_2 - a": LIBERO's parser keeps the last line of a category only."""
    groups: dict[str, list[str]] = {}
    for name, category in objects.items():
        groups.setdefault(category, []).append(name)
    return [f"{' '.join(names)} - {category}" for category, names in groups.items()]


def _block(name: str, entries: list[str]) -> list[str]:
    return [f"  (:{name}", *(f"    {entry}" for entry in entries), "  )"]
