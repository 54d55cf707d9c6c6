"""Instructions for composed tasks: what is named how, which of several alike is meant, and sentences around it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from rsd_policy.errors import SimulationError
from rsd_policy.training.mini.paraphrase import plain
from sim_bridge.compose.goals import SPOT, ComposedGoal, State
from sim_bridge.held_out import held_out_wordings

NAMES: dict[str, tuple[str, ...]] = {
    "akita_black_bowl": ("black bowl", "bowl"),
    "white_bowl": ("white bowl", "bowl"),
    "glazed_rim_porcelain_ramekin": ("ramekin",),
    "cookies": ("cookie box",),
    "cream_cheese": ("cream cheese", "cream cheese box"),
    "butter": ("butter",),
    "chocolate_pudding": ("chocolate pudding",),
    "alphabet_soup": ("alphabet soup",),
    "tomato_sauce": ("tomato sauce",),
    "bbq_sauce": ("bbq sauce",),
    "ketchup": ("ketchup",),
    "salad_dressing": ("salad dressing",),
    "new_salad_dressing": ("salad dressing",),
    "milk": ("milk",),
    "orange_juice": ("orange juice",),
    "wine_bottle": ("wine bottle", "bottle"),
    "plate": ("plate",),
    "porcelain_mug": ("white mug",),
    "white_yellow_mug": ("yellow and white mug",),
    "red_coffee_mug": ("red mug",),
    "moka_pot": ("moka pot",),
    "chefmate_8_frypan": ("frying pan", "pan"),
    "black_book": ("black book", "book"),
    "yellow_book": ("yellow book", "book"),
    "basket": ("basket",),
    "wooden_tray": ("tray",),
    "wooden_cabinet": ("cabinet", "wooden cabinet"),
    "white_cabinet": ("cabinet", "white cabinet"),
    "flat_stove": ("stove",),
    "microwave": ("microwave",),
    "wine_rack": ("rack", "wine rack"),
    "desk_caddy": ("caddy",),
    "wooden_two_layer_shelf": ("shelf",),
}
"""Category -> its names, the plainest first. A name that fits two categories that are there is not used."""

PUT = ("put {what} {where}", "place {what} {where}", "pick up {what} and place it {where}", "set {what} {where}",
       "move {what} {where}", "take {what} and put it {where}", "pick up {what} and put it {where}")  # fmt: skip
PUSH = ("push {what} {where}", "slide {what} {where}", "push {what} over {where}")
OPEN = ("open {what}", "pull {what} open", "pull open {what}")
CLOSE = ("close {what}", "shut {what}", "push {what} shut")
TURN_ON = ("turn on {what}", "switch {what} on", "turn {what} on")
TURN_OFF = ("turn off {what}", "switch off {what}", "turn {what} off")
"""Sentences for one goal. A policy that is trained on them sees further paraphrases (rsd_policy/training/mini)."""

NEAR, CLEARLY_NEARER = 0.15, 0.05
"""What stands next to a thing is no farther from it than this, m, and by so much nearer than all others of its kind."""

BETWEEN = 0.04
"""What stands between two things is at most so far off their connecting line's middle third, m."""

ASIDE = 0.06
"""Of things alike, one is the left (right, front, back) one if it is by so much farther on that side, m."""

Positions = Mapping[str, NDArray[np.float64]]


