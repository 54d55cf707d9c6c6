"""What can be asked for in a scene: the goals of composed tasks, as predicates of LIBERO's task definitions."""

from __future__ import annotations

from dataclasses import dataclass

from sim_bridge.compose.scenes import SceneDefinition

State = tuple[str, ...]
"""A predicate and its arguments, as LIBERO parses them, e.g. ("on", "plate_1", "flat_stove_1_cook_region")."""

BOXES = ("cream_cheese", "butter", "chocolate_pudding", "cookies")
BOTTLES = (
    "alphabet_soup", "tomato_sauce", "ketchup", "bbq_sauce", "salad_dressing", "new_salad_dressing", "milk",
    "orange_juice", "wine_bottle",
)  # fmt: skip
BOWLS = ("akita_black_bowl", "white_bowl", "glazed_rim_porcelain_ramekin")
MUGS = ("porcelain_mug", "white_yellow_mug", "red_coffee_mug")
POTS = ("moka_pot", "chefmate_8_frypan")
BOOKS = ("black_book", "yellow_book")
MOVABLE = (*BOXES, *BOTTLES, *BOWLS, *MUGS, *POTS, *BOOKS)

CABINETS = ("wooden_cabinet", "white_cabinet")
DRAWERS = ("top_region", "middle_region", "bottom_region")
CONTAINERS = ("basket", "wooden_tray")

RECEIVES: dict[str, tuple[str, ...]] = {
    "plate": (*BOXES, *BOTTLES, *BOWLS, *MUGS),
    "bowl": (*BOXES, "wine_bottle"),
    "basket": (*BOXES, *BOTTLES),
    "wooden_tray": (*BOXES, *BOTTLES, *BOWLS),
    "cook_region": (*BOWLS, *POTS, *BOXES),
    "top_side": (*BOWLS, *BOXES, *BOTTLES, *POTS),
    "drawer": (*BOWLS, *BOXES, "ketchup", "wine_bottle"),
    "shelf": (*BOWLS, *POTS, *BOOKS),
    "rack": ("wine_bottle", "cream_cheese"),
    "caddy": BOOKS,
    "microwave": MUGS,
    "table": (*BOXES, *BOTTLES, *BOWLS, *MUGS, "plate"),
}
"""Kind of place -> categories that go there."""


@dataclass(frozen=True)
class ComposedGoal:
    """What a composed task asks for.

    Attributes:
        skill: what it exercises, for the table of successes.
        states: predicates that must hold at the end.
        begin: predicates that must hold at the beginning (opened drawers, lit stoves).
        beside: of a goal on the table itself: which side of which object or fixture; None otherwise.
    """

    skill: str
    states: tuple[State, ...]
    begin: tuple[State, ...] = ()
    beside: tuple[str, str] | None = None

    @property
    def moved(self) -> tuple[str, ...]:
        """Names of the objects to move."""
        return tuple(state[1] for state in self.states if len(state) == 3)


SPOT = "goal_spot"
"""Name of the region of the table that a goal `beside` something asks for."""

SIDES = {"flat_stove": ("front",), "plate": ("left", "right"), "desk_caddy": ("right",)}
"""Beside what a goal on the table may be, and where of it."""


def goals(scene: SceneDefinition) -> dict[str, list[ComposedGoal]]:
    """Skill -> everything of that kind that the scene allows."""
    found: dict[str, list[ComposedGoal]] = {}
    everything = [*_articulated(scene), *_placing(scene), *_inside(scene), *_on_table(scene), *_two(scene)]
    for goal in everything:
        found.setdefault(goal.skill, []).append(goal)
    return found


def _of(scene: SceneDefinition, categories: tuple[str, ...]) -> list[str]:
    return [name for name, category in scene.objects.items() if category in categories]


def _parts(scene: SceneDefinition, categories: tuple[str, ...], parts: tuple[str, ...]) -> list[str]:
    owners = {**scene.fixtures, **scene.objects}
    return [f"{owner}_{part}" for owner, part in scene.regions if owners[owner] in categories and part in parts]


def _articulated(scene: SceneDefinition) -> list[ComposedGoal]:
    drawers = _parts(scene, CABINETS, DRAWERS)
    stoves = [name for name, category in scene.fixtures.items() if category == "flat_stove"]
    microwaves = [name for name, category in scene.fixtures.items() if category == "microwave"]
    return [
        *(ComposedGoal("open drawer", (("open", drawer),)) for drawer in drawers),
        *(ComposedGoal("close drawer", (("close", drawer),), (("open", drawer),)) for drawer in drawers),
        *(ComposedGoal("close door", (("close", name),), (("open", name),)) for name in microwaves),
        *(ComposedGoal("turn on", (("turnon", name),)) for name in stoves),
        *(ComposedGoal("turn off", (("turnoff", name),), (("turnon", name),)) for name in stoves),
    ]


