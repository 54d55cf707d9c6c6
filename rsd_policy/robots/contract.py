"""The contract of a robot: which topics it has, how an observation is made of them, and what an action means.

One YAML file per robot in config/robots/, read by policy_node, the robot graph, `rsd replay`, `rsd record` and
`rsd robot check` alike. config/robots/template.yaml explains every entry.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from rsd_policy.errors import ArgumentError
from rsd_policy.robots.image_operations import Operation, parse_operation
from rsd_policy.robots.lerobot_columns import LeRobotColumns, parse_lerobot
from rsd_policy.robots.yaml_section import Section
from rsd_policy.share import shared_path

ROBOTS = Path("config") / "robots"
"""Contracts; relative to the repository or the share folder."""

DEFAULT_ROBOT = "libero_sim"

IMAGE = "sensor_msgs/msg/Image"
COMPRESSED_IMAGE = "sensor_msgs/msg/CompressedImage"
FFMPEG_PACKET = "ffmpeg_image_transport_msgs/msg/FFMPEGPacket"
COMPRESSED_VIDEO = "foxglove_msgs/msg/CompressedVideo"
IMAGE_TYPES = (IMAGE, COMPRESSED_IMAGE, FFMPEG_PACKET, COMPRESSED_VIDEO)

POSE = "geometry_msgs/msg/PoseStamped"
TRANSFORMS = "tf2_msgs/msg/TFMessage"
JOINTS = "sensor_msgs/msg/JointState"
TEXT = "std_msgs/msg/String"
CHUNK = "rsd_msgs/msg/ActionChunk"
ACTION = "rsd_msgs/msg/Action"
TWIST = "geometry_msgs/msg/TwistStamped"
EPISODE = "rsd_msgs/msg/EpisodeStatus"

GRIPPER_SIGNS = {"positive closes": 1.0, "positive opens": -1.0}
STATE_CHECKS = ("refuse", "warn", "off")
AS_PUBLISHED = (0.0, 0.0, 0.0, 0.0)
"""`toward` of a quaternion whose sign is kept."""


@dataclass(frozen=True)
class Camera:
    """One camera.

    Attributes:
        name: what the policy calls it.
        topic, type: where its images are.
        operations: applied to the decoded image, in this order.
    """

    name: str
    topic: str
    type: str = IMAGE
    operations: tuple[Operation, ...] = ()


@dataclass(frozen=True)
class EefPose:
    """Pose of the end effector, a geometry_msgs/PoseStamped; or out of TF, of `tool` in `frame`.

    Attributes:
        tool: child frame on /tf; empty: the pose is published.
        frame: header.frame_id that is expected; empty: any.
        toward: quaternion (x, y, z, w); of the two signs of the same rotation the one on its side is taken. All 0: as
            published.
        base_translation: m, and base_rotation (x, y, z, w): pose of the published frame in the frame that the policy
            was trained in (LIBERO: the world).
        tool_rotation: (x, y, z, w), turns the published end effector's axes into those of the training.
    """

    topic: str
    frame: str = ""
    toward: tuple[float, ...] = AS_PUBLISHED
    base_translation: tuple[float, ...] = (0.0, 0.0, 0.0)
    base_rotation: tuple[float, ...] = (0.0, 0.0, 0.0, 1.0)
    tool_rotation: tuple[float, ...] = (0.0, 0.0, 0.0, 1.0)
    tool: str = ""


@dataclass(frozen=True)
class Gripper:
    """The two finger positions, out of a sensor_msgs/JointState.

    Attributes:
        joints: the two fingers; or one joint, whose position is the width: half of it is each finger's.
        scale: [2], m per published unit, with the sign of the training (LIBERO: the second finger's is negative).
    """

    topic: str
    joints: tuple[str, ...]
    scale: tuple[float, ...] = (1.0, 1.0)


@dataclass(frozen=True)
class Alignment:
    """How the messages of one observation find each other.

    Attributes:
        how: "exact" (equal stamps) or "nearest" (to the reference camera's stamp, within the tolerance).
        stamps: "header", or "arrival" for robots whose headers say nothing.
        reference: the camera whose images are answered.
        tolerance_s: largest distance of a stamp from the reference's.
        wait_s: how long after the reference an input is awaited that might still come nearer.
    """

    how: str = "exact"
    stamps: str = "header"
    reference: str = ""
    tolerance_s: float = 0.0
    wait_s: float = 0.0


@dataclass(frozen=True)
class ActionMeaning:
    """What a full-scale action does, and how far two of them may differ.

    Attributes:
        frame: axes of translation and rotation.
        translation_m, rotation_rad: movement of one control step per action unit.
        gripper_sign: 1 when recorded commands close the gripper with positive values, as LIBERO's do; else -1.
        period_s: control step.
        chunks, commands, episode: topics on which the graph's answers are recorded.
        commands_type: rsd_msgs/Action, or geometry_msgs/TwistStamped (m/s, rad/s) as teleoperation and servo send it.
        tolerance_mm, tolerance_rad, tolerance_gripper: largest difference per step that a replay calls equal.
    """

    frame: str
    translation_m: float
    rotation_rad: float
    gripper_sign: float = 1.0
    period_s: float = 0.05
    chunks: str = "action_chunk"
    commands: str = "action"
    commands_type: str = ACTION
    episode: str = "episode"
    tolerance_mm: float = 0.0
    tolerance_rad: float = 0.0
    tolerance_gripper: float = 0.0


@dataclass(frozen=True)
class Contract:
    """See the module's docstring; `lerobot`: how datasets of this robot are laid out; `text` is the file as read."""

    robot: str
    cameras: tuple[Camera, ...]
    pose: EefPose
    gripper: Gripper
    instruction_topic: str
    instruction: str
    alignment: Alignment
    action: ActionMeaning
    state_check: str
    path: Path = field(compare=False)
    text: str = field(compare=False, repr=False)
    lerobot: LeRobotColumns | None = None

    @property
    def inputs(self) -> dict[str, tuple[str, str]]:
        """Input -> (topic, type) of everything that an observation is made of; one topic may serve two inputs."""
        found = {camera.name: (camera.topic, camera.type) for camera in self.cameras}
        kind = TRANSFORMS if self.pose.tool else POSE
        return found | {"pose": (self.pose.topic, kind), "joints": (self.gripper.topic, JOINTS)}

    @property
    def latched(self) -> dict[str, tuple[str, str]]:
        """Input -> (topic, type) of what is said once and holds from then on; a recording need not have it."""
        return {"static transforms": ("/tf_static", TRANSFORMS)} if self.pose.tool else {}

    @property
    def topics(self) -> dict[str, str]:
        """Topic -> type of everything that a recording holds."""
        return dict((self.inputs | self.latched).values()) | {
            self.instruction_topic: TEXT,
            self.action.chunks: CHUNK,
            self.action.commands: self.action.commands_type,
            self.action.episode: EPISODE,
        }


def find_contract(name: str) -> Path:
    """The file of a robot.

    Args:
        name: of a contract in config/robots/, or the path of a file.

    Raises:
        ArgumentError: there is none.
    """
    if name.endswith((".yaml", ".yml")) or "/" in name:
        return Path(name).expanduser()
    folder = shared_path(str(ROBOTS))
    path = folder / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in folder.glob("*.yaml") if p.stem != "template"))
        raise ArgumentError(f"robot: expected one of {known}, or the path of a contract (.yaml), got '{name}'")
    return path


