"""What ROS adds to an inference: from the stamp of the images to the arrival of the chunk, less the inference itself.

A camera process sends two 256x256 images, pose and joints; policy_node answers in a process of its own. The next frame
is sent when the answer has arrived and a pause has passed, as a camera of a robot that waits for its policy.

    ./rsd setup && source ros2_ws/install/setup.bash
    .venv/bin/python -m benchmarks.latency.ros --json ros_latency.json
"""

from __future__ import annotations

import argparse
import json
import queue
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from geometry_msgs.msg import PoseStamped
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rsd_msgs.msg import ActionChunk
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import String

from rsd_policy.errors import EpisodeError
from rsd_policy.evaluation import provenance
from rsd_policy.evaluation.statistics import latency_summary
from rsd_policy.exit_status import DONE, NOT_RUN
from rsd_policy.graph.bringup import NodeSpec
from rsd_policy.graph.supervisor import end_processes, ros_domain, start_process
from rsd_policy.nodes.messages import ARM_JOINTS, GRIPPER_JOINTS, image_to_msg, to_nanoseconds, to_stamp
from rsd_policy.nodes.receiver import Receiver
from rsd_policy.nodes.runtime import COMMANDS, LATCHED, LOCKSTEP_INPUT

P50_MS, P99_MS = 4.0, 15.0
"""What is asked for."""

WARM_UP = 20
"""Frames before measuring: discovery, shared memory and allocators settle."""

PAUSE_S = 0.02
"""Between an answer and the next frame."""

ANSWER_TIMEOUT_S = 60.0

IMAGE_SIZE = 256