def _placing(scene: SceneDefinition) -> list[ComposedGoal]:
    where = [(place, "plate", "on object") for place in _of(scene, ("plate",))]
    where += [(place, "bowl", "on object") for place in _of(scene, BOWLS[:2])]
    where += [(place, "cook_region", "on fixture") for place in _parts(scene, ("flat_stove",), ("cook_region",))]
    where += [(place, "top_side", "on fixture") for place in _parts(scene, CABINETS, ("top_side",))]
    where += [(place, "shelf", "on fixture") for place in _parts(scene, ("wooden_two_layer_shelf",), ("top_side",))]
    where += [(place, "rack", "on fixture") for place in _parts(scene, ("wine_rack",), ("top_region",))]
    goals = [
        ComposedGoal(skill, (("on", name, place),))
        for place, kind, skill in where
        for name in _of(scene, RECEIVES[kind])
        if name != place
    ]
    bowls = _of(scene, BOWLS[:1])
    return goals + [ComposedGoal("stack", (("on", a, b),)) for a in bowls for b in bowls if a != b]


def _inside(scene: SceneDefinition) -> list[ComposedGoal]:
    found = []
    for category in CONTAINERS:
        for place in _parts(scene, (category,), ("contain_region",)):
            found += [ComposedGoal("in container", (("in", name, place),)) for name in _of(scene, RECEIVES[category])]
    for drawer in _parts(scene, CABINETS, DRAWERS):
        for name in _of(scene, RECEIVES["drawer"]):
            into, shut, opened = ("in", name, drawer), ("close", drawer), (("open", drawer),)
            found.append(ComposedGoal("in drawer, shut", (into,)))
            found.append(ComposedGoal("in drawer", (into,), opened))
            found.append(ComposedGoal("in drawer and close", (into, shut), opened))
    for name in _of(scene, MUGS):
        for place in _parts(scene, ("microwave",), ("heating_region",)):
            owner = place.removesuffix("_heating_region")
            goal = (("in", name, place), ("close", owner))
            found.append(ComposedGoal("in microwave and close", goal, (("open", owner),)))
    compartments = tuple(f"{side}_contain_region" for side in ("front", "back", "left", "right"))
    for place in _parts(scene, ("desk_caddy",), compartments):
        found += [ComposedGoal("in caddy", (("in", name, place),)) for name in _of(scene, BOOKS)]
    return found


def _on_table(scene: SceneDefinition) -> list[ComposedGoal]:
    spot = f"{scene.table}_{SPOT}"
    found = []
    for reference, category in {**scene.fixtures, **scene.objects}.items():
        for side in SIDES.get(category, ()):
            for name in _of(scene, RECEIVES["table"]):
                if name != reference:
                    skill = "push" if scene.objects[name] == "plate" else "on table"
                    found.append(ComposedGoal(skill, (("on", name, spot),), beside=(side, reference)))
    return found


def _two(scene: SceneDefinition) -> list[ComposedGoal]:
    """Two things asked for at once."""
    found = []
    for category in CONTAINERS:
        for place in _parts(scene, (category,), ("contain_region",)):
            names = _of(scene, RECEIVES[category])
            pairs = [
                (a, b) for i, a in enumerate(names) for b in names[i + 1 :] if scene.objects[a] != scene.objects[b]
            ]
            found += [ComposedGoal("two in container", (("in", a, place), ("in", b, place))) for a, b in pairs]
    for stove in (name for name, category in scene.fixtures.items() if category == "flat_stove"):
        for name in _of(scene, (*POTS, "akita_black_bowl")):
            goal = (("turnon", stove), ("on", name, f"{stove}_cook_region"))
            found.append(ComposedGoal("turn on and put", goal))
    plates, things = _of(scene, ("plate",)), _of(scene, (*MUGS, *BOWLS))
    if len(plates) == 2:
        found += [
            ComposedGoal("two on plates", (("on", a, plates[0]), ("on", b, plates[1])))
            for a in things
            for b in things
            if scene.objects[a] != scene.objects[b]
        ]
    return found
