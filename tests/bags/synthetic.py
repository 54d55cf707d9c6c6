"""A robot that never was, as rows of serialised messages, and every container to put them in."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import yaml
from mcap.writer import CompressionType, IndexType
from mcap.writer import Writer as McapWriter
from rosbags.rosbag1 import Writer as Writer1
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin
from rosbags.rosbag2 import Writer as Writer2
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from rsd_policy.bags.message_types import own_messages
from rsd_policy.bags.writer import BagWriter

STORE = get_typestore(Stores.ROS2_JAZZY)
STORE.register(own_messages())
STORE.register(get_types_from_msg("float64[] secret\nuint8 letter", "foreign_msgs/msg/Unheard"))

START = 1_700_000_000_000_000_000
PERIOD = 50_000_000
INSTRUCTION = "pick up the bowl"


@dataclass(frozen=True)
class Row:
    topic: str
    type: str
    time: int
    message: object

    @property
    def cdr(self) -> bytes:
        return bytes(STORE.serialize_cdr(self.message, self.type))


def make(kind: str, **values: object) -> object:
    return STORE.types[kind](**values)


def header(stamp: int, frame: str = "world") -> object:
    time = make("builtin_interfaces/msg/Time", sec=stamp // 10**9, nanosec=stamp % 10**9)
    return make("std_msgs/msg/Header", stamp=time, frame_id=frame)


def image(pixels: np.ndarray, stamp: int, encoding: str = "rgb8") -> object:
    data = np.ascontiguousarray(pixels).view(np.uint8).reshape(-1)
    return make(
        "sensor_msgs/msg/Image",
        header=header(stamp, "camera"),
        height=pixels.shape[0],
        width=pixels.shape[1],
        encoding=encoding,
        is_bigendian=0,
        step=len(data) // pixels.shape[0],
        data=data,
    )


def jpeg(pixels: np.ndarray, stamp: int) -> object:
    data = np.frombuffer(cv2.imencode(".jpg", pixels[..., ::-1])[1].tobytes(), np.uint8)
    return make("sensor_msgs/msg/CompressedImage", header=header(stamp), format="rgb8; jpeg compressed bgr8", data=data)


def pose(position: Sequence[float], quaternion: Sequence[float], stamp: int) -> object:
    p = make("geometry_msgs/msg/Point", **dict(zip("xyz", map(float, position), strict=True)))
    q = make("geometry_msgs/msg/Quaternion", **dict(zip("xyzw", map(float, quaternion), strict=True)))
    inner = make("geometry_msgs/msg/Pose", position=p, orientation=q)
    return make("geometry_msgs/msg/PoseStamped", header=header(stamp), pose=inner)


def joints(fingers: Sequence[float], stamp: int) -> object:
    empty = np.zeros(0)
    return make(
        "sensor_msgs/msg/JointState",
        header=header(stamp),
        name=["panda_finger_joint1", "panda_finger_joint2"],
        position=np.asarray(fingers, np.float64),
        velocity=empty,
        effort=empty,
    )


def string(text: str) -> object:
    return make("std_msgs/msg/String", data=text)


def robot(moments: int = 6, *, size: int = 32, seed: int = 0, foreign: bool = True, start: int = START) -> list[Row]:
    """What a robot like the simulated one publishes, `moments` times, beside a topic of a type that nobody knows."""
    rng = np.random.default_rng(seed)
    rows = [Row("/instruction", "std_msgs/msg/String", start, string(INSTRUCTION))]
    for i in range(moments):
        stamp, time = start + i * PERIOD, start + i * PERIOD + 1_000_000
        for camera in ("agentview", "wrist"):
            pixels = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
            rows.append(Row(f"/{camera}/image_raw", "sensor_msgs/msg/Image", time, image(pixels, stamp)))
        quaternion = np.array([1.0, 0.02 * i, 0.0, 0.01])
        where = pose([-0.1, 0.01 * i, 1.0], quaternion / np.linalg.norm(quaternion), stamp)
        rows.append(Row("/eef_pose", "geometry_msgs/msg/PoseStamped", time + 1, where))
        rows.append(Row("/joint_states", "sensor_msgs/msg/JointState", time + 2, joints([0.04, -0.04], stamp)))
        if foreign:
            unheard = make("foreign_msgs/msg/Unheard", secret=np.arange(3.0), letter=1)
            rows.append(Row("/secret", "foreign_msgs/msg/Unheard", time + 3, unheard))
    return rows


def chunk_row(stamp: int, actions: np.ndarray, *, mode: str = "speculative", verified: bool = True) -> Row:
    """A chunk as policy_node publishes it."""
    message = make(
        "rsd_msgs/msg/ActionChunk",
        header=header(stamp, "robot0_base"),
        episode=0,
        horizon=actions.shape[0],
        dof=actions.shape[1],
        actions=np.asarray(actions, np.float32).reshape(-1),
        verified=verified,
        accepted=False,
        skipped=False,
        audited=False,
        levels=8,
        mode=mode,
        policy_sha256="",
        first_action_ms=1.0,
        inference_ms=2.0,
        stage_names=[],
        stage_ms=np.zeros(0, np.float32),
        token_agreement=np.zeros(0, np.float32),
        max_deviation=np.zeros(0, np.float32),
        audit_deviated=False,
    )
    return Row("/action_chunk", "rsd_msgs/msg/ActionChunk", stamp + 10_000_000, message)


# -- containers


def recorded(path: Path, rows: Sequence[Row]) -> Path:
    """As `rsd record` writes it."""
    with BagWriter(path) as writer:
        for topic, kind in dict.fromkeys((row.topic, row.type) for row in rows):
            if kind.startswith("foreign_msgs"):
                continue
            writer.add_topic(topic, kind)
        for row in rows:
            if row.topic in writer.counts:
                writer.write(row.topic, row.time, row.cdr)
    return path


def rosbag2(storage: StoragePlugin, mode: CompressionMode) -> Callable[[Path, Sequence[Row]], Path]:
    def write(path: Path, rows: Sequence[Row]) -> Path:
        writer = Writer2(path, version=9, storage_plugin=storage)
        writer.set_compression(mode, CompressionFormat.ZSTD)
        with writer:
            made: dict[str, object] = {}
            for row in rows:
                if row.topic not in made:
                    made[row.topic] = writer.add_connection(row.topic, row.type, typestore=STORE)
                writer.write(made[row.topic], row.time, row.cdr)
        return path

    return write


def mcap(compression: CompressionType, *, bare: bool = False, chunked: bool = True):
    """A lone .mcap as other writers make it; `bare`: without statistics, index and summary."""

    def write(path: Path, rows: Sequence[Row]) -> Path:
        path.mkdir()
        file = path / "one.mcap"
        with file.open("wb") as stream:
            writer = McapWriter(
                stream,
                chunk_size=4096,
                compression=compression,
                use_chunking=chunked,
                index_types=IndexType.NONE if bare else IndexType.ALL,
                use_statistics=not bare,
                use_summary_offsets=not bare,
                repeat_channels=not bare,
                repeat_schemas=not bare,
            )
            writer.start(profile="ros2")
            channels: dict[str, int] = {}
            for row in rows:
                if row.topic not in channels:
                    text, _ = STORE.generate_msgdef(row.type, ros_version=2)
                    schema = writer.register_schema(row.type, "ros2msg", text.encode())
                    channels[row.topic] = writer.register_channel(row.topic, "cdr", schema)
                writer.add_message(channels[row.topic], row.time, row.cdr, row.time)
            writer.finish()
        return file

    return write


def pre_foxy(path: Path, rows: Sequence[Row]) -> Path:
    """The tables of rosbag2 before Foxy: no quality of service, no definitions, no schema version."""
    path.mkdir()
    file = path / "old.db3"
    with sqlite3.connect(file) as connection:
        connection.execute(
            "CREATE TABLE topics(id INTEGER PRIMARY KEY, name TEXT, type TEXT, serialization_format TEXT)"
        )
        connection.execute(
            "CREATE TABLE messages(id INTEGER PRIMARY KEY, topic_id INTEGER, timestamp INTEGER, data BLOB)"
        )
        names = list(dict.fromkeys((row.topic, row.type) for row in rows))
        connection.executemany(
            "INSERT INTO topics VALUES(?, ?, ?, 'cdr')", [(i, *name) for i, name in enumerate(names, 1)]
        )
        ids = {name: i for i, (name, _) in enumerate(names, 1)}
        connection.executemany(
            "INSERT INTO messages(topic_id, timestamp, data) VALUES(?, ?, ?)",
            [(ids[row.topic], row.time, row.cdr) for row in rows],
        )
    connection.close()
    return file


def split(path: Path, rows: Sequence[Row]) -> Path:
    """Three files and a metadata.yaml, as `ros2 bag record --max-bag-duration` leaves them."""
    path.mkdir()
    size = -(-len(rows) // 3)
    names = []
    for i in range(3):
        part = rosbag2(StoragePlugin.MCAP, CompressionMode.STORAGE)(path / f"part{i}", rows[i * size : (i + 1) * size])
        name = f"bag_{i}.mcap"
        (part / f"{part.name}.mcap").rename(path / name)
        (part / "metadata.yaml").unlink()
        part.rmdir()
        names.append(name)
    information = {"version": 9, "storage_identifier": "mcap", "relative_file_paths": names}
    (path / "metadata.yaml").write_text(yaml.safe_dump({"rosbag2_bagfile_information": information}))
    return path


def ros1(path: Path, rows: Sequence[Row]) -> Path:
    """A .bag of ROS 1, with its own Header."""
    store = get_typestore(Stores.ROS1_NOETIC)
    path.mkdir()
    file = path / "old.bag"
    with Writer1(file) as writer:
        made: dict[str, object] = {}
        for row in rows:
            if row.type not in store.types:
                continue
            if row.topic not in made:
                made[row.topic] = writer.add_connection(row.topic, row.type, typestore=store)
            writer.write(made[row.topic], row.time, bytes(store.serialize_ros1(_as_ros1(store, row.message), row.type)))
    return file


def _as_ros1(store, message):
    """The same message with ROS 1's Header."""
    kind = message.__msgtype__
    if kind == "builtin_interfaces/msg/Time":
        return store.types[kind](sec=message.sec, nanosec=message.nanosec)
    values = {}
    for name in message.__dataclass_fields__:
        if name == "__msgtype__":
            continue
        value = getattr(message, name)
        values[name] = _as_ros1(store, value) if hasattr(value, "__msgtype__") else value
    if kind == "std_msgs/msg/Header":
        values["seq"] = 0
    return store.types[kind](**values)


CONTAINERS: dict[str, Callable[[Path, Sequence[Row]], Path]] = {
    "rsd record": recorded,
    "mcap": rosbag2(StoragePlugin.MCAP, CompressionMode.NONE),
    "mcap, zstd chunks": rosbag2(StoragePlugin.MCAP, CompressionMode.STORAGE),
    "mcap, zstd messages": rosbag2(StoragePlugin.MCAP, CompressionMode.MESSAGE),
    "mcap, zstd file": rosbag2(StoragePlugin.MCAP, CompressionMode.FILE),
    "mcap, lz4 chunks": mcap(CompressionType.LZ4),
    "mcap without index": mcap(CompressionType.ZSTD, bare=True),
    "mcap without chunks": mcap(CompressionType.NONE, bare=True, chunked=False),
    "sqlite3": rosbag2(StoragePlugin.SQLITE3, CompressionMode.NONE),
    "sqlite3, zstd messages": rosbag2(StoragePlugin.SQLITE3, CompressionMode.MESSAGE),
    "sqlite3, zstd file": rosbag2(StoragePlugin.SQLITE3, CompressionMode.FILE),
    "sqlite3 before Foxy": pre_foxy,
    "split": split,
    "ROS 1": ros1,
}
