"""What a contract finds in a bag: topic by topic, and one observation as the policy would see it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rsd_policy.bags.playback import Playback, Shown, topic_in
from rsd_policy.bags.reader import Bag
from rsd_policy.errors import BagError
from rsd_policy.robots.contract import Contract
from rsd_policy.robots.state import stamp_of

SAMPLES = 10_000
"""Distances between stamp and arrival that are kept of a topic."""

OTHER_CLOCK_S = 1.0
"""A header that is farther from the arrival than this was not written by the recorder's clock."""


@dataclass
class TopicReport:
    """One topic of a contract in a bag.

    Attributes:
        topic, type: as the contract says.
        found: the type in the bag; None when it is not there.
        count: messages that could be decoded.
        damaged: messages that could not.
        rate: messages per second of arrival; None below two messages.
        what: encodings and sizes, or frames -> messages.
        zero_stamps, backward_stamps: how often a header's stamp was 0, or before the one before it.
        offset_s: median of arrival minus stamp; None without stamps.
        candidates: topics of this type that the bag has.
    """

    topic: str
    type: str
    found: str | None = None
    count: int = 0
    damaged: int = 0
    first: int = 0
    last: int = 0
    what: Counter[str] = field(default_factory=Counter)
    zero_stamps: int = 0
    backward_stamps: int = 0
    offsets: list[float] = field(default_factory=list)
    latest: int = -1
    candidates: tuple[str, ...] = ()

    @property
    def rate(self) -> float | None:
        return (self.count - 1) / ((self.last - self.first) * 1e-9) if self.last > self.first else None

    @property
    def offset_s(self) -> float | None:
        return float(np.median(self.offsets)) if self.offsets else None

    @property
    def problems(self) -> list[str]:
        """What a robot does not live with, one phrase each."""
        if self.found is None:
            others = f"; of this type: {', '.join(self.candidates)}" if self.candidates else ""
            return [f"not in the bag{others}"]
        if self.found != self.type:
            return [f"is {self.found}"]
        problems = []
        if not self.count:
            problems.append("no message")
        if self.damaged:
            problems.append(f"{self.damaged} damaged")
        if self.zero_stamps:
            problems.append(f"{self.zero_stamps} stamps are 0 (alignment.stamps: arrival)")
        if self.backward_stamps:
            problems.append(f"{self.backward_stamps} stamps go back")
        return problems

    @property
    def clock(self) -> str:
        """How the headers' clock lies to the recorder's."""
        offset = self.offset_s
        if offset is None:
            return ""
        return "its own" if abs(offset) > OTHER_CLOCK_S else f"{offset * 1e3:+.1f} ms"

    def take(self, message: Any, time: int) -> None:
        """Count a message that arrived at `time`, ns."""
        self.first = self.first if self.count else time
        self.last = max(self.last, time)
        self.count += 1
        self.what[describe_message(message)] += 1
        if not hasattr(message, "header") and not hasattr(message, "timestamp"):
            return
        stamp = stamp_of(message)
        self.zero_stamps += stamp == 0
        self.backward_stamps += stamp < self.latest
        self.latest = stamp
        if len(self.offsets) < SAMPLES:
            self.offsets.append((time - stamp) * 1e-9)


def describe_message(message: Any) -> str:
    """Encoding and size of an image, joints, or the frame of a pose."""
    if hasattr(message, "step"):
        return f"{message.encoding} {message.width}x{message.height}"
    if hasattr(message, "format"):
        return str(message.format)
    if hasattr(message, "position"):
        return f"{len(message.name)} joints"
    if hasattr(message, "transforms"):
        return f"{len(message.transforms)} transforms"
    if hasattr(message, "pose"):
        return f"frame {message.header.frame_id or 'unnamed'}"
    return "text" if isinstance(getattr(message, "data", None), str) else type(message).__name__.split("__")[-1]


@dataclass
class Inspection:
    """Attributes: topics, one report each; shown, the first observation or None; references, images of the reference
    camera; complete, how many of them became an observation; refused, why others did not -> how often."""

    topics: list[TopicReport]
    shown: Shown | None
    references: int
    complete: int
    refused: Counter[str]

    @property
    def good(self) -> bool:
        """Every input is there and sound, and there are observations."""
        return self.complete > 0 and not any(report.problems for report in self.topics)


def inspect(bag: Bag, contract: Contract, playback: Playback) -> Inspection:
    """Look at everything that a contract needs of a bag.

    Args:
        playback: of the same bag and contract, with period 0.
    """
    reports = {
        topic_in(playback.namespace, topic): TopicReport(topic_in(playback.namespace, topic), kind)
        for topic, kind in contract.inputs.values()
    }
    for topic, report in reports.items():
        report.found = bag.topics[topic].type if topic in bag.topics else None
        report.candidates = tuple(sorted(other.name for other in bag.topics.values() if other.type == report.type))
    for record in bag.messages(reports):
        try:
            reports[record.topic].take(record.message, record.time)
        except BagError:
            reports[record.topic].damaged += 1
    reference = next(camera.topic for camera in contract.cameras if camera.name == contract.alignment.reference)
    found = Inspection(
        list(reports.values()), None, reports[topic_in(playback.namespace, reference)].count, 0, playback.refused
    )
    if any(report.found != report.type for report in reports.values()):
        return found
    for shown in playback.observations():
        found.complete += 1
        found.shown = found.shown or shown
    return found
