"""How far two answers to one observation are apart: mm, rad and gripper, per step and field, against tolerances."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rsd_policy.robots.contract import ActionMeaning

FIELDS = ("dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper")
UNITS = ("mm", "mm", "mm", "rad", "rad", "rad", "")


def in_units(actions: NDArray[np.float32], meaning: ActionMeaning) -> NDArray[np.float64]:
    """Actions [T, 7] as what they make the arm do per step: mm, rad, gripper unit."""
    scale = [meaning.translation_m * 1e3] * 3 + [meaning.rotation_rad] * 3 + [1.0]
    return np.asarray(actions, np.float64) * np.asarray(scale)


def tolerances(meaning: ActionMeaning) -> NDArray[np.float64]:
    """[7], mm, rad, gripper unit."""
    return np.asarray([meaning.tolerance_mm] * 3 + [meaning.tolerance_rad] * 3 + [meaning.tolerance_gripper])


@dataclass(frozen=True)
class Exceeding:
    """The first value of an answer that is not what it should be.

    Attributes:
        step: of the chunk.
        field: of the action.
        value, expected: mm, rad or gripper unit.
        tolerance: of the difference.
        unit: of these.
    """

    step: int
    field: str
    value: float
    expected: float
    tolerance: float
    unit: str

    def __str__(self) -> str:
        unit = f" {self.unit}" if self.unit else ""
        return (
            f"step {self.step}, {self.field}: {self.value:.6g}{unit}, expected {self.expected:.6g}{unit} "
            f"within {self.tolerance:g}{unit}"
        )


@dataclass(frozen=True)
class Difference:
    """Two answers compared.

    Attributes:
        largest: [7], largest difference per field over the compared steps; mm, rad, gripper unit.
        translation_mm, rotation_rad: largest Euclidean difference of a step.
        steps: how many were compared.
        equal: bit for bit.
        first: the first value outside its tolerance; None when all are within.
    """

    largest: NDArray[np.float64]
    translation_mm: float
    rotation_rad: float
    steps: int
    equal: bool
    first: Exceeding | None

    @property
    def size(self) -> float:
        """For ranking: mm plus rad, weighted so that 0.01 rad counts as 1 mm, and a changed gripper as 100 mm."""
        return self.translation_mm + 100.0 * self.rotation_rad + 100.0 * float(self.largest[6])


def difference(given: NDArray[np.float32], expected: NDArray[np.float32], meaning: ActionMeaning) -> Difference:
    """Compare two chunks [T, 7]; when one is shorter, over its steps; what is NaN in `expected` is not compared."""
    steps = min(len(given), len(expected))
    given, expected = given[:steps], expected[:steps]
    ours, theirs = in_units(given, meaning), in_units(expected, meaning)
    apart = np.where(np.isnan(theirs), 0.0, np.abs(ours - theirs))
    limits = tolerances(meaning)
    outside = np.argwhere(~(apart <= limits))  # NaN is outside as well
    first = None
    if len(outside):
        step, i = (int(v) for v in outside[0])
        first = Exceeding(step, FIELDS[i], float(ours[step, i]), float(theirs[step, i]), float(limits[i]), UNITS[i])
    return Difference(
        largest=apart.max(axis=0, initial=0.0),
        translation_mm=float(np.linalg.norm(apart[:, :3], axis=1).max(initial=0.0)),
        rotation_rad=float(np.linalg.norm(apart[:, 3:6], axis=1).max(initial=0.0)),
        steps=steps,
        equal=given.tobytes() == expected.tobytes(),
        first=first,
    )
