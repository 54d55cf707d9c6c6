"""Writes rosbag2 bags: MCAP in zstd chunks, each with a checksum and on disk as soon as it is full."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from mcap.writer import CompressionType, Writer
from rosbags.interfaces import Connection, Qos
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin
from rosbags.rosbag2 import Writer as Rosbag2Writer

from rsd_policy.bags.message_types import writable_types
from rsd_policy.errors import ArgumentError

CHUNK_BYTES = 1 << 20
"""As rosbag2's. A recorder that is killed loses at most the chunk that it was filling."""


class _CheckedMcap:
    """rosbags' interface to a storage, over Foxglove's writer: rosbags' own (0.11) leaves the checksums out.

    Without them a flipped bit in an image is replayed as if it had been seen.
    """

    def __init__(self, path: Path, compression: CompressionMode) -> None:
        self.path = path / f"{path.name}.mcap"
        self._stream = self.path.open("xb")
        self._writer = Writer(
            self._stream,
            chunk_size=CHUNK_BYTES,
            compression=CompressionType.ZSTD if compression == CompressionMode.STORAGE else CompressionType.NONE,
        )
        self._writer.start(profile="ros2", library="rsd_policy")
        self._schemas: dict[str, int] = {}
        self._channels: dict[int, int] = {}

    def add_msgtype(self, connection: Connection) -> None:
        self._schemas[connection.msgtype] = self._writer.register_schema(
            connection.msgtype, "ros2msg", connection.msgdef.data.encode()
        )

    def add_connection(self, connection: Connection, offered_qos_profiles: str) -> None:
        self._channels[connection.id] = self._writer.register_channel(
            connection.topic,
            "cdr",
            self._schemas[connection.msgtype],
            {"offered_qos_profiles": offered_qos_profiles, "topic_type_hash": connection.digest},
        )

    def write(self, connection: Connection, timestamp: int, data: bytes | memoryview) -> None:
        self._writer.add_message(self._channels[connection.id], timestamp, bytes(data), timestamp)
        # a chunk that has just been finished is the kernel's from here, and survives the death of this process
        self._stream.flush()

    def flush(self) -> None:
        self._writer.flush()
        self._stream.flush()

    def close(self, version: int, metadata: str) -> None:
        self._writer.add_metadata("rosbag2", {"serialized_metadata": metadata})
        self._writer.finish()
        self._stream.close()

    def abort(self) -> None:
        self._stream.close()


class _Writer(Rosbag2Writer):
    STORAGE_PLUGINS: Mapping[StoragePlugin, Any] = {StoragePlugin.MCAP: _CheckedMcap}


class BagWriter:
    """A new bag (metadata version 9).

    Args:
        path: of the directory, which must not be there.

    Raises:
        ArgumentError: it is there, or cannot be made.
    """

    def __init__(self, path: Path) -> None:
        if path.exists():
            raise ArgumentError(f"{path}: expected a path where nothing is; a recording is never overwritten")
        self._writer = _Writer(path, version=9, storage_plugin=StoragePlugin.MCAP)
        self._writer.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
        try:
            self._writer.open()
        except OSError as error:
            raise ArgumentError(f"{path}: a bag cannot be written there: {error.strerror}") from error
        self._connections: dict[str, Connection] = {}
        self.counts: dict[str, int] = {}

    def add_topic(self, topic: str, kind: str, qos: Sequence[Qos] = (), share: Path | None = None) -> None:
        """Announce a topic.

        Args:
            kind: its type.
            qos: offered by its publishers.
            share: folder of installed ROS packages (`<prefix>/share`), for types that rosbags does not know.

        Raises:
            BagError: no definition of the type is found.
        """
        store = writable_types(kind, share)
        self._connections[topic] = self._writer.add_connection(topic, kind, typestore=store, offered_qos_profiles=qos)
        self.counts[topic] = 0

    def write(self, topic: str, time: int, raw: bytes) -> None:
        """Add a message, serialised as CDR; `time` (ns) is that of its arrival."""
        self._writer.write(self._connections[topic], time, raw)
        self.counts[topic] += 1

    def flush(self) -> None:
        """Put on disk what has come so far."""
        storage: Any = self._writer.storage
        storage.flush()

    def close(self) -> None:
        """Write index and metadata."""
        self._writer.close()

    def __enter__(self) -> BagWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
