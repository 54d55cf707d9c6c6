"""Proves that ROS works here: one node sends another an rsd_msgs/ActionChunk through the middleware.

Run by `rsd doctor` as `python -m rsd_policy.nodes.probe`; prints one JSON object {"rmw": str, "milliseconds": float}.
"""

from __future__ import annotations

import json
import os
import sys
import time

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import QoSDurabilityPolicy, QoSProfile
from rsd_msgs.action import ExecuteInstruction
from rsd_msgs.msg import Action, ActionChunk, EpisodeStatus
from rsd_msgs.srv import ResetEpisode

TIMEOUT_S = 10.0


def main() -> int:
    """Returns 0 when the message came back as it was sent, else 1."""
    # two participants, which have to discover each other, as the processes of a graph have
    here, there = rclpy.Context(), rclpy.Context()
    for context in (here, there):
        rclpy.init(context=context)
    node, sender = rclpy.create_node("rsd_probe", context=here), rclpy.create_node("rsd_probe_sender", context=there)
    executor = SingleThreadedExecutor(context=here)
    executor.add_node(node)
    # of its own process only: other nodes of the machine may run
    topic = f"rsd_probe_{os.getpid()}/action_chunk"
    # latched, so that a message sent before discovery is not lost
    qos = QoSProfile(depth=1, durability=QoSDurabilityPolicy.TRANSIENT_LOCAL)
    received: list[ActionChunk] = []
    node.create_subscription(ActionChunk, topic, received.append, qos)
    publisher = sender.create_publisher(ActionChunk, topic, qos)
    sent = ActionChunk(horizon=2, dof=7, actions=[0.25] * 14, mode="probe", stage_names=["draft"], stage_ms=[1.5])
    start = time.monotonic()
    publisher.publish(sent)
    while not received and time.monotonic() - start < TIMEOUT_S:
        executor.spin_once(timeout_sec=0.1)
    elapsed = 1000 * (time.monotonic() - start)
    rmw = rclpy.get_rmw_implementation_identifier()
    for each in (node, sender):
        each.destroy_node()
    for context in (here, there):
        context.try_shutdown()
    if received != [sent]:
        print(f"sent one ActionChunk, got {received} in {TIMEOUT_S:g} s", file=sys.stderr)
        return 1
    # building the others loads their type support
    for kind in (Action, EpisodeStatus, ResetEpisode.Request, ResetEpisode.Response, ExecuteInstruction.Goal):
        kind()
    print(json.dumps({"rmw": rmw, "milliseconds": elapsed}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
