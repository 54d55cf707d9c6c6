"""Where to grasp: across the narrow side of a box, or the rim of a bowl, where the hand has room."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# The Panda gripper in the frame of its site (fingers along x, across y, up z), m; measured on robosuite 1.4.0's meshes.
FINGER_INNER = 0.038
FINGER_OUTER = 0.064
FINGER_HALF_WIDTH = 0.012
TIP_BELOW = 0.005
PALM_ABOVE = 0.031
PALM_HALF = (0.104, 0.032)

MAX_WIDTH = 0.066
"""Widest object taken across, m: 1 cm less than the open fingers are apart."""

RIM_DEPTH = 0.015
"""How far the site goes below a rim, m: the pads are 16 mm high."""

TOP_DEPTH = 0.026
"""How far the site goes below the top of an object taken across, m: 5 mm less than the palm allows."""

LID_HEIGHT, LID_WIDTH, LID_DEPTH = 0.015, 0.03, 0.013
"""A knob on a lid: so high and at most so wide, m; the site goes so far below its top."""

CLEARANCE = 0.002
"""Room that an open hand needs around it to count as free, m."""

NEAR = 0.02
"""More room than this is not told apart, m."""

ALONG_SHIFTS = (0.0, 0.012, -0.012, 0.024, -0.024)
"""Places along the side of an object taken across, from its middle, m, best first."""

RIM_ANGLES = tuple(np.deg2rad((90, -90, 0, 180, 60, -60, 120, -120, 30, -30, 150, -150)))
"""Places on a rim, seen from the bowl's centre, best first: at +-90 degrees (world y) the hand need not turn."""

RIM_SHIFTS = (0.0, 0.008, 0.016)
"""How far inwards of the rim the hand is centred, m, best first: inwards the outer finger needs less room."""


@dataclass(frozen=True)
class Grasp:
    """A pose of the hand.

    Attributes:
        offset: [3], site position minus object position, m, for the object's present orientation.
        angle: direction of the fingers' opening in the horizontal plane, rad, in [0, pi); the hand rests at pi/2.
        clearance: smallest distance of the open hand from anything else, m (negative: it would hit something).
    """

    offset: Array
    angle: float
    clearance: float


def candidates(position: Array, points: Array, obstacles: Array) -> list[Grasp]:
    """Grasps of an object, best first.

    Those with room come first, in a fixed order of preference, so that similar scenes give the same grasp; then the
    others by clearance.

    Args:
        position: [3], the object's origin.
        points: [N, 3] on the object. obstacles: [M, 3] on everything else.
    """
    near = obstacles[np.linalg.norm(obstacles[:, :2] - position[:2], axis=1) < 0.25]
    poses = _across(points) or _lid(points) or _rim(points)
    grasps = [Grasp(site - position, angle, clearance(site, angle, near)) for site, angle in poses]
    return sorted(grasps, key=lambda grasp: min(0.0, round(grasp.clearance - CLEARANCE, 3)), reverse=True)


def _across(points: Array) -> list[tuple[Array, float]]:
    """Poses (site, angle) across an object's sides, the fewest turns first; empty when it is too wide."""
    top = points[:, 2].max()
    height = max(top - TOP_DEPTH, points[:, 2].min() + 0.012)
    gripped = points[np.abs(points[:, 2] - height) < 0.02] if np.any(np.abs(points[:, 2] - height) < 0.02) else points
    poses = []
    for turn in np.deg2rad(np.arange(0, 90, 2)):
        for angle in (np.pi / 2 + turn, np.pi / 2 - turn):
            direction = np.array([np.cos(angle), np.sin(angle)])
            extent = gripped[:, :2] @ direction
            poses.append((extent.max() - extent.min(), turn, angle, direction, (extent.max() + extent.min()) / 2))
    narrowest = min(pose[0] for pose in poses)
    if narrowest > MAX_WIDTH:
        return []
    result = []
    # round objects are as wide in all directions: any direction within 2 mm of the narrowest will do
    for width, _, angle, direction, middle in sorted(poses, key=lambda pose: (pose[1], -pose[2])):
        if width < narrowest + 0.002:
            normal = np.array([-direction[1], direction[0]])
            along = gripped[:, :2] @ normal
            room = (along.max() - along.min()) / 2 - FINGER_HALF_WIDTH
            for shift in ALONG_SHIFTS:
                if abs(shift) <= max(room, 0.0):
                    centre = direction * middle + normal * ((along.max() + along.min()) / 2 + shift)
                    result.append((abs(shift), np.append(centre, height), float(angle % np.pi)))
    return [(site, angle) for _, site, angle in sorted(result, key=lambda entry: entry[0])]


