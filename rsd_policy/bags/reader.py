"""Opens a bag, whatever it is kept in, and reads it as a stream whose memory does not grow with it."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePath
from types import TracebackType
from typing import Any

import yaml

from rsd_policy.bags.message_types import MessageTypes
from rsd_policy.bags.sources import ZSTD_MAGIC, DamagedSqlite, McapFile, Source, Topic, WholeFile, describe
from rsd_policy.errors import ArgumentError, BagError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

SUFFIXES = (".mcap", ".db3", ".bag")
METADATA = "metadata.yaml"


@dataclass(frozen=True)
class Record:
    """One message of a bag.

    Attributes:
        topic, type: of the message.
        time: of arrival at the recorder, ns.
        raw: as serialised: CDR, or ROS 1's format.
    """

    topic: str
    type: str
    time: int
    raw: bytes
    types: MessageTypes

    @cached_property
    def message(self) -> Any:
        """The message, with the fields of its type.

        Raises:
            BagError: the bytes are not a message of that type, or nobody knows the type.
        """
        return self.types.decode(self.type, self.raw)


class Bag:
    """A bag that is open: a rosbag2 directory, one of its files (.mcap, .db3, also .zstd), or a ROS 1 .bag.

    Args:
        path: of the directory or the file.

    Raises:
        ArgumentError: there is nothing at the path, or no bag.
        BagError: nothing of it can be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._notes: list[str] = []
        self._stack = ExitStack()
        try:
            self._sources = [self._open(file) for file in self._files()]
            readable = [source for source in self._sources if source is not None]
            if not readable:
                raise BagError(f"{path}: no file of this bag can be read: {'; '.join(self._notes)}")
        except BaseException:
            self._stack.close()
            raise
        self._open_sources: list[Source] = readable
        self.ros1 = readable[0].ros1
        self.topics = _merge(readable)
        self.types = MessageTypes(self.topics.values(), ros1=self.ros1)

    def __enter__(self) -> Bag:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def damage(self) -> list[str]:
        """What is missing or could not be read so far, one sentence each."""
        return self._notes + [
            f"{name}: {source.damage}"
            for name, source in zip(self._names, self._open_sources, strict=True)
            if source.damage
        ]

    @property
    def _names(self) -> list[str]:
        return [name for name, source in zip(self._file_names, self._sources, strict=True) if source is not None]

    def messages(self, topics: Collection[str]) -> Iterator[Record]:
        """The messages of some topics, in the order of arrival; file after file."""
        names = set(topics)
        for source in self._open_sources:
            for topic, kind, time, raw in source.messages(names):
                data = zstd.decompress(raw) if raw[:4] == ZSTD_MAGIC and not self.ros1 else raw
                yield Record(topic, kind, time, data, self.types)

    # -- files

    def _files(self) -> list[Path]:
        if not self.path.exists():
            raise ArgumentError(f"{self.path}: expected a bag, there is nothing; give a directory or a file of one")
        if self.path.is_file():
            if _suffix(self.path) not in SUFFIXES:
                raise ArgumentError(f"{self.path}: expected a file {', '.join(SUFFIXES)} or one of them with .zstd")
            files = [self.path]
        else:
            files = self._from_metadata() or sorted(
                (p for p in self.path.iterdir() if p.is_file() and _suffix(p) in SUFFIXES), key=_natural
            )
        if not files:
            raise ArgumentError(f"{self.path}: expected a bag (metadata.yaml, *.mcap, *.db3 or *.bag), found none")
        self._file_names = [file.name for file in files]
        return files

    def _from_metadata(self) -> list[Path]:
        """The files that metadata.yaml names and that are there, in its order."""
        path = self.path / METADATA
        if not path.is_file():
            return []
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
            names = [PurePath(str(name)).name for name in content["rosbag2_bagfile_information"]["relative_file_paths"]]
        except (yaml.YAMLError, KeyError, TypeError, OSError, UnicodeDecodeError, ValueError) as error:
            self._notes.append(f"{METADATA} was not used: {describe(error)}")
            return []
        files = [self.path / name for name in names]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            self._notes.append(f"{METADATA} names {', '.join(missing)}, which is not there")
        return [file for file in files if file.is_file()]

    def _open(self, path: Path) -> Source | None:
        """A file of the bag, or None with a note when nothing of it can be read."""
        try:
            file = self._decompressed(path) if path.suffix == ".zstd" else path
            source = self._whole_or_damaged(file)
        # Parsers raise anything on bytes that are not what they should be; the other files are read.
        except Exception as error:
            self._notes.append(f"{path.name} cannot be read: {describe(error)}")
            return None
        self._stack.callback(source.close)
        return source

    def _whole_or_damaged(self, file: Path) -> Source:
        journal = file.with_name(file.name + "-wal")
        if file.suffix == ".db3" and journal.is_file() and journal.stat().st_size:
            return DamagedSqlite(file, "")
        if file.suffix == ".mcap":
            streamed = McapFile(file)
            # chunks that overlap (one per topic, say) have to be merged by time, which takes an index in memory
            return streamed if streamed.ordered else WholeFile(file)
        try:
            return WholeFile(file)
        except Exception as error:
            if file.suffix == ".db3" and file.stat().st_size:
                return DamagedSqlite(file, describe(error))
            raise

    def _decompressed(self, path: Path) -> Path:
        """A file without its zstd compression, in a temporary file: it may be larger than memory."""
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="rsd-bag-")))
        target = folder / path.stem
        try:
            with path.open("rb") as packed, zstd.open(packed, "rb") as content, target.open("wb") as out:
                shutil.copyfileobj(content, out, 2**20)
        except (EOFError, zstd.ZstdError) as error:
            self._notes.append(f"{path.name} ends early: {describe(error)}")
        return target


def _suffix(path: Path) -> str:
    return Path(path.stem).suffix if path.suffix == ".zstd" else path.suffix


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sort key by which bag_10 follows bag_9."""
    parts: list[tuple[int, str]] = []
    digits = ""
    for letter in path.name + "\0":
        if letter.isdigit():
            digits += letter
            continue
        if digits:
            parts.append((int(digits), ""))
            digits = ""
        parts.append((-1, letter))
    return parts


def _merge(sources: list[Source]) -> dict[str, Topic]:
    """Topic name -> what all files hold of it; a topic with two types keeps the first."""
    merged: dict[str, Topic] = {}
    for topic in (topic for source in sources for topic in source.topics):
        known = merged.get(topic.name)
        if known is None:
            merged[topic.name] = topic
            continue
        counts = None if known.count is None or topic.count is None else known.count + topic.count
        merged[topic.name] = replace(known, count=counts, definition=known.definition or topic.definition)
    return merged
