"""Images of every encoding that camera drivers send: the pixels that OpenCV and cv_bridge give, or a refusal."""

from __future__ import annotations

from fractions import Fraction
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from rsd_policy.errors import ObservationError
from rsd_policy.robots.contract import COMPRESSED_IMAGE, COMPRESSED_VIDEO, FFMPEG_PACKET, IMAGE
from rsd_policy.robots.image_operations import Operation, apply_operations
from rsd_policy.robots.images import CHANNELS, VideoDecoder, decode_image

RNG = np.random.default_rng(7)
HEIGHT, WIDTH = 6, 8


def message(encoding: str, *, padding: int = 0, big_endian: bool = False):
    """A message with random pixels, and these as an array [H, W, C]."""
    kind = np.uint16 if encoding.endswith("16") else np.uint8
    pixels = RNG.integers(0, np.iinfo(kind).max + 1, (HEIGHT, WIDTH, CHANNELS[encoding]), dtype=kind)
    sent = pixels.byteswap() if big_endian else pixels
    rows = np.frombuffer(sent.tobytes(), np.uint8).reshape(HEIGHT, -1)
    rows = np.pad(rows, ((0, 0), (0, padding)), constant_values=77)
    msg = SimpleNamespace(
        height=HEIGHT,
        width=WIDTH,
        encoding=encoding,
        is_bigendian=int(big_endian),
        step=rows.shape[1],
        data=rows.tobytes(),
    )
    return msg, pixels


def as_8_bits(pixels):
    return cv2.convertScaleAbs(pixels, alpha=255.0 / 65535.0) if pixels.dtype == np.uint16 else pixels


EXPECTED = {
    "rgb8": lambda p: p,
    "bgr8": lambda p: p[..., ::-1],
    "rgba8": lambda p: p[..., :3],
    "bgra8": lambda p: p[..., 2::-1],
    "mono8": lambda p: np.repeat(p, 3, axis=2),
    "8UC1": lambda p: np.repeat(p, 3, axis=2),
    "rgb16": lambda p: as_8_bits(p),
    "bgr16": lambda p: as_8_bits(p)[..., ::-1],
    "rgba16": lambda p: as_8_bits(p)[..., :3],
    "bgra16": lambda p: as_8_bits(p)[..., 2::-1],
    "mono16": lambda p: np.repeat(as_8_bits(p).reshape(HEIGHT, WIDTH, 1), 3, axis=2),
    "yuv422": lambda p: cv2.cvtColor(p, cv2.COLOR_YUV2RGB_UYVY),
    "uyvy": lambda p: cv2.cvtColor(p, cv2.COLOR_YUV2RGB_UYVY),
    "yuv422_yuy2": lambda p: cv2.cvtColor(p, cv2.COLOR_YUV2RGB_YUY2),
    "yuyv": lambda p: cv2.cvtColor(p, cv2.COLOR_YUV2RGB_YUY2),
    # cv_bridge's table: ROS's rggb is OpenCV's BayerBG
    "bayer_rggb8": lambda p: cv2.cvtColor(p, cv2.COLOR_BayerBG2RGB),
    "bayer_bggr8": lambda p: cv2.cvtColor(p, cv2.COLOR_BayerRG2RGB),
    "bayer_gbrg8": lambda p: cv2.cvtColor(p, cv2.COLOR_BayerGR2RGB),
    "bayer_grbg8": lambda p: cv2.cvtColor(p, cv2.COLOR_BayerGB2RGB),
    "bayer_rggb16": lambda p: as_8_bits(cv2.cvtColor(p, cv2.COLOR_BayerBG2RGB)),
    "bayer_bggr16": lambda p: as_8_bits(cv2.cvtColor(p, cv2.COLOR_BayerRG2RGB)),
    "bayer_gbrg16": lambda p: as_8_bits(cv2.cvtColor(p, cv2.COLOR_BayerGR2RGB)),
    "bayer_grbg16": lambda p: as_8_bits(cv2.cvtColor(p, cv2.COLOR_BayerGB2RGB)),
}


@pytest.mark.parametrize("padding", [0, 6], ids=["tight", "padded"])
@pytest.mark.parametrize("encoding", sorted(CHANNELS))
def test_every_encoding_gives_the_pixels_of_opencv(encoding, padding):
    msg, pixels = message(encoding, padding=padding)
    image = decode_image(msg, IMAGE, "camera")
    assert image.shape == (HEIGHT, WIDTH, 3) and image.dtype == np.uint8
    assert np.array_equal(image, EXPECTED[encoding](pixels))


@pytest.mark.parametrize("encoding", [name for name in sorted(CHANNELS) if name.endswith("16")])
def test_big_endian_pixels_are_turned(encoding):
    msg, pixels = message(encoding, big_endian=True)
    assert np.array_equal(decode_image(msg, IMAGE, "camera"), EXPECTED[encoding](pixels))