def _lid(points: Array) -> list[tuple[Array, float]]:
    """Poses (site, angle) across a small knob on top of an object that is too wide itself; empty without a knob."""
    top = points[:, 2].max()
    knob = points[points[:, 2] > top - LID_HEIGHT, :2]
    if np.ptp(knob, axis=0).max() > LID_WIDTH:
        return []
    site = np.append((knob.max(axis=0) + knob.min(axis=0)) / 2, top - LID_DEPTH)
    return [(site, float(np.pi / 2)), (site, 0.0)]


def _rim(points: Array) -> list[tuple[Array, float]]:
    """Poses (site, angle) astride the rim of a bowl."""
    top = points[:, 2].max()
    rim = points[points[:, 2] > top - 3 * RIM_DEPTH]
    centre = (rim[:, :2].max(axis=0) + rim[:, :2].min(axis=0)) / 2
    radial = rim[:, :2] - centre
    bearing = np.arctan2(radial[:, 1], radial[:, 0])
    result = []
    for angle in RIM_ANGLES:
        direction = np.array([np.cos(angle), np.sin(angle)])
        sector = np.abs((bearing - angle + np.pi) % (2 * np.pi) - np.pi) < np.deg2rad(20)
        if np.any(sector):
            # a bowl may lie tilted: its rim is lower here than there, and the palm must stay above all of it
            here = rim[sector, 2].max()
            height = max(here - RIM_DEPTH, top - PALM_ABOVE + 0.004)
            upper = sector & (rim[:, 2] > here - 1.5 * RIM_DEPTH)
            radius = float(np.median(np.linalg.norm(radial[upper], axis=1)))
            for shift in RIM_SHIFTS:
                site = np.append(centre + direction * (radius - shift), height)
                result.append((site, float(angle % np.pi)))
    return result


def clearance(site: Array, angle: float, obstacles: Array) -> float:
    """Smallest signed distance between the open hand and the points, m; NEAR when nothing is nearer."""
    cos, sin = np.cos(angle), np.sin(angle)
    shifted = obstacles - site
    local = np.stack([np.abs(shifted[:, 0] * cos + shifted[:, 1] * sin), shifted[:, 1] * cos - shifted[:, 0] * sin], 1)
    # a cabinet has tens of thousands of points, few of them near the hand
    near = np.all(np.abs(local) < np.array(PALM_HALF) + NEAR, axis=1) & (shifted[:, 2] > -TIP_BELOW - NEAR)
    local = np.column_stack([local[near], shifted[near, 2]])
    boxes = (
        ((FINGER_INNER, -FINGER_HALF_WIDTH, -TIP_BELOW), (FINGER_OUTER, FINGER_HALF_WIDTH, 0.1)),
        ((-PALM_HALF[0], -PALM_HALF[1], PALM_ABOVE), (PALM_HALF[0], PALM_HALF[1], 0.2)),
    )
    best = NEAR
    for low, high in boxes:
        outside = np.maximum(np.array(low) - local, local - np.array(high))
        distance = np.where(
            np.all(outside < 0, axis=1), outside.max(axis=1), np.linalg.norm(np.maximum(outside, 0), axis=1)
        )
        best = min(best, float(distance.min(initial=best)))
    return best
