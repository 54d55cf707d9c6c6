"""Demonstrations out of LeRobot datasets, by the section `lerobot` of a robot's contract."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from rsd_policy.errors import RSDError
from rsd_policy.images import resize_frame
from rsd_policy.robots.contract import Contract
from rsd_policy.robots.image_operations import apply_operations
from rsd_policy.robots.lerobot_columns import LeRobotColumns
from rsd_policy.robots.state import place_state, scale_fingers
from rsd_policy.training.bag_demonstrations import Episode, on_control_grid, width_of
from rsd_policy.training.lerobot_dataset import LeRobotDataset

RATE_TOLERANCE = 0.01
"""Relative difference of a dataset's rate and the contract's that is one of rounding."""


def episodes_of_dataset(
    path: Path, contract: Contract, *, source: str, size: int, instruction: str = ""
) -> Iterator[Episode]:
    """The episodes of a dataset.

    Args:
        source: of the actions: "commands": the dataset's, "state" differences, or "auto": the dataset's where the
            contract has `lerobot.action`.
        size: height and width of the images, px.
        instruction: instead of what the dataset says.

    Raises:
        RSDError: the dataset cannot be read, or is not what the contract says.
    """
    columns = contract.lerobot
    if columns is None:
        raise RSDError(
            f"contract '{contract.robot}' has no section 'lerobot', which says what the columns of a LeRobot dataset "
            "are; config/robots/template.yaml explains it"
        )
    if source == "auto":
        source = "commands" if columns.action else "state"
    if source == "commands" and not columns.action:
        raise RSDError(f"contract '{contract.robot}' has no 'lerobot.action'; add it, or give --actions state")
    dataset = LeRobotDataset(path)
    rate = columns.rate_hz or dataset.fps
    if source == "commands" and abs(rate * contract.action.period_s - 1.0) > RATE_TOLERANCE:
        raise RSDError(
            f"the dataset has {rate:g} rows per second, and each holds the action of one control step, which lasts "
            f"{contract.action.period_s:g} s; correct action.period in the contract, or lerobot.rate where the dataset "
            "says its rate wrongly, or give --actions state"
        )
    for number in dataset.episodes:
        states = _states(dataset, number, contract, columns)
        task = instruction or dataset.instruction(number)
        images = _images(dataset, number, contract, columns, size, len(states))
        if source == "state":
            stamps = np.rint(np.arange(len(states)) * (1e9 / rate)).astype(np.int64)
            yield on_control_grid(stamps, states.astype(np.float64), images, task, (), contract)
            continue
        width = width_of(states.astype(np.float64))
        yield Episode(
            frames=np.array(images),
            frame_steps=np.arange(len(states)),
            proprio=states,
            actions=_actions(dataset, number, columns),
            # what the last action did is not recorded
            width=np.append(width, width[-1:]),
            instruction=task,
        )


def _images(
    dataset: LeRobotDataset, episode: int, contract: Contract, columns: LeRobotColumns, size: int, count: int
) -> list[list[NDArray[np.uint8]]]:
    features = dict(columns.cameras)
    cameras = []
    for camera in contract.cameras:
        raw = dataset.images(episode, features[camera.name], count)
        seen = (apply_operations(image, camera.operations, camera.name) for image in raw)
        cameras.append([resize_frame(np.ascontiguousarray(image), size) for image in seen])
    return [list(look) for look in zip(*cameras, strict=True)]


def _states(dataset: LeRobotDataset, episode: int, contract: Contract, columns: LeRobotColumns) -> NDArray[np.float32]:
    """The state of each row, float32 [N, 8]."""
    positions = dataset.numbers(episode, columns.state, columns.position)
    quaternions = _quaternions(dataset.numbers(episode, columns.state, columns.orientation), columns.rotation)
    hands = dataset.numbers(episode, columns.state, columns.fingers)
    return np.array(
        [
            place_state(
                position.tolist(), quaternion.tolist(), scale_fingers(hand.tolist(), contract.gripper), contract.pose
            )
            for position, quaternion, hand in zip(positions, quaternions, hands, strict=True)
        ],
        np.float32,
    )


def _quaternions(values: NDArray[np.float64], rotation: str) -> NDArray[np.float64]:
    """Unit quaternions (x, y, z, w) [N, 4]; an axis-angle beyond pi keeps its sign, which policies know."""
    if rotation == "quaternion_xyzw":
        return values
    if rotation == "quaternion_wxyz":
        return np.roll(values, -1, axis=1)
    turns = Rotation.from_rotvec(values) if rotation == "axis_angle" else Rotation.from_euler("xyz", values)
    return np.asarray(turns.as_quat())


def _actions(dataset: LeRobotDataset, episode: int, columns: LeRobotColumns) -> NDArray[np.float32]:
    """The recorded actions [N, 7] as they are; the gripper's between -1 (opens) and 1 (closes)."""
    actions = dataset.numbers(episode, columns.action, columns.action_columns)
    actions[:, 6] = 2.0 * (actions[:, 6] - columns.opens) / (columns.closes - columns.opens) - 1.0
    return actions.astype(np.float32)
