"""Makes an observation of the messages of one moment, as a contract says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rsd_policy.observation import Observation
from rsd_policy.robots.contract import Contract
from rsd_policy.robots.image_operations import apply_operations
from rsd_policy.robots.images import VideoDecoder, decode_image, is_video
from rsd_policy.robots.state import compose_state
from rsd_policy.robots.transforms import TransformTree


class Composer:
    """Decodes messages (rclpy's or rosbags') of the inputs of one robot."""

    def __init__(self, contract: Contract) -> None:
        self._contract = contract
        self._kinds = {camera.name: camera.type for camera in contract.cameras}
        self._latched = contract.latched
        self._transforms = TransformTree(contract.pose.frame, contract.pose.tool) if contract.pose.tool else None
        self._videos = {c.name: VideoDecoder(c.topic) for c in contract.cameras if is_video(c.type)}

    def take(self, name: str, message: Any) -> Any | None:
        """What to keep of a message as it comes; None when there is nothing to keep.

        Video is decoded at once, and transforms become the pose, with its own stamp.
        """
        if self._transforms is not None and (name == "pose" or name in self._latched):
            return self._transforms.take(message, static=name in self._latched)
        video = self._videos.get(name)
        return message if video is None else video.decode(message, self._kinds[name])

    def problem(self) -> str | None:
        """Why no message so far gave what was to be composed of several; None when all is well."""
        return None if self._transforms is None else self._transforms.problem()

    def observation(self, messages: Mapping[str, Any], instruction: str, stamp: int) -> Observation:
        """The observation of a moment.

        Args:
            messages: input -> what `take` returned.
            instruction: what to do.
            stamp: ns.

        Raises:
            ObservationError: a message is malformed, or not what the contract says.
        """
        images = {}
        for camera in self._contract.cameras:
            message = messages[camera.name]
            decoded = message if camera.name in self._videos else decode_image(message, camera.type, camera.topic)
            images[camera.name] = apply_operations(decoded, camera.operations, camera.name)
        state = compose_state(messages["pose"], messages["joints"], self._contract.pose, self._contract.gripper)
        return Observation(images=images, proprio=state, instruction=instruction, stamp=stamp * 1e-9)