def load_contract(name: str = DEFAULT_ROBOT) -> Contract:
    """Read and check a contract.

    Args:
        name: as `find_contract`.

    Raises:
        ArgumentError: with file, line and fix, when it is wrong or incomplete.
    """
    path = find_contract(name)
    root = Section.load(path)
    robot = root.text("robot")
    cameras = tuple(_camera(name, section) for name, section in root.sections("cameras").items())
    state = root.section("state")
    assert state is not None
    pose, gripper = _pose(state), _gripper(state)
    state_check = state.text("check", "refuse", choices=STATE_CHECKS)
    state.end()
    instruction = root.section("instruction")
    assert instruction is not None
    topic = instruction.text("topic", "instruction")
    text = instruction.text("text", " ")
    instruction.end()
    alignment = _alignment(root, cameras)
    action = _action(root)
    section = root.section("lerobot", required=False)
    lerobot = None if section is None else parse_lerobot(section, [camera.name for camera in cameras])
    root.end()
    return Contract(
        robot, cameras, pose, gripper, topic, text.strip(), alignment, action, state_check, path,
        path.read_text(encoding="utf-8"), lerobot,
    )  # fmt: skip


def _camera(name: str, section: Section) -> Camera:
    topic = section.text("topic")
    kind = section.text("type", IMAGE, choices=IMAGE_TYPES)
    operations = []
    for item in section.items("operations"):
        try:
            operations.append(parse_operation(item))
        except ValueError as error:
            raise section.at("operations", str(error)) from None
    section.end()
    return Camera(name, topic, kind, tuple(operations))