class Camera:
    """The robot's side: sends frames and takes the time of the answers, in a thread that does nothing else."""

    def __init__(self, domain: int) -> None:
        self._context = Context()
        rclpy.init(context=self._context, domain_id=domain)
        self._node = rclpy.create_node("camera", context=self._context)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        images = np.random.default_rng(0).integers(0, 256, (2, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
        self._images = [image_to_msg(image, to_stamp(0), "camera") for image in images]
        self._cameras = [
            self._node.create_publisher(Image, f"{name}/image_raw", LOCKSTEP_INPUT) for name in ("agentview", "wrist")
        ]
        self._pose = self._node.create_publisher(PoseStamped, "eef_pose", LOCKSTEP_INPUT)
        self._joints = self._node.create_publisher(JointState, "joint_states", LOCKSTEP_INPUT)
        self._instruction = self._node.create_publisher(String, "instruction", LATCHED)
        self._answers: queue.SimpleQueue[tuple[int, ActionChunk] | BaseException] = queue.SimpleQueue()
        self._receiver = Receiver(self._node, self._answers.put)
        self._receiver.subscribe(ActionChunk, "action_chunk", self._on_chunk, COMMANDS)
        self._receiver.start()

    def close(self) -> None:
        self._receiver.close()
        self._executor.shutdown()
        self._node.destroy_node()
        rclpy.shutdown(context=self._context)

    def _on_chunk(self, msg: ActionChunk) -> None:
        if not msg.audited:  # an audit's outcome comes after the answer
            self._answers.put((time.time_ns(), msg))

    def _wait(self, condition: Any, what: str, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                raise EpisodeError(f"expected {what} within {timeout_s:.0f} s")
            self._executor.spin_once(timeout_sec=0.1)

    def bring_up(self) -> None:
        """Configure and activate policy_node, and tell it what to do."""
        client = self._node.create_client(ChangeState, "policy_node/change_state")
        self._wait(client.service_is_ready, "policy_node", 120)
        for transition in (Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE):
            future = client.call_async(ChangeState.Request(transition=Transition(id=transition)))
            self._wait(future.done, "policy_node to load", 600)
            if not future.result().success:
                raise EpisodeError("policy_node could not be brought up; see its log")
        self._instruction.publish(String(data="pick up the black bowl and place it on the plate"))
        publishers = [*self._cameras, self._pose, self._joints, self._instruction]
        self._wait(lambda: all(p.get_subscription_count() for p in publishers), "policy_node's subscriptions", 30)
        end = time.monotonic() + 1.0
        self._wait(lambda: time.monotonic() > end, "a second", 10)

    def frame(self) -> tuple[float, float, float]:
        """Send one frame; returns what ROS added until the first and until the final chunk, and the inference, ms."""
        pose, joints = PoseStamped(), JointState(name=[*ARM_JOINTS, *GRIPPER_JOINTS], position=[0.0] * 9)
        pose.pose.orientation.w = 1.0
        sent = time.time_ns()
        for msg in (*self._images, pose, joints):
            msg.header.stamp = to_stamp(sent)
        for publisher, msg in zip(self._cameras, self._images, strict=True):
            publisher.publish(msg)
        self._pose.publish(pose)
        self._joints.publish(joints)
        answers = [self._answer(sent)]
        while not answers[-1][1].verified:
            answers.append(self._answer(sent))
        (first_at, first), (final_at, final) = answers[0], answers[-1]
        time.sleep(PAUSE_S)
        return (
            (first_at - sent) / 1e6 - first.first_action_ms,
            (final_at - sent) / 1e6 - final.inference_ms,
            final.inference_ms,
        )

    def _answer(self, sent: int) -> tuple[int, ActionChunk]:
        """The next chunk and when it arrived, ns."""
        try:
            answer = self._answers.get(timeout=ANSWER_TIMEOUT_S)
        except queue.Empty as error:
            raise EpisodeError(f"expected a chunk within {ANSWER_TIMEOUT_S:.0f} s; see policy_node's log") from error
        if isinstance(answer, BaseException):
            raise answer
        if to_nanoseconds(answer[1].header.stamp) != sent:
            raise EpisodeError("got the answer to another frame")
        return answer


def measure(policy: str, mode: str, frames: int) -> dict[str, Any]:
    """Run policy_node and send it frames."""
    parameters = {"policy": policy, "mode": mode, "clock": "realtime"}
    spec = NodeSpec("rsd_policy", "policy_node", "rsd_policy.nodes.policy_node", "policy_node", parameters)
    with tempfile.TemporaryDirectory() as logs, ros_domain() as domain:
        process = start_process(spec, config=None, logs=Path(logs), domain=domain)
        camera = Camera(domain)
        try:
            camera.bring_up()
            for _ in range(WARM_UP):
                camera.frame()
            rows = np.array([camera.frame() for _ in range(frames)])
        finally:
            camera.close()
            end_processes([process])
    first, final, inference = (latency_summary(column.tolist()) for column in rows.T)
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": f"python -m benchmarks.latency.ros --policy {policy} --mode {mode} --frames {frames}",
        "hardware": provenance.hardware("cpu", 1),
        "frames": frames,
        "image_size": IMAGE_SIZE,
        "added_until_first_chunk_ms": first,
        "added_until_final_chunk_ms": final,
        "inference_ms": inference,
        "target_ms": {"p50": P50_MS, "p99": P99_MS},
    }


def main(argv: list[str]) -> int:
    """Measure and print; returns 0, or 4 when it could not be measured."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.latency.ros", description="What ROS adds to an inference."
    )
    parser.add_argument("--policy", default="mini", help="mini or a checkpoint directory (%(default)s)")
    parser.add_argument("--mode", default="speculative", help="inference mode (%(default)s)")
    parser.add_argument("--frames", type=int, default=1000, help="measured frames (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    arguments = parser.parse_args(argv)
    if arguments.frames < 1:
        parser.error("--frames: expected at least 1")
    try:
        result = measure(arguments.policy, arguments.mode, arguments.frames)
    except EpisodeError as error:
        print(f"ros_latency: {error}", file=sys.stderr)
        return NOT_RUN
    print(f"{result['command']}\n{result['hardware']['cpu']}, {result['hardware']['cores']} cores, {result['date']}")
    print(f"{'ms':<28}{'p50':>8}{'p95':>8}{'p99':>8}")
    for key, label in (
        ("added_until_first_chunk_ms", "ROS, until the first chunk"),
        ("added_until_final_chunk_ms", "ROS, until the final chunk"),
        ("inference_ms", "inference"),
    ):
        row = result[key]
        print(f"{label:<28}{row['p50']:>8.2f}{row['p95']:>8.2f}{row['p99']:>8.2f}")
    print(f"{'asked of ROS':<28}{P50_MS:>8.2f}{'':>8}{P99_MS:>8.2f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
