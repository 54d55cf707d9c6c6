"""Image messages of any camera driver as RGB arrays.

The conversions are OpenCV's, with the code for each encoding that cv_bridge uses, so the pixels are those that
cv_bridge gives. cv_bridge itself is only on full ROS installs, and rosbags-image (0.10.4) ignores row padding and
truncates 16 bit values where cv_bridge rounds. Messages are read by their fields: rclpy's and rosbags' do alike.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rsd_policy.errors import ObservationError, SetupError
from rsd_policy.robots.contract import COMPRESSED_IMAGE, COMPRESSED_VIDEO, FFMPEG_PACKET, IMAGE

CHANNELS = {
    "rgb8": 3, "bgr8": 3, "rgba8": 4, "bgra8": 4, "mono8": 1, "8UC1": 1,
    "rgb16": 3, "bgr16": 3, "rgba16": 4, "bgra16": 4, "mono16": 1,
    "yuv422": 2, "uyvy": 2, "yuv422_yuy2": 2, "yuyv": 2,
    **{f"bayer_{order}{bits}": 1 for order in ("rggb", "bggr", "gbrg", "grbg") for bits in (8, 16)},
}  # fmt: skip
"""Encoding -> channels, after sensor_msgs/image_encodings.hpp."""

CONVERSIONS = {
    "rgba8": "RGBA2RGB", "bgra8": "BGRA2RGB", "mono8": "GRAY2RGB", "8UC1": "GRAY2RGB",
    "bgr16": "BGR2RGB", "rgba16": "RGBA2RGB", "bgra16": "BGRA2RGB", "mono16": "GRAY2RGB",
    "yuv422": "YUV2RGB_UYVY", "uyvy": "YUV2RGB_UYVY", "yuv422_yuy2": "YUV2RGB_YUYV", "yuyv": "YUV2RGB_YUYV",
    # OpenCV names a pattern by the second row's second and third pixel, ROS by the first two rows
    **{f"bayer_{ros}{bits}": f"Bayer{cv}2RGB" for ros, cv in
       (("rggb", "BG"), ("bggr", "RG"), ("gbrg", "GR"), ("grbg", "GB")) for bits in (8, 16)},
}  # fmt: skip
"""Encoding -> name of OpenCV's conversion to RGB."""

WITHOUT_COLOUR = ("16UC1", "32FC1")
"""What depth cameras send."""


def decode_image(msg: Any, kind: str, topic: str) -> NDArray[np.uint8]:
    """An image message as uint8 [H, W, 3] RGB; a view of the message's data where that is possible.

    Args:
        msg: sensor_msgs/Image or CompressedImage; video needs a `VideoDecoder`.
        kind: its type.
        topic: where it came from, for messages.

    Raises:
        ObservationError: an encoding that is no colour image, or data that do not fit the header.
    """
    return _compressed(msg, topic) if kind == COMPRESSED_IMAGE else _raw(msg, topic)


def is_video(kind: str) -> bool:
    """Whether one image needs the messages before it."""
    return kind not in (IMAGE, COMPRESSED_IMAGE)


