"""What goes into a policy and what comes out: Observation, ActionChunk and ChunkStats."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rsd_policy.errors import ObservationError

ACTION_DIM = 7
"""Degrees of freedom of an action: dx, dy, dz, droll, dpitch, dyaw, gripper."""

GRIPPER = ACTION_DIM - 1
"""Index of the gripper in an action: -1 opens, +1 closes."""

PROPRIO_DIM = 8
"""Entries of the proprioceptive state: position (3), axis-angle (3), gripper finger positions (2)."""

POSE_DIM = 10
"""Entries of the state that cannot be said in two ways: see `pose_from_base`."""

STATES = {"axis_angle": PROPRIO_DIM, "rotation_6d": POSE_DIM}
"""Forms in which a policy reads the state, and their numbers: `Observation.proprio`, and `Observation.pose`."""

MAX_INSTRUCTION_CHARS = 1000
"""Longer instructions are refused: they are a mistake (a file, a log), not a command to a robot."""


@dataclass(frozen=True)
class Observation:
    """One synchronised look at the robot.

    Attributes:
        images: camera name -> uint8 [H, W, 3], RGB, upright; any size, views of other arrays included.
        proprio: float32 [8]: end-effector position in the simulator's world frame, as LIBERO policies read it (m; on an
            arm: the frame of `eef_pose`), its orientation as axis-angle (rad),
            the two gripper finger positions (m).
        instruction: what to do, in plain English.
        stamp: acquisition time in seconds of the clock in use, or None.
        pose: float32 [10], the same state as `pose_from_base` says it, for policies that read that; None where the
            place of the robot's base is not known.

    Raises:
        ObservationError: an image is not uint8 [H, W, 3] or has no pixel, the state is not 8 (10) finite numbers, the
            instruction is empty or longer than `MAX_INSTRUCTION_CHARS`, or the stamp is not a finite number.
    """

    images: Mapping[str, NDArray[np.uint8]]
    proprio: NDArray[np.float32]
    instruction: str
    stamp: float | None = None
    pose: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.images, Mapping) or not self.images:
            raise ObservationError(
                "images: expected a mapping of at least one camera to its frame, e.g. {'agentview': frame}, "
                f"got {'no image' if isinstance(self.images, Mapping) else type(self.images).__name__}"
            )
        for name, image in self.images.items():
            _check_image(name, image)
        object.__setattr__(self, "proprio", _checked_state("proprio", self.proprio, PROPRIO_DIM))
        if self.pose is not None:
            object.__setattr__(self, "pose", _checked_state("pose", self.pose, POSE_DIM))
        _check_instruction(self.instruction)
        if self.stamp is not None and not math.isfinite(self.stamp):
            raise ObservationError(f"stamp: expected finite seconds or None, got {self.stamp}")


def _check_image(name: str, image: object) -> None:
    if not isinstance(image, np.ndarray):
        raise ObservationError(f"image '{name}': expected a numpy array, got {type(image).__name__}")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ObservationError(
            f"image '{name}': expected uint8 [H, W, 3] (RGB) with H and W at least 1, "
            f"got {image.dtype} {list(image.shape)}"
        )


def _checked_state(name: str, given: ArrayLike, size: int) -> NDArray[np.float32]:
    values = np.asarray(given)
    if values.shape != (size,) or values.dtype.kind not in "fiu":
        raise ObservationError(
            f"{name}: expected {size} real numbers, shape [{size}], got {values.dtype} {list(values.shape)}"
        )
    with np.errstate(over="ignore"):  # beyond float32 becomes infinity, which the next line refuses
        single = values.astype(np.float32)
    if not np.all(np.isfinite(single)):
        raise ObservationError(f"{name}: expected finite numbers, got {values.tolist()}; check the state source")
    return single


def _check_instruction(instruction: object) -> None:
    if not isinstance(instruction, str):
        raise ObservationError(f"instruction: expected a str, got {type(instruction).__name__}")
    if not instruction.strip():
        raise ObservationError(f"instruction: expected a sentence, got an empty one: {instruction!r}")
    if len(instruction) > MAX_INSTRUCTION_CHARS:
        raise ObservationError(
            f"instruction: expected at most {MAX_INSTRUCTION_CHARS} characters, got {len(instruction)}"
        )


@dataclass(frozen=True)
class ChunkStats:
    """Where the time of one inference went and how draft and main head compared.

    Attributes:
        stage_ms: stage -> device-synchronised wall time in ms. Stages: preprocess, vision, layers_early, draft,
            gate, layers_late, head, decode; or reference, the output head that a published checkpoint came with.
            Of CUDA graphs the device's own times; what is left of the wall time is the stage host.
        first_action_ms: time from the call until the first usable chunk (provisional or final), ms.
        total_ms: time from the call until the final chunk, ms.
        token_agreement: per compared level, fraction of equal tokens over the executed steps, of those that carry
            something (not the gripper's from L1 on); empty when nothing was compared.
        max_deviation: [7], largest |draft - final| per degree of freedom over the chunk, action units; None when
            nothing was compared.
        accepted_steps: how many leading steps of the draft are within tolerance; None when nothing was compared.
        audited: the chunk was executed unverified and verified afterwards.
        audit_deviated: outcome of that audit; None when not audited.
    """

    stage_ms: Mapping[str, float] = field(default_factory=dict)
    first_action_ms: float = 0.0
    total_ms: float = 0.0
    token_agreement: tuple[float, ...] = ()
    max_deviation: NDArray[np.float32] | None = None
    accepted_steps: int | None = None
    audited: bool = False
    audit_deviated: bool | None = None


@dataclass(frozen=True)
class ActionChunk:
    """Actions for the next T control steps.

    Attributes:
        actions: float32 [T, 7] in the units of the policy's robot profile (LIBERO: OSC_POSE units in [-1, 1],
            gripper -1 open, +1 close).
        verified: the main head produced or confirmed these actions.
        accepted: the draft passed the acceptance rule; None when draft and main head were not compared.
        skipped: the gate let the draft through and the rest of the backbone was not run.
        levels: how many residual levels the actions are decoded from.
        tokens: int64 [levels, T, 7], the codes; None for policies without a codec (the scripted expert).
        stats: timing and comparison.
    """

    actions: NDArray[np.float32]
    verified: bool = True
    accepted: bool | None = None
    skipped: bool = False
    levels: int = 0
    tokens: NDArray[np.int64] | None = None
    stats: ChunkStats = field(default_factory=ChunkStats)


def proprio_from_pose(position: ArrayLike, quaternion_xyzw: ArrayLike, gripper_qpos: ArrayLike) -> NDArray[np.float32]:
    """Build the proprioceptive state that LIBERO policies read.

    The rotation is the axis-angle of the quaternion as it comes, without flipping it to w >= 0: flipping changes the
    representation that public LIBERO policies were trained on (flipping cost an OpenVLA-OFT checkpoint 40 points on
    libero_10).

    Args:
        position: [3], end-effector position, m, in the frame that the policy was trained in (LIBERO: world).
        quaternion_xyzw: [4], unit quaternion, scalar last.
        gripper_qpos: [2], finger joint positions, m.

    Returns:
        float32 [8].

    Raises:
        ObservationError: the quaternion is not finite or not of unit length.
    """
    quaternion = _unit_quaternion(quaternion_xyzw)
    w = min(1.0, max(-1.0, float(quaternion[3])))
    sin_half = math.sqrt(1.0 - w * w)
    if math.isclose(sin_half, 0.0, abs_tol=1e-12):
        axis_angle: NDArray[np.float64] = np.zeros(3)
    else:
        axis_angle = quaternion[:3] * (2.0 * math.acos(w) / sin_half)
    return np.concatenate(
        [np.asarray(position, dtype=np.float64), axis_angle, np.asarray(gripper_qpos, dtype=np.float64)]
    ).astype(np.float32)


def pose_from_base(
    position: ArrayLike, quaternion_xyzw: ArrayLike, gripper_qpos: ArrayLike, base: ArrayLike = (0.0, 0.0, 0.0)
) -> NDArray[np.float32]:
    """Build a state that has one way of being said.

    The rotation enters as the first two columns of its matrix, a continuous form (Zhou et al. 2019, "On the Continuity
    of Rotation Representations in Neural Networks"), each entry made of products of two of the quaternion's, so that q
    and -q give the same bits.

    Args:
        position: [3], end-effector position, m. quaternion_xyzw: [4], unit quaternion, scalar last.
        gripper_qpos: [2], finger joint positions, m, of either sign.
        base: [3], place of the robot's base in the frame of `position`, whose axes are those of the base, m.

    Returns:
        float32 [10]: position relative to the base (3), rotation (6), distance between the fingers (1).

    Raises:
        ObservationError: the quaternion is not finite or not of unit length.
    """
    x, y, z, w = _unit_quaternion(quaternion_xyzw)
    first = (1.0 - 2.0 * (y * y + z * z), 2.0 * (x * y + z * w), 2.0 * (x * z - y * w))
    second = (2.0 * (x * y - z * w), 1.0 - 2.0 * (x * x + z * z), 2.0 * (y * z + x * w))
    away = np.asarray(position, dtype=np.float64) - np.asarray(base, dtype=np.float64)
    width = np.abs(np.asarray(gripper_qpos, dtype=np.float64)).sum()
    return np.concatenate([away, first, second, [width]]).astype(np.float32)


def _unit_quaternion(values: ArrayLike) -> NDArray[np.float64]:
    quaternion = np.asarray(values, dtype=np.float64)
    if quaternion.shape != (4,) or not abs(float(np.linalg.norm(quaternion)) - 1.0) < 1e-3:  # NaN is not < either
        raise ObservationError(
            f"orientation: expected a unit quaternion (x, y, z, w), got {quaternion.tolist()}; check the state source"
        )
    return quaternion


class HasState(Protocol):
    """What holds one state, or several: an observation, a demonstration."""

    @property
    def proprio(self) -> NDArray[np.float32]:
        """[..., 8]."""

    @property
    def pose(self) -> NDArray[np.float32] | None:
        """[..., 10], or None where the place of the robot's base is not known."""


def state_of(source: HasState, form: str) -> NDArray[np.float32]:
    """The state in a form of `STATES`.

    Raises:
        ObservationError: the place of the robot's base is not known, which that form needs.
    """
    if form == "axis_angle":
        return source.proprio
    if source.pose is None:
        raise ObservationError(
            "state: expected the pose relative to the robot's base, which this policy reads, got none; "
            "`pose_from_base` makes it"
        )
    return source.pose
