"""The section `lerobot` of a contract: which columns of a LeRobot dataset are the state, the action and the cameras."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rsd_policy.observation import ACTION_DIM
from rsd_policy.robots.yaml_section import Section

ROTATIONS = {"axis_angle": 3, "quaternion_xyzw": 4, "quaternion_wxyz": 4, "euler_xyz": 3}
"""How a dataset says an orientation, and in how many numbers; euler_xyz: roll, pitch, yaw about fixed axes, rad."""

Columns = tuple[int | str, ...]
"""Entries of a feature, by index or by the name that meta/info.json gives them."""


@dataclass(frozen=True)
class LeRobotColumns:
    """Where a LeRobot dataset has what an observation and an action are made of.

    Attributes:
        cameras: (the policy's name, feature), for every camera of the contract.
        state: feature of the state.
        position: [3] columns, m. orientation: columns, as `rotation` says. fingers: two columns, or one with the width.
        rotation: one of `ROTATIONS`.
        action: feature of the actions, which are differences in the contract's units; empty: of another kind.
        action_columns: [7]: dx, dy, dz, three rotations, gripper.
        opens, closes: value of the gripper's column that opens, and that closes.
        rate_hz: rows per second, where meta/info.json says it wrongly; 0: as it says.
    """

    cameras: tuple[tuple[str, str], ...]
    state: str
    position: Columns
    orientation: Columns
    fingers: Columns
    rotation: str
    action: str = ""
    action_columns: Columns = ()
    opens: float = -1.0
    closes: float = 1.0
    rate_hz: float = 0.0


def parse_lerobot(section: Section, cameras: Sequence[str]) -> LeRobotColumns:
    """Read the section of a contract with these cameras.

    Raises:
        ArgumentError: with file, line and fix, when it is wrong or incomplete.
    """
    features = section.section("cameras")
    state = section.section("state")
    action = section.section("action", required=False)
    assert features is not None and state is not None
    names = tuple((camera, features.text(camera)) for camera in cameras)
    features.end()
    rotation = state.text("rotation", choices=tuple(ROTATIONS))
    found = LeRobotColumns(
        cameras=names,
        state=state.text("feature", "observation.state"),
        position=_columns(state, "position", (3,)),
        orientation=_columns(state, "orientation", (ROTATIONS[rotation],)),
        fingers=_columns(state, "fingers", (1, 2)),
        rotation=rotation,
        action="" if action is None else action.text("feature", "action"),
        action_columns=() if action is None else _columns(action, "columns", (ACTION_DIM,)),
        **({} if action is None else _gripper(action)),
        rate_hz=section.number("rate", 0.0, low=0.0, high=1000.0, unit="Hz"),
    )
    state.end()
    if action is not None:
        action.end()
    section.end()
    return found


def _gripper(action: Section) -> dict[str, float]:
    opens, closes = action.numbers("gripper", 2, (-1.0, 1.0))
    if opens == closes:
        raise action.at("gripper", "expected two numbers that differ: the value that opens, the value that closes")
    return {"opens": opens, "closes": closes}


def _columns(section: Section, key: str, sizes: tuple[int, ...]) -> Columns:
    columns = section.items(key)
    valid = all(isinstance(item, str) or (type(item) is int and item >= 0) for item in columns)
    if len(columns) not in sizes or not valid or len(set(columns)) != len(columns):
        wanted = " or ".join(str(size) for size in sizes)
        raise section.at(key, f"expected {wanted} different columns, by index or name [..], got {columns!r}")
    return tuple(item for item in columns if isinstance(item, (int, str)))