class Reference:
    """How to speak of what is in a scene as it stands now.

    Args:
        categories: name -> category of every object and fixture.
        positions: name -> [3], m, of the same.
        settled: object -> where it started if not on the table, as ("on", name).
        rng: decides among equally good ways.
    """

    def __init__(
        self,
        categories: Mapping[str, str],
        positions: Positions,
        settled: Mapping[str, tuple[str, str]],
        rng: np.random.Generator,
    ) -> None:
        self._categories, self._positions, self._settled, self._rng = categories, positions, settled, rng

    def noun(self, name: str) -> str:
        """What a thing is called, without an article."""
        category = self._categories[name]
        others = {c for c in self._categories.values() if c != category}
        free = [n for n in NAMES[category] if not any(n in NAMES[other] for other in others)]
        names = free or [NAMES[category][0]]
        return names[int(self._rng.integers(len(names)))]

    def the(self, name: str) -> str:
        """ "the black bowl next to the plate": with as much said as tells it from others of its kind.

        Raises:
            SimulationError: nothing tells them apart.
        """
        alike = [n for n, c in self._categories.items() if c == self._categories[name] and n != name]
        if not alike:
            return f"the {self.noun(name)}"
        ways = self._ways(name, alike)
        if not ways:
            raise SimulationError(f"{name}: expected something that tells it from {', '.join(alike)}, found nothing")
        return ways[int(self._rng.integers(len(ways)))].format(noun=self.noun(name))

    def _ways(self, name: str, alike: list[str]) -> list[str]:
        here = self._positions[name]
        if name in self._settled:
            return ["the {noun} " + self.where(self._settled[name][1])]
        ways = []
        for other, place in self._positions.items():
            if other in (name, *alike) or self._is_ambiguous(other):
                continue
            distance = np.linalg.norm((here - place)[:2])
            rival = min(float(np.linalg.norm((self._positions[n] - place)[:2])) for n in alike)
            if distance < NEAR and distance + CLEARLY_NEARER < rival:
                ways.append("the {noun} next to the " + self.noun(other))
        lone = [n for n in self._positions if n not in (name, *alike) and not self._is_ambiguous(n)]
        for i, first in enumerate(lone):
            for second in lone[i + 1 :]:
                fits = [self._between(n, first, second) for n in (name, *alike)]
                if fits[0] and not any(fits[1:]):
                    ways.append("the {noun} between the " + f"{self.noun(first)} and the {self.noun(second)}")
        for axis, sides in ((1, ("right", "left")), (0, ("front", "back"))):
            offsets = [float(here[axis] - self._positions[n][axis]) for n in alike]
            for sign, side in zip((1, -1), sides, strict=True):
                if min(sign * offset for offset in offsets) > ASIDE:
                    ways.append("the " + side + " {noun}" if axis == 1 else "the {noun} at the " + side)
        return ways

    def _is_ambiguous(self, name: str) -> bool:
        return sum(category == self._categories[name] for category in self._categories.values()) > 1

    def _between(self, name: str, first: str, second: str) -> bool:
        here, a, b = (self._positions[n][:2] for n in (name, first, second))
        length = float(np.linalg.norm(b - a))
        if not 0.15 < length < 0.5:
            return False
        share = float((here - a) @ (b - a)) / length**2
        return 0.33 < share < 0.67 and float(np.linalg.norm(here - a - share * (b - a))) < BETWEEN

    def where(self, place: str, predicate: str = "on") -> str:
        """ "in the top drawer of the cabinet": the place of a goal."""
        owner = max((n for n in self._categories if place.startswith(n)), key=len)
        part = place.removeprefix(owner).removeprefix("_")
        category = self._categories[owner]
        if part == "cook_region":
            return f"on {self.the(owner)}"
        if part == "top_side":
            return ("on top of ", "on ")[int(self._rng.integers(2))] + self.the(owner)
        if category.endswith("cabinet"):
            return f"in the {self.drawer(part, owner)}"
        if category in ("wine_rack", "plate"):
            return f"on {self.the(owner)}"
        if category == "desk_caddy":
            return f"in the {part.removesuffix('_contain_region')} compartment of {self.the(owner)}"
        inside = predicate == "in" or category.endswith("bowl")
        return f"{'in' if inside else 'on'} {self.the(owner)}"

    def drawer(self, part: str, owner: str) -> str:
        """ "top drawer of the cabinet"."""
        drawer = f"{part.removesuffix('_region')} drawer"
        return f"{drawer} of {self.the(owner)}" if self._rng.random() < 0.7 else drawer

    def owner_of(self, place: str) -> tuple[str, str]:
        """A part of something -> (whose it is, its name there)."""
        owner = max((n for n in self._categories if place.startswith(n)), key=len)
        return owner, place.removeprefix(owner).removeprefix("_")


def instruction(goal: ComposedGoal, refer: Reference, rng: np.random.Generator) -> str:
    """An instruction for a goal, lower case, never one of LIBERO-PRO's.

    Raises:
        SimulationError: nothing tells what is meant from others of its kind, or every sentence was LIBERO-PRO's.
    """
    for _ in range(20):
        text = _sentence(goal, refer, rng)
        if plain(text) not in held_out_wordings():
            return text
    raise SimulationError(f"{goal.skill}: expected a wording that LIBERO-PRO does not use, found none in 20 draws")


def _sentence(goal: ComposedGoal, refer: Reference, rng: np.random.Generator) -> str:
    if goal.skill == "two in container":
        first, second = (refer.the(state[1]) for state in goal.states)
        if rng.random() < 0.5:
            first, second = second, first
        where = refer.where(goal.states[0][2], "in")
        both = ("both ", "")[int(rng.integers(2))]
        verb = ("put", "place", "set", "move")[int(rng.integers(4))]
        return f"{verb} {both}{first} and {second} {where}"
    clauses = []
    for index, state in enumerate(goal.states):
        closes = index > 0 and goal.skill.endswith("close")
        clauses.append("close it" if closes else _clause(goal, state, refer, rng))
    return " and ".join(clauses)


def _clause(goal: ComposedGoal, state: State, refer: Reference, rng: np.random.Generator) -> str:
    predicate, name, *rest = state
    if predicate in ("turnon", "turnoff"):
        return _pick(TURN_ON if predicate == "turnon" else TURN_OFF, rng).format(what=refer.the(name))
    if predicate in ("open", "close"):
        owner, part = refer.owner_of(name)
        what = f"the {refer.drawer(part, owner)}" if part else refer.the(owner)
        return _pick(OPEN if predicate == "open" else CLOSE, rng).format(what=what)
    if rest[0].endswith(SPOT):
        assert goal.beside is not None
        side, reference = goal.beside
        where = f"to the {side} of {refer.the(reference)}"
        if side == "front":
            where = _pick((where, f"in front of {refer.the(reference)}"), rng)
    elif goal.skill == "stack":
        where = f"on {refer.the(rest[0])}"
    else:
        where = refer.where(rest[0], predicate)
    return _pick(PUSH if goal.skill == "push" else PUT, rng).format(what=refer.the(name), where=where)


def _pick(ways: tuple[str, ...], rng: np.random.Generator) -> str:
    return ways[int(rng.integers(len(ways)))]
