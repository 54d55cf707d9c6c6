"""The files of a bag as streams of messages, damaged ones as far as they can be read.

MCAP by Foxglove's reader, sqlite3 and ROS 1 by `rosbags`.
"""

from __future__ import annotations

import itertools
import os
import sqlite3
import struct
from collections.abc import Collection, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mcap.records import Channel, Chunk, ChunkIndex, McapRecord, Message, Schema, Statistics
from mcap.stream_reader import StreamReader, breakup_chunk
from rosbags.interfaces import MessageDefinitionFormat
from rosbags.rosbag1 import Reader as Reader1
from rosbags.rosbag2 import Reader as Reader2

ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
"""Start of a zstd frame; CDR starts with 00 00 to 00 03. So a message tells itself whether it is compressed."""


FOOTER_BYTES = 37
"""Footer record and magic at the end of an MCAP file; where the summary begins stands after the record's 9 bytes."""


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


class McapFile:
    """An MCAP file, chunk by chunk in the order in which it was written; memory holds one chunk.

    A file without its end, or without a summary, is read from the start, as far as it goes; a chunk whose checksum is
    wrong is left out.

    Raises:
        Exception: nothing of it can be read.
    """

    ros1 = False

    def __init__(self, path: Path) -> None:
        self._path = path
        self._size = path.stat().st_size
        self.damage = ""
        self.ordered = True
        """No chunk begins before the one in front of it ends; known from the summary."""
        self.topics = self._from_summary() or self._from_records()
        if not self.topics and self.damage:
            raise ValueError(self.damage)

    def messages(self, names: Collection[str]) -> Iterator[Entry]:
        for channel, schema, message in self._records():
            if message is not None and channel.topic in names:
                yield channel.topic, schema.name, message.log_time, message.data

    def close(self) -> None:
        pass

    def _from_summary(self) -> list[Topic]:
        """The topics by the file's last section; empty when there is none."""
        schemas: dict[int, Schema] = {}
        channels: dict[int, Channel] = {}
        counts: dict[int, int] | None = None
        end = 0
        try:
            with self._path.open("rb") as stream:
                stream.seek(-FOOTER_BYTES, os.SEEK_END)
                (start,) = struct.unpack_from("<Q", stream.read(FOOTER_BYTES), 9)
                if not start:
                    return []
                stream.seek(start)
                for record in StreamReader(stream, skip_magic=True, record_size_limit=self._size).records:
                    if isinstance(record, Schema):
                        schemas[record.id] = record
                    elif isinstance(record, Channel):
                        channels[record.id] = record
                    elif isinstance(record, Statistics):
                        counts = dict(record.channel_message_counts)
                    elif isinstance(record, ChunkIndex):
                        self.ordered = self.ordered and record.message_start_time >= end
                        end = record.message_end_time
        # Whatever a parser raises on bytes that are not what they should be: then the records themselves are asked.
        except Exception:
            return []
        found = [(channel, schemas.get(channel.schema_id)) for channel in channels.values()]
        return [
            _topic(channel, schema, None if counts is None else counts.get(channel.id, 0))
            for channel, schema in found
            if schema is not None
        ]

    def _from_records(self) -> list[Topic]:
        found: dict[tuple[str, str], Topic] = {}
        for channel, schema, _ in self._records():
            found.setdefault((channel.topic, schema.name), _topic(channel, schema, None))
        return list(found.values())

    def _records(self) -> Iterator[tuple[Channel, Schema, Message | None]]:
        """Each channel as it is met, and each message; ends where the next record cannot be found."""
        schemas: dict[int, Schema] = {}
        channels: dict[int, Channel] = {}
        broken = 0
        self.damage = ""
        with self._path.open("rb") as stream:
            records = iter(StreamReader(stream, emit_chunks=True, record_size_limit=self._size).records)
            while True:
                try:
                    record = next(records)
                except StopIteration:
                    return
                except Exception as error:  # as above
                    at = stream.tell()
                    end = "ends in the middle of a record" if at >= self._size else f"unreadable: {describe(error)}"
                    self.damage = "; ".join(filter(None, [self.damage, f"{end}, at byte {at} of {self._size}"]))
                    return
                try:
                    parts = breakup_chunk(record, validate_crc=True) if isinstance(record, Chunk) else [record]
                except Exception as error:  # as above; where the next chunk begins is still known
                    broken += 1
                    self.damage = f"{broken} chunks are damaged and left out, the latest: {describe(error)}"
                    continue
                for part in sorted(parts, key=_time_of):
                    if isinstance(part, Schema):
                        schemas[part.id] = part
                    elif isinstance(part, Channel) and part.schema_id in schemas:
                        channels[part.id] = part
                        yield part, schemas[part.schema_id], None
                    elif isinstance(part, Message) and part.channel_id in channels:
                        channel = channels[part.channel_id]
                        yield channel, schemas[channel.schema_id], part


def _time_of(record: McapRecord) -> int:
    """Sort key within a chunk: what describes messages stays in front of them."""
    return record.log_time if isinstance(record, Message) else -1


def _topic(channel: Channel, schema: Schema, count: int | None) -> Topic:
    text = schema.data.decode("utf-8", errors="replace")
    return Topic(channel.topic, schema.name, text, schema.encoding != "ros2msg", count)


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
