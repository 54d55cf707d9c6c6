"""play_node: the inputs of a contract out of a bag, at the pace at which they were recorded, as a robot sends them.

It starts when somebody hears every topic, and publishes /clock, as `ros2 bag play --clock --start-paused` does where
ros2bag is installed.
"""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

from builtin_interfaces.msg import Time
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.msg import ParameterDescriptor
from rclpy.node import Node
from rclpy.publisher import Publisher
from rosgraph_msgs.msg import Clock
from std_msgs.msg import String

from rsd_policy.bags.playback import read_recorded, topic_in
from rsd_policy.bags.reader import Bag
from rsd_policy.errors import ArgumentError, SetupError
from rsd_policy.nodes.message_class import message_class
from rsd_policy.nodes.messages import to_stamp
from rsd_policy.nodes.parameters import declare_bool, declare_float, declare_text
from rsd_policy.nodes.runtime import LATCHED, LOCKSTEP_INPUT, run_node
from rsd_policy.robots.contract import DEFAULT_ROBOT, TEXT, load_contract

POLL_S = 0.05


class PlayNode(Node):
    """Parameters: bag, robot, namespace, rate, clock, wait."""

    def __init__(self) -> None:
        super().__init__("play_node")
        self._bag = Path(declare_text(self, "bag", "", "The bag"))
        self._contract = contract = load_contract(
            declare_text(self, "robot", DEFAULT_ROBOT, "Contract: a name or a path")
        )
        self._namespace = declare_text(self, "namespace", "", "Where relative topics of the contract are in the bag")
        self._instruction = declare_text(self, "instruction", "", "Instead of what the bag says")
        self._rate = declare_float(self, "rate", 1.0, 0.01, 100.0, "How much faster than recorded")
        self._with_clock = declare_bool(self, "clock", True, "Publish /clock, from the times of arrival in the bag")
        self._wait_s = declare_float(self, "wait", 60.0, 0.0, 3600.0, "How long subscribers are awaited, s")
        descriptor = ParameterDescriptor(description="Lifecycle nodes to configure and activate first", read_only=True)
        managed: list[str] = self.declare_parameter("managed_nodes", [""], descriptor).value
        self._managed = [name for name in managed if name]
        kinds = dict(contract.inputs.values()) | {contract.instruction_topic: TEXT}
        self._outputs: dict[str, Publisher] = {}
        for topic, kind in kinds.items():
            qos = LATCHED if topic == contract.instruction_topic else LOCKSTEP_INPUT
            self._outputs[topic_in(self._namespace, topic)] = self.create_publisher(message_class(kind), topic, qos)
        self._needed = [self._outputs[topic_in(self._namespace, topic)] for topic, _ in contract.inputs.values()]
        self._time = self.create_publisher(Clock, "/clock", LOCKSTEP_INPUT) if self._with_clock else None
        self.fatal_error: BaseException | None = None
        self._closing = threading.Event()
        self._done = self.create_guard_condition(self.context.try_shutdown)
        self._thread = threading.Thread(target=self._run, name="player", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the player."""
        self._closing.set()
        self._thread.join(timeout=5.0)

    def _run(self) -> None:
        try:
            for name in self._managed:
                self._bring_up(name)
            self._wait()
            self._play()
        except BaseException as error:  # handed to the main thread, which ends the node with it
            self.fatal_error = error
        if not self._closing.is_set():
            self._done.trigger()

    def _bring_up(self, name: str) -> None:
        """Configure and activate a node; loading a policy may take minutes."""
        client = self.create_client(ChangeState, f"{name}/change_state")
        for transition in (Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE):
            if not client.wait_for_service(self._wait_s):
                raise SetupError(f"{name}: expected it within {self._wait_s:.0f} s (parameter wait), it is not there")
            future = client.call_async(ChangeState.Request(transition=Transition(id=transition)))
            while not future.done():
                if self._closing.wait(POLL_S):
                    return
            if not future.result().success:
                raise SetupError(f"{name} could not be brought up; its log says why")

    def _wait(self) -> None:
        """Wait until somebody hears every input."""
        deadline = time.monotonic() + self._wait_s
        while not all(publisher.get_subscription_count() for publisher in self._needed):
            if time.monotonic() > deadline:
                deaf = [p.topic_name for p in self._needed if not p.get_subscription_count()]
                raise ArgumentError(f"expected subscribers of {', '.join(deaf)} within {self._wait_s:.0f} s")
            if self._closing.wait(POLL_S):
                return

    def _of_the_episode(self, bag: Bag) -> str:
        """The instruction of a simulated bag, where it is part of the episode's state, which no robot has."""
        episodes = read_recorded(bag, self._contract, self._namespace).episodes
        return episodes[0][1].instruction if episodes else ""

    def _play(self) -> None:
        with Bag(self._bag) as bag:
            if bag.ros1:
                raise ArgumentError(f"{self._bag}: bags of ROS 1 cannot be played; `rsd replay --no-ros` reads them")
            names = set(self._outputs)
            spoken = topic_in(self._namespace, self._contract.instruction_topic)
            text = self._instruction or ("" if spoken in bag.topics else self._of_the_episode(bag))
            if text:
                names.discard(spoken)
                self._outputs[spoken].publish(String(data=text))
            first, start = None, time.monotonic()
            for record in bag.messages(names):
                first = record.time if first is None else first
                due = start + (record.time - first) * 1e-9 / self._rate
                if self._closing.wait(max(0.0, due - time.monotonic())):
                    return
                if self._time is not None:
                    stamp: Time = to_stamp(record.time)
                    self._time.publish(Clock(clock=stamp))
                self._outputs[record.topic].publish(record.raw)
            for line in bag.damage:
                self.get_logger().warning(line)
        self._closing.wait(1.0)  # the last messages are on their way, and their answers may still be wanted


def main(args: list[str] | None = None) -> int:
    """Entry point of the executable `play_node`."""
    return run_node(PlayNode, args)


if __name__ == "__main__":
    sys.exit(main())
