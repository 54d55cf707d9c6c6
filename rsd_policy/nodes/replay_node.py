"""replay_node: shows the observations of a bag to policy_node, each when the last one has been answered.

What policy_node gets are the messages of the bag, byte for byte, on the topics of the contract, and an EpisodeStatus
that asks for the answer, as the simulator does in lockstep. Nothing is left to the wall clock: a lost message is sent
again, and the next observation waits.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rsd_msgs.msg import ActionChunk as ActionChunkMsg
from rsd_msgs.msg import EpisodeStatus

from rsd_policy.bags.playback import Shown
from rsd_policy.bags.session import run_session
from rsd_policy.errors import InferenceError
from rsd_policy.nodes.conductor import Conductor
from rsd_policy.nodes.eval_node import bring_up
from rsd_policy.nodes.message_class import message_class
from rsd_policy.nodes.messages import chunk_from_msg, to_nanoseconds, to_stamp
from rsd_policy.nodes.parameters import declare_text
from rsd_policy.nodes.runtime import COMMANDS, LOCKSTEP_INPUT, conduct_with
from rsd_policy.observation import ActionChunk
from rsd_policy.robots.contract import Contract

ASK_AGAIN_S = 1.0
"""Without an answer for so long, the messages and the question are sent once more."""

ANSWER_TIMEOUT_S = 120.0
"""An inference that takes longer has been lost, or hangs."""


class NodeAnswerer:
    """Answers with policy_node.

    Args:
        node: to speak through.
        conductor: spins the node, and knows what the nodes report as errors.
        contract: of the robot.
    """

    def __init__(self, node: Node, conductor: Conductor, contract: Contract) -> None:
        self._conductor = conductor
        self._publishers = {
            name: node.create_publisher(message_class(kind), topic, LOCKSTEP_INPUT)
            for name, (topic, kind) in contract.inputs.items()
        }
        self._status = node.create_publisher(EpisodeStatus, contract.action.episode, COMMANDS)
        self._chunks: dict[int, ActionChunkMsg] = {}
        node.create_subscription(ActionChunkMsg, "action_chunk", self._on_chunk, COMMANDS)
        self._contexts: dict[tuple[int, int], int] = {}
        self._sent: Shown | None = None
        """What has been sent already, and not been asked for."""

    def _on_chunk(self, msg: ActionChunkMsg) -> None:
        if msg.verified:
            self._chunks[to_nanoseconds(msg.header.stamp)] = msg

    def _send(self, shown: Shown) -> None:
        for name, record in shown.records:
            self._publishers[name].publish(record.raw)
        self._sent = shown

    def wait_for_node(self) -> None:
        """Wait until policy_node hears every topic."""
        publishers = [*self._publishers.values(), self._status]
        if not self._conductor.spin_until(lambda: all(p.get_subscription_count() for p in publishers), 30.0):
            deaf = [p.topic_name for p in publishers if not p.get_subscription_count()]
            raise InferenceError(
                f"policy_node: expected subscriptions to {', '.join(deaf)} within 30 s, there are none"
            )

    def answer(self, shown: Shown, upcoming: Callable[[], Shown | None] = lambda: None) -> ActionChunk:
        """The final chunk for an observation; the next one's messages are sent while it is awaited.

        Raises:
            InferenceError: policy_node reports an error, or does not answer.
        """
        self._chunks.clear()
        episode = self._contexts.setdefault(shown.context, len(self._contexts) + 1)
        status = EpisodeStatus(
            episode=episode,
            state=EpisodeStatus.RUNNING,
            instruction=shown.observation.instruction,
            observation_due=True,
        )
        if shown.executed is not None:  # at step 0 nothing has been executed
            status.step, status.executed = 1, shown.executed
        status.header.stamp = to_stamp(shown.stamp)
        deadline = time.monotonic() + ANSWER_TIMEOUT_S
        while time.monotonic() < deadline:
            if self._sent is not shown:
                self._send(shown)
            self._status.publish(status)
            self._sent = None
            following = upcoming()
            # where time goes back the node forgets what it has: not before it has answered
            if following is not None and following.context == shown.context:
                self._send(following)
            if self._conductor.spin_until(lambda: shown.stamp in self._chunks, ASK_AGAIN_S):
                return chunk_from_msg(self._chunks[shown.stamp])
            faults = self._conductor.faults()
            if faults:
                raise InferenceError(f"observation at {shown.stamp * 1e-9:.3f} s: {'; '.join(faults)}")
        raise InferenceError(
            f"policy_node: expected an answer to the observation at {shown.stamp * 1e-9:.3f} s within "
            f"{ANSWER_TIMEOUT_S:.0f} s, got none"
        )


class ReplayNode(Node):
    """Parameter: session, the arguments of `rsd replay` as JSON."""

    def __init__(self) -> None:
        super().__init__("replay_node")
        self.session: dict[str, Any] = json.loads(declare_text(self, "session", "{}", "Arguments of rsd replay, JSON"))


def run(node: ReplayNode) -> int:
    """Replay; returns the exit status."""
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    conductor = Conductor(node, executor, policy_node="policy_node", realtime=False, stall_timeout_s=60.0)
    session = node.session
    arguments = argparse.Namespace(**session | {"bag": Path(session["bag"]), "out": Path(session["out"])})
    keys = ("policy", "policy_sha256", "recorded_policy_sha256", "mode", "alpha", "norm_key", "base")

    def make(contract: Contract) -> NodeAnswerer:
        answerer = NodeAnswerer(node, conductor, contract)
        bring_up(node, conductor, ["policy_node"])
        answerer.wait_for_node()
        return answerer

    return run_session(arguments, {key: session[key] for key in keys}, make)


def main(args: list[str] | None = None) -> int:
    """Entry point of the executable `replay_node`."""
    return conduct_with(ReplayNode, run, "no report is written", args)


if __name__ == "__main__":
    sys.exit(main())
