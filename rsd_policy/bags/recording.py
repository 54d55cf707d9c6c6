"""Writes messages to a bag from a thread of its own, and counts what could not be written."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter, deque
from pathlib import Path
from typing import Any

from rsd_policy.bags.writer import BagWriter
from rsd_policy.errors import BagError

PROVENANCE = "/rsd_provenance"
"""std_msgs/String with JSON: who recorded what. A message, so that it survives a kill, a split and a conversion."""

QUEUE_BYTES = 512 * 2**20
"""What may wait for the disk."""

FLUSH_S = 1.0


class Recording:
    """A bag that is being written.

    Args:
        path: of the bag.
        provenance: anything that JSON can hold.
        queue_bytes: how much may wait for the disk; what comes beyond that is lost, and counted.

    Raises:
        ArgumentError: the bag is there already, or cannot be made.
    """

    def __init__(self, path: Path, provenance: dict[str, Any], *, queue_bytes: int = QUEUE_BYTES) -> None:
        self.path = path
        self._writer = BagWriter(path)
        self._limit = queue_bytes
        self._waiting: deque[tuple[str, int, bytes]] = deque()
        self._bytes = 0
        self._ready = threading.Condition()
        self._closing = False
        self.lost: Counter[str] = Counter()
        """Topic -> messages that did not get into the bag, whoever lost them."""
        self.error: OSError | None = None
        self._writer.add_topic(PROVENANCE, "std_msgs/msg/String")
        self._writer.write(PROVENANCE, time.time_ns(), string_cdr(json.dumps(provenance, sort_keys=True)))
        self._writer.flush()
        self._thread = threading.Thread(target=self._run, name="bag-writer", daemon=True)
        self._thread.start()

    @property
    def counts(self) -> dict[str, int]:
        """Topic -> messages written."""
        return {topic: count for topic, count in self._writer.counts.items() if topic != PROVENANCE}

    def add_topic(self, topic: str, kind: str, qos: Any = (), share: Path | None = None) -> None:
        """As `BagWriter.add_topic`."""
        with self._ready:
            self._writer.add_topic(topic, kind, qos, share)

    def put(self, topic: str, time_ns: int, raw: bytes) -> None:
        """Take a message; never waits for the disk."""
        with self._ready:
            if self.error is not None or self._bytes + len(raw) > self._limit:
                self.lost[topic] += 1
                return
            self._waiting.append((topic, time_ns, raw))
            self._bytes += len(raw)
            self._ready.notify()

    def lose(self, topic: str, number: int) -> None:
        """Count messages that were lost before they came here."""
        self.lost[topic] += number

    def close(self) -> None:
        """Write what is waiting, then index and metadata.

        Raises:
            BagError: the disk took no more; what it took can be read.
        """
        with self._ready:
            self._closing = True
            self._ready.notify()
        self._thread.join()
        if self.error is None:
            try:
                self._writer.close()
            except OSError as error:
                self.error = error
        if self.error is not None:
            raise BagError(f"{self.path}: {self.error.strerror}; the bag ends there, {self.lost.total()} messages lost")

    def _run(self) -> None:
        flushed = time.monotonic()
        while True:
            with self._ready:
                self._ready.wait_for(lambda: self._waiting or self._closing, FLUSH_S)
                if not self._waiting and self._closing:
                    return
                item = self._waiting.popleft() if self._waiting else None
            try:
                if item is not None:
                    self._writer.write(*item)
                if time.monotonic() - flushed > FLUSH_S:
                    self._writer.flush()
                    flushed = time.monotonic()
            except OSError as error:
                with self._ready:
                    self.error = error
                    self.lost.update([item[0]] if item else [])
                    self.lost.update(topic for topic, _, _ in self._waiting)
                    self._waiting.clear()
                return
            if item is not None:
                with self._ready:
                    self._bytes -= len(item[2])


def string_cdr(text: str) -> bytes:
    """A std_msgs/String as CDR (little endian)."""
    data = text.encode() + b"\0"
    return b"\x00\x01\x00\x00" + len(data).to_bytes(4, "little") + data