def _raw(msg: Any, topic: str) -> NDArray[np.uint8]:
    encoding = msg.encoding
    if encoding in WITHOUT_COLOUR:
        raise ObservationError(f"{topic}: '{encoding}' is a depth image, without colours; give the colour topic")
    if encoding not in CHANNELS:
        raise ObservationError(f"{topic}: expected an encoding of {', '.join(CHANNELS)}, got '{encoding}'")
    sixteen = encoding.endswith("16")
    pixel = CHANNELS[encoding] * (2 if sixteen else 1)
    row = pixel * msg.width
    data = np.frombuffer(msg.data, dtype=np.uint8)
    if msg.width == 0 or msg.height == 0 or msg.step < row or len(data) != msg.step * msg.height:
        raise ObservationError(
            f"{topic}: expected {msg.height} rows of {msg.step} bytes with {msg.width} pixels of {pixel} bytes each, "
            f"got {len(data)} bytes"
        )
    rows = data.reshape(msg.height, msg.step)[:, :row]
    if encoding in ("rgb8", "bgr8"):
        image = rows.reshape(msg.height, msg.width, 3)
        return image if encoding == "rgb8" else np.ascontiguousarray(image[..., ::-1])
    import cv2  # 30 ms that cameras with rgb8 need not spend

    pixels: Any = np.ascontiguousarray(rows)
    if sixteen:
        pixels = pixels.view(np.uint16)
        if bool(msg.is_bigendian) != (sys.byteorder == "big"):
            pixels = pixels.byteswap()
    pixels = pixels.reshape(msg.height, msg.width, CHANNELS[encoding])
    if encoding in CONVERSIONS:
        try:
            pixels = cv2.cvtColor(pixels, getattr(cv2, f"COLOR_{CONVERSIONS[encoding]}"))
        except cv2.error as error:
            raise ObservationError(
                f"{topic}: {msg.width} x {msg.height} pixels cannot be '{encoding}': {error}"
            ) from error
    # as cv_bridge scales 16 bits to 8, rounding
    return cv2.convertScaleAbs(pixels, alpha=255.0 / 65535.0) if sixteen else pixels


def _compressed(msg: Any, topic: str) -> NDArray[np.uint8]:
    import cv2

    if "compressedDepth" in msg.format:
        raise ObservationError(f"{topic}: '{msg.format}' is a depth image, without colours; give the colour topic")
    data = np.frombuffer(msg.data, dtype=np.uint8)
    cut = data[:2].tobytes() == b"\xff\xd8" and b"\xff\xd9" not in data[-64:].tobytes()
    image = None if cut or not len(data) else _imdecode(data)
    if image is None:
        raise ObservationError(
            f"{topic}: expected a whole JPEG or PNG, got {len(data)} bytes of format '{msg.format}'"
            + (" that end early" if cut else "")
        )
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _imdecode(data: NDArray[np.uint8]) -> Any:
    import cv2

    try:
        return cv2.imdecode(data, cv2.IMREAD_COLOR)
    except cv2.error:
        return None


class VideoDecoder:
    """Images of an H.264 or H.265 stream in messages (ffmpeg_image_transport, Foxglove's CompressedVideo).

    Needs PyAV (extra [video]). Every message has to be given, in order.
    """

    def __init__(self, topic: str) -> None:
        self._topic = topic
        self._context: Any = None

    def decode(self, msg: Any, kind: str) -> NDArray[np.uint8] | None:
        """The image of a message, uint8 [H, W, 3] RGB; None before the first key frame.

        Raises:
            SetupError: PyAV is not installed.
            ObservationError: the stream's format is unknown, or the data cannot be decoded.
        """
        try:
            import av
        except ImportError as error:
            raise SetupError(f"{self._topic}: video needs PyAV: pip install 'rsd_policy[video]'") from error
        name = _codec(msg.encoding if kind == FFMPEG_PACKET else msg.format)
        if name is None or kind not in (FFMPEG_PACKET, COMPRESSED_VIDEO):
            raise ObservationError(f"{self._topic}: expected H.264 or H.265 video, got '{kind}'")
        if self._context is None:
            self._context = av.CodecContext.create(name, "r")
            # one image per packet at once: frame threads would hold images back
            self._context.thread_type = "SLICE"
            self._context.options = {"flags": "low_delay"}
        try:
            frames = self._context.decode(av.Packet(bytes(msg.data)))
        except av.error.InvalidDataError:
            return None  # a stream that is joined midway: nothing can be shown until the next key frame
        except av.error.FFmpegError as error:
            raise ObservationError(f"{self._topic}: video cannot be decoded: {error}") from error
        image: NDArray[np.uint8] | None = frames[-1].to_ndarray(format="rgb24") if frames else None
        return image


def _codec(text: str) -> str | None:
    low = text.lower()
    if any(word in low for word in ("264", "avc")):
        return "h264"
    return "hevc" if any(word in low for word in ("265", "hevc")) else None