def _pose(state: Section) -> EefPose:
    section = state.section("pose")
    assert section is not None
    frames = section.section("tf", required=False)
    if frames is None:
        topic, frame, tool = section.text("topic"), section.text("frame", " ").strip(), ""
    else:
        topic, frame, tool = "/tf", frames.text("base"), frames.text("tool")
        frames.end()
        for key in ("topic", "frame"):
            if section.has(key):
                raise section.at(key, "state.pose.tf says it already; keep one of them")
    pose = EefPose(
        topic=topic,
        frame=frame.removeprefix("/") if tool else frame,
        tool=tool,
        toward=AS_PUBLISHED if not section.has("toward") else section.numbers("toward", 4),
        base_translation=section.numbers("base_translation", 3, (0.0, 0.0, 0.0)),
        base_rotation=_rotation(section, "base_rotation"),
        tool_rotation=_rotation(section, "tool_rotation"),
    )
    section.end()
    return pose


def _rotation(section: Section, key: str) -> tuple[float, ...]:
    values = section.numbers(key, 4, (0.0, 0.0, 0.0, 1.0))
    length = math.sqrt(sum(value * value for value in values))
    if abs(length - 1.0) > 1e-3:
        raise section.at(key, f"expected a unit quaternion (x, y, z, w), got one of length {length:.3f}")
    return values


def _gripper(state: Section) -> Gripper:
    section = state.section("gripper")
    assert section is not None
    gripper = Gripper(section.text("topic"), section.texts("joints"), section.numbers("scale", 2, (1.0, 1.0)))
    if len(gripper.joints) not in (1, 2):
        raise section.at("joints", f"expected the two fingers, or one joint with the width, got {len(gripper.joints)}")
    if 0.0 in gripper.scale:
        raise section.at("scale", "expected two numbers other than 0: m per published unit, with the training's sign")
    section.end()
    return gripper


def _alignment(root: Section, cameras: tuple[Camera, ...]) -> Alignment:
    section = root.section("alignment")
    assert section is not None
    names = [camera.name for camera in cameras]
    how = section.text("how", choices=("exact", "nearest"))
    alignment = Alignment(
        how=how,
        stamps=section.text("stamps", "header", choices=("header", "arrival")),
        reference=section.text("reference", names[0], choices=names),
        tolerance_s=section.number("tolerance", None if how == "nearest" else 0.0, low=0.0, high=10.0, unit="s"),
        wait_s=section.number("wait", None if how == "nearest" else 0.0, low=0.0, high=10.0, unit="s"),
    )
    if alignment.how == "exact" and alignment.stamps == "arrival":
        raise section.at("stamps", "times of arrival are never equal; use 'how: nearest' with a tolerance")
    if alignment.how == "nearest" and alignment.tolerance_s == 0.0:
        raise section.at("tolerance", "expected more than 0 s with 'how: nearest'")
    section.end()
    return alignment


def _action(root: Section) -> ActionMeaning:
    section = root.section("action")
    assert section is not None
    tolerance = section.section("tolerance", required=False)
    limits = {"mm": 0.0, "rad": 0.0, "gripper": 0.0}
    if tolerance is not None:
        limits = {key: tolerance.number(key, 0.0, low=0.0, high=1000.0) for key in limits}
        tolerance.end()
    action = ActionMeaning(
        frame=section.text("frame"),
        translation_m=section.number("translation", low=1e-6, high=1.0, unit="m"),
        rotation_rad=section.number("rotation", low=1e-6, high=math.pi, unit="rad"),
        chunks=section.text("chunks", "action_chunk"),
        gripper_sign=GRIPPER_SIGNS[section.text("gripper", "positive closes", choices=tuple(GRIPPER_SIGNS))],
        period_s=section.number("period", 0.05, low=1e-3, high=1.0, unit="s"),
        commands=section.text("commands", "action"),
        commands_type=section.text("commands_type", ACTION, choices=(ACTION, TWIST)),
        episode=section.text("episode", "episode"),
        tolerance_mm=limits["mm"],
        tolerance_rad=limits["rad"],
        tolerance_gripper=limits["gripper"],
    )
    section.end()
    return action