@pytest.mark.parametrize("order", ["rggb", "bggr", "gbrg", "grbg"])
def test_a_bayer_mosaic_of_one_colour_comes_out_in_that_colour(order):
    """OpenCV and ROS name the patterns differently, and a swap of red and blue is silent."""
    colour = {"r": 200, "g": 120, "b": 40}
    mosaic = np.array([[colour[order[0]], colour[order[1]]], [colour[order[2]], colour[order[3]]]], np.uint8)
    data = np.tile(mosaic, (4, 4))
    msg = SimpleNamespace(
        height=8, width=8, encoding=f"bayer_{order}8", is_bigendian=0, step=8, data=np.ascontiguousarray(data).tobytes()
    )
    assert decode_image(msg, IMAGE, "camera")[4, 4].tolist() == [200, 120, 40]


@pytest.mark.parametrize(
    "encoding", ["rgb8", "bgr8", "rgba8", "bgra8", "mono8", "yuv422", "yuv422_yuy2", "bayer_rggb8"]
)
def test_rosbags_image_gives_the_same_pixels(encoding):
    library = pytest.importorskip("rosbags.image")
    msg, _ = message(encoding)
    assert np.array_equal(decode_image(msg, IMAGE, "camera"), library.image_to_cvimage(msg, "rgb8"))


def test_cv_bridge_gives_the_same_pixels():
    bridge = pytest.importorskip("cv_bridge").CvBridge()
    from sensor_msgs.msg import Image

    for encoding in sorted(CHANNELS):
        plain, _ = message(encoding)
        theirs = bridge.imgmsg_to_cv2(Image(**vars(plain)), "rgb8")
        assert np.array_equal(decode_image(plain, IMAGE, "camera"), theirs), encoding


@pytest.mark.parametrize(
    ("encoding", "reason"), [("16UC1", "depth"), ("32FC1", "depth"), ("8UC3", "expected an encoding")]
)
def test_what_holds_no_colours_is_refused_with_the_reason(encoding, reason):
    msg, _ = message("mono8")
    msg.encoding = encoding
    with pytest.raises(ObservationError, match=rf"wrist/image_raw: .*{reason}"):
        decode_image(msg, IMAGE, "wrist/image_raw")


@pytest.mark.parametrize("extension", [".jpg", ".png"])
def test_compressed_images_have_red_where_red_was(extension):
    red = np.zeros((16, 16, 3), np.uint8)
    red[..., 0] = 255
    data = cv2.imencode(extension, red[..., ::-1])[1].tobytes()
    image = decode_image(SimpleNamespace(format=f"rgb8; {extension}", data=data), COMPRESSED_IMAGE, "camera")
    assert np.abs(image.astype(int) - red).max() < 5


@pytest.mark.parametrize("data", [b"", b"nothing", None], ids=["empty", "rubbish", "cut"])
def test_a_broken_jpeg_is_refused_and_never_half_grey(data):
    """OpenCV decodes a JPEG that ends early, and fills the rest with grey."""
    image = RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    whole = cv2.imencode(".jpg", image)[1].tobytes()
    sent = whole[: len(whole) // 2] if data is None else data
    with pytest.raises(ObservationError, match="whole JPEG or PNG"):
        decode_image(SimpleNamespace(format="jpeg", data=sent), COMPRESSED_IMAGE, "camera")


def test_compressed_depth_is_refused_with_the_reason():
    with pytest.raises(ObservationError, match="depth image"):
        decode_image(SimpleNamespace(format="16UC1; compressedDepth png", data=b"x"), COMPRESSED_IMAGE, "camera")


@pytest.mark.parametrize(("kind", "name"), [(FFMPEG_PACKET, "encoding"), (COMPRESSED_VIDEO, "format")])
def test_h264_gives_one_image_per_message_from_the_first_key_frame_on(kind, name):
    av = pytest.importorskip("av")
    encoder = av.CodecContext.create("libx264", "w")
    encoder.width, encoder.height, encoder.pix_fmt = 64, 48, "yuv420p"
    encoder.time_base, encoder.options = Fraction(1, 30), {"tune": "zerolatency", "g": "5", "sc_threshold": "0"}
    packets = []
    for i in range(10):
        picture = np.full((48, 64, 3), (20 * i, 255 - 20 * i, 0), np.uint8)
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        frame.pts = i
        packets += [bytes(packet) for packet in encoder.encode(frame)]
    decoder = VideoDecoder("camera")
    images = [decoder.decode(SimpleNamespace(**{name: "h264"}, data=packet), kind) for packet in packets]
    assert [image is not None for image in images] == [True] * 10
    for i, image in enumerate(images):
        assert np.abs(image.astype(int).mean(axis=(0, 1)) - (20 * i, 255 - 20 * i, 0)).max() < 12
    late = VideoDecoder("camera")
    assert late.decode(SimpleNamespace(**{name: "h264"}, data=packets[1]), kind) is None


def test_operations_are_applied_in_order():
    image = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    steps = (Operation("rotate_180"), Operation("mirror"), Operation("crop", (1, 0, 4, 2)))
    assert np.array_equal(apply_operations(image, steps, "wrist"), image[::-1][:2, 1:5])
    assert apply_operations(image, (Operation("resize", (3, 2)),), "wrist").shape == (2, 3, 3)


def test_a_crop_outside_the_image_is_refused():
    with pytest.raises(ObservationError, match="at least 7 x 2 pixels for its crop, got 6 x 4"):
        apply_operations(np.zeros((4, 6, 3), np.uint8), (Operation("crop", (3, 0, 4, 2)),), "wrist")
