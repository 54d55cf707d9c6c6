"""The pose of one frame in another, out of the transforms on /tf and /tf_static of a recording."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from rsd_policy.errors import ArgumentError
from rsd_policy.robots.contract import Contract
from rsd_policy.robots.state import multiply, rotate, stamp_of

SHOWN = 20
"""Frames that a message names."""


@dataclass(frozen=True)
class Link:
    """A frame in its parent: translation [3], m, rotation (x, y, z, w); header: of a moving link, None of a static."""

    parent: str
    translation: list[float]
    rotation: list[float]
    header: Any | None


class TransformTree:
    """The latest transform of every frame, and the pose of `tool` in `base`.

    Nothing is interpolated: of links that several publishers move, each has its latest place.
    """

    def __init__(self, base: str, tool: str) -> None:
        self._base, self._tool = _plain(base), _plain(tool)
        self._links: dict[str, Link] = {}
        self._emitted = -1

    def take(self, message: Any, *, static: bool) -> Any | None:
        """Take a tf2_msgs/TFMessage.

        Returns:
            The pose like a geometry_msgs/PoseStamped, with the stamp of the oldest moving transform that it is made
            of; None when it did not become newer by this message, or the frames are not connected.
        """
        for transform in message.transforms:
            t, q = transform.transform.translation, transform.transform.rotation
            self._links[_plain(transform.child_frame_id)] = Link(
                _plain(transform.header.frame_id),
                [t.x, t.y, t.z],
                [q.x, q.y, q.z, q.w],
                None if static else transform.header,
            )
        paths = None if static else self._paths()
        if paths is None:
            return None
        down, up = paths
        moving = [link.header for link in (*down, *up) if link.header is not None]
        if not moving:
            return None
        header = min(moving, key=lambda head: stamp_of(SimpleNamespace(header=head)))
        stamp = stamp_of(SimpleNamespace(header=header))
        if stamp == self._emitted:
            return None
        self._emitted = stamp
        position, quaternion = _relative(_compose(up), _compose(down))
        return SimpleNamespace(
            header=SimpleNamespace(frame_id=self._base, stamp=header.stamp),
            pose=SimpleNamespace(
                position=SimpleNamespace(**dict(zip("xyz", position, strict=True))),
                orientation=SimpleNamespace(**dict(zip("xyzw", quaternion, strict=True))),
            ),
        )

    def problem(self) -> str | None:
        """Why there has been no pose yet; None when there has."""
        if self._emitted >= 0:
            return None
        missing = [frame for frame in (self._base, self._tool) if not self._known(frame)]
        frames = sorted({*self._links, *(link.parent for link in self._links.values())})
        there = ", ".join(frames[:SHOWN]) + (", ..." if len(frames) > SHOWN else "") or "none"
        if missing:
            return f"/tf and /tf_static have no frame {' and '.join(missing)} (state.pose.tf); they have {there}"
        if self._paths() is None:
            return f"/tf and /tf_static do not connect {self._base} and {self._tool} (state.pose.tf)"
        return f"nothing between {self._base} and {self._tool} moves on /tf (state.pose.tf)"

    def _known(self, frame: str) -> bool:
        return frame in self._links or any(link.parent == frame for link in self._links.values())

    def _paths(self) -> tuple[list[Link], list[Link]] | None:
        """Links from the tool, and from the base, up to the first frame that both hang on."""
        tool, base = self._ancestors(self._tool), self._ancestors(self._base)
        common = next((frame for frame in tool if frame in base), None)
        if common is None:
            return None
        below = ([self._links[frame] for frame in line[: line.index(common)]] for line in (tool, base))
        return next(below), next(below)

    def _ancestors(self, frame: str) -> list[str]:
        """The frame itself, its parent, and so on; a ring ends where it closes."""
        line = [frame]
        while line[-1] in self._links and self._links[line[-1]].parent not in line:
            line.append(self._links[line[-1]].parent)
        return line


def refuse_transforms(contract: Contract) -> None:
    """Refuse a contract whose pose is in TF where only a published pose will do.

    Raises:
        ArgumentError: says what to do.
    """
    if contract.pose.tool:
        raise ArgumentError(
            f"contract '{contract.robot}': state.pose.tf is read from recordings only (robot check, replay --no-ros, "
            "import); for a running graph publish the pose as geometry_msgs/PoseStamped and give state.pose.topic"
        )


def _plain(frame: str) -> str:
    """ROS 1 began names of frames with a slash."""
    return frame.removeprefix("/")


def _compose(links: list[Link]) -> tuple[list[float], list[float]]:
    """Pose of the first link's frame in the last one's parent."""
    position, quaternion = [0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]
    for link in links:
        turned = rotate(link.rotation, position)
        position = [a + b for a, b in zip(link.translation, turned, strict=True)]
        quaternion = multiply(link.rotation, quaternion)
    return position, quaternion


def _relative(
    base: tuple[list[float], list[float]], tool: tuple[list[float], list[float]]
) -> tuple[list[float], list[float]]:
    """Pose of the tool in the base, both given in the same frame."""
    x, y, z, w = base[1]
    back = [-x, -y, -z, w]
    position = rotate(back, [b - a for a, b in zip(base[0], tool[0], strict=True)])
    return position, multiply(back, tool[1])
