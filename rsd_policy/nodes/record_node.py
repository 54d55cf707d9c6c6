"""record_node: the topics of a contract into a bag, as they are on the wire, until it is ended."""

from __future__ import annotations

import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from rclpy.clock import Clock, ClockType
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rosbags.interfaces import Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime

from rsd_policy.bags.recording import Recording
from rsd_policy.errors import ArgumentError, BagError
from rsd_policy.nodes.message_class import message_class
from rsd_policy.nodes.parameters import declare_text
from rsd_policy.nodes.runtime import run_node
from rsd_policy.robots.contract import DEFAULT_ROBOT, load_contract

LOOK_PERIOD_S = 0.1
"""How often new publishers are looked for."""

DEPTH = 200
"""Messages of a topic that wait for this process: 6 s of a camera with 30 images per second."""


class RecordNode(Node):
    """Parameters: robot, out, provenance."""

    def __init__(self) -> None:
        super().__init__("record_node")
        robot = declare_text(self, "robot", DEFAULT_ROBOT, "Contract: a name of config/robots, or a path")
        out = declare_text(self, "out", "", "Directory of the bag")
        provenance = declare_text(self, "provenance", "{}", "JSON that goes into the bag")
        self._topics = {self.resolve_topic_name(topic): kind for topic, kind in load_contract(robot).topics.items()}
        self._recording = Recording(Path(out), json.loads(provenance))
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._timer = self.create_timer(LOOK_PERIOD_S, self._look, clock=self._steady)
        self._look()

    def close(self) -> None:
        """End the bag, and say what is in it."""
        try:
            self._recording.close()
        except BagError as error:
            print(f"record_node: {error}", file=sys.stderr)
        lost = self._recording.lost
        for topic, count in self._recording.counts.items():
            print(f"  {topic}: {count} messages{f', {lost[topic]} lost' if lost[topic] else ''}", flush=True)
        for topic in self._topics:
            print(f"  {topic}: nobody published it", flush=True)

    def _look(self) -> None:
        """Subscribe to what has got a publisher, with the best quality of service that all its publishers offer."""
        for topic, kind in list(self._topics.items()):
            offers = self.get_publishers_info_by_topic(topic)
            if not offers:
                continue
            others = sorted({offer.topic_type for offer in offers} - {kind})
            if others:
                raise ArgumentError(f"{topic}: expected {kind} as in the contract, it is {', '.join(others)}")
            del self._topics[topic]
            self._subscribe(topic, kind, offers)

    def _subscribe(self, topic: str, kind: str, offers: Any) -> None:
        reliable = all(offer.qos_profile.reliability == ReliabilityPolicy.RELIABLE for offer in offers)
        latched = all(offer.qos_profile.durability == DurabilityPolicy.TRANSIENT_LOCAL for offer in offers)
        qos = QoSProfile(
            depth=DEPTH,
            reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
            durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE,
        )
        self._recording.add_topic(topic, kind, [_qos(offer.qos_profile) for offer in offers], _share(kind))
        self.create_subscription(
            message_class(kind),
            topic,
            partial(self._take, topic),
            qos,
            raw=True,  # what was sent, byte for byte
            event_callbacks=SubscriptionEventCallbacks(message_lost=partial(self._lost, topic)),
        )

    def _take(self, topic: str, raw: bytes) -> None:
        self._recording.put(topic, time.time_ns(), raw)

    def _lost(self, topic: str, status: Any) -> None:
        self._recording.lose(topic, status.total_count_change)


def _share(kind: str) -> Path | None:
    from ament_index_python.packages import PackageNotFoundError, get_package_share_directory

    try:
        return Path(get_package_share_directory(kind.split("/")[0])).parent
    except PackageNotFoundError:
        return None


def _qos(profile: QoSProfile) -> Qos:
    """A publisher's profile as rosbags writes it into the metadata."""
    no_limit = QosTime(9223372036, 854775807)
    latched = profile.durability == DurabilityPolicy.TRANSIENT_LOCAL
    reliable = profile.reliability == ReliabilityPolicy.RELIABLE
    return Qos(
        QosHistory.KEEP_ALL if profile.history == HistoryPolicy.KEEP_ALL else QosHistory.KEEP_LAST,
        profile.depth or DEPTH,  # discovery does not tell the depth
        QosReliability.RELIABLE if reliable else QosReliability.BEST_EFFORT,
        QosDurability.TRANSIENT_LOCAL if latched else QosDurability.VOLATILE,
        no_limit,
        no_limit,
        QosLiveliness.AUTOMATIC,
        no_limit,
        False,
    )


def main(args: list[str] | None = None) -> int:
    """Entry point of the executable `record_node`."""
    return run_node(RecordNode, args)


if __name__ == "__main__":
    sys.exit(main())
