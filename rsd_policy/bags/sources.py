"""The files of a bag as streams of messages: whole ones by `rosbags`, damaged ones as far as they can be read."""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Collection, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mcap.records import Channel, Chunk, Message, Schema
from mcap.stream_reader import StreamReader, breakup_chunk
from rosbags.interfaces import MessageDefinitionFormat
from rosbags.rosbag1 import Reader as Reader1
from rosbags.rosbag2 import Reader as Reader2

ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
"""Start of a zstd frame; CDR starts with 00 00 to 00 03. So a message tells itself whether it is compressed."""


@dataclass(frozen=True)
class Topic:
    """A topic in a file.

    Attributes:
        definition: of its type, as the bag has it; empty when it has none.
        idl: the definition is OMG IDL, otherwise ROS's .msg format.
        count: messages; None when nobody has counted.
    """

    name: str
    type: str
    definition: str = ""
    idl: bool = False
    count: int | None = None


Entry = tuple[str, str, int, bytes]
"""Topic, type, time of arrival (ns), serialised message."""


class Source(Protocol):
    """One file.

    Attributes:
        topics: what it holds.
        damage: what could not be read, for people; known when all messages have been read. Empty: nothing.
        ros1: messages are in ROS 1's format.
    """

    topics: list[Topic]
    damage: str
    ros1: bool

    def messages(self, names: Collection[str]) -> Iterator[Entry]:
        """The messages of some topics, in the order of arrival."""

    def close(self) -> None: ...


class WholeFile:
    """A file that `rosbags` can open.

    Raises:
        Exception: of many types, when it cannot.
    """

    def __init__(self, path: Path) -> None:
        self.ros1 = path.suffix == ".bag"
        self._reader: Any = Reader1(path) if self.ros1 else Reader2(path)
        self._reader.open()
        self.damage = ""
        self.topics = [
            Topic(
                c.topic,
                c.msgtype,
                c.msgdef.data if c.msgdef.format != MessageDefinitionFormat.NONE else "",
                c.msgdef.format == MessageDefinitionFormat.IDL,
                c.msgcount,
            )
            for c in self._reader.connections
        ]

    def messages(self, names: Collection[str]) -> Iterator[Entry]:
        wanted = [c for c in self._reader.connections if c.topic in names]
        if not wanted:
            return
        stream = self._reader.messages(wanted)
        count, last = 0, 0
        while True:
            try:
                connection, time, data = next(stream)
            except StopIteration:
                return
            # Whatever a parser raises on bytes that are not what they should be: the rest of the file is lost.
            except Exception as error:
                self.damage = f"unreadable after {count} messages, at {last * 1e-9:.3f} s: {describe(error)}"
                return
            count, last = count + 1, time
            yield connection.topic, connection.msgtype, time, bytes(data)

    def close(self) -> None:
        self._reader.close()


class DamagedMcap:
    """An MCAP file without its end, or with a broken index: read from the start, as far as it goes."""

    ros1 = False

    def __init__(self, path: Path, why: str) -> None:
        self._path = path
        self.damage = why
        found: dict[tuple[str, str], Topic] = {}
        for channel, schema, _ in self._records():
            definition = schema.data.decode("utf-8", errors="replace")
            topic = Topic(channel.topic, schema.name, definition, schema.encoding != "ros2msg")
            found.setdefault((topic.name, topic.type), topic)
        self.topics = list(found.values())

    def messages(self, names: Collection[str]) -> Iterator[Entry]:
        for channel, schema, message in self._records():
            if message is not None and channel.topic in names:
                yield channel.topic, schema.name, message.log_time, message.data

    def close(self) -> None:
        pass

    def _records(self) -> Iterator[tuple[Channel, Schema, Message | None]]:
        """Each channel as it is met, and each message; ends at the first byte that is not what it should be."""
        schemas: dict[int, Schema] = {}
        channels: dict[int, Channel] = {}
        with self._path.open("rb") as stream:
            size = self._path.stat().st_size
            records = iter(StreamReader(stream, emit_chunks=True, record_size_limit=size).records)
            while True:
                try:
                    record = next(records)
                    inner = breakup_chunk(record, validate_crc=True) if isinstance(record, Chunk) else [record]
                except StopIteration:
                    return
                except Exception as error:  # as in WholeFile
                    self.damage = f"ends at byte {stream.tell()} of {size}: {describe(error)}"
                    return
                for part in inner:
                    if isinstance(part, Schema):
                        schemas[part.id] = part
                    elif isinstance(part, Channel) and part.schema_id in schemas:
                        channels[part.id] = part
                        yield part, schemas[part.schema_id], None
                    elif isinstance(part, Message) and part.channel_id in channels:
                        channel = channels[part.channel_id]
                        yield channel, schemas[channel.schema_id], part


class DamagedSqlite:
    """A sqlite3 file that `rosbags` refuses: its rows, in the order in which they were written, as far as they go."""

    ros1 = False

    def __init__(self, path: Path, why: str) -> None:
        self.damage = why
        # not immutable: a recorder that was killed has left its latest messages in a write-ahead log beside the file
        self._connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
        with closing(self._connection.cursor()) as cursor:
            rows = cursor.execute("SELECT id, name, type FROM topics").fetchall()
        self._topics = {int(i): Topic(str(name), str(kind)) for i, name, kind in rows}
        self.topics = list(self._topics.values())

    def messages(self, names: Collection[str]) -> Iterator[Entry]:
        cursor = self._connection.cursor()
        try:
            cursor.execute("SELECT topic_id, timestamp, data FROM messages")
            for number in itertools.count():
                try:
                    row = cursor.fetchone()
                except sqlite3.Error as error:
                    self.damage = f"unreadable after {number} messages: {describe(error)}"
                    return
                if row is None:
                    return
                topic = self._topics.get(row[0])
                if topic is not None and topic.name in names and isinstance(row[2], bytes):
                    yield topic.name, topic.type, int(row[1]), row[2]
        except sqlite3.Error as error:
            self.damage = f"unreadable: {describe(error)}"
        finally:
            cursor.close()

    def close(self) -> None:
        self._connection.close()


def describe(error: Exception) -> str:
    """One line about an error of a parser."""
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return text if len(text) > 12 else f"{type(error).__name__}: {text}"
