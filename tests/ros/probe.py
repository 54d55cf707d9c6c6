"""A node inside the test process that looks at a graph of real processes from outside."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import rclpy
from action_msgs.msg import GoalStatus, GoalStatusArray
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import QoSProfile, qos_profile_action_status_default

from rsd_policy.graph.supervisor import GraphProcess
from rsd_policy.nodes.runtime import COMMANDS

CONFIGURE = Transition.TRANSITION_CONFIGURE
ACTIVATE = Transition.TRANSITION_ACTIVATE
DEACTIVATE = Transition.TRANSITION_DEACTIVATE


class Probe:
    """Subscribes, publishes and calls services in a domain; keeps everything it receives."""

    def __init__(self, domain: int) -> None:
        self.domain = domain
        self._context = Context()
        rclpy.init(context=self._context, domain_id=domain)
        self.node = rclpy.create_node("probe", context=self._context)
        self.executor = SingleThreadedExecutor(context=self._context)
        self.executor.add_node(self.node)
        self.processes: list[GraphProcess] = []
        self._statuses: dict[str, list[Any]] = {}
        self.diagnostics: dict[str, DiagnosticStatus] = {}
        self.node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 100)

    def close(self) -> None:
        self.executor.shutdown()
        self.node.destroy_node()
        rclpy.shutdown(context=self._context)

    def record(self, kind: Any, topic: str, qos: QoSProfile = COMMANDS) -> list[Any]:
        """A list to which every message of the topic is appended."""
        messages: list[Any] = []
        self.node.create_subscription(kind, topic, messages.append, qos)
        return messages

    def publisher(self, kind: Any, topic: str, qos: QoSProfile = COMMANDS) -> Any:
        """A publisher that somebody listens to."""
        publisher = self.node.create_publisher(kind, topic, qos)
        self.spin_until(lambda: publisher.get_subscription_count() > 0, 60, f"a subscriber of {topic}")
        return publisher

    def call(self, kind: Any, service: str, request: Any, timeout_s: float = 120.0) -> Any:
        client = self.node.create_client(kind, service)
        self.spin_until(client.service_is_ready, timeout_s, f"service {service}")
        future = client.call_async(request)
        self.spin_until(future.done, timeout_s, f"an answer of {service}")
        return future.result()

    def transition(self, node: str, transition: int) -> bool:
        request = ChangeState.Request(transition=Transition(id=transition))
        return bool(self.call(ChangeState, f"{node}/change_state", request).success)

    def wait_executing(self, action: str, goal: Any) -> None:
        """Wait until a goal has been called executing (the client's own handle can miss the first status)."""
        if action not in self._statuses:
            topic, qos = f"{action}/_action/status", qos_profile_action_status_default
            self._statuses[action] = self.record(GoalStatusArray, topic, qos)
        wanted = bytes(goal.goal_id.uuid)

        def executing() -> bool:
            known = (status for array in self._statuses[action] for status in array.status_list)
            return any(
                bytes(status.goal_info.goal_id.uuid) == wanted and status.status >= GoalStatus.STATUS_EXECUTING
                for status in known
            )

        self.spin_until(executing, 20, "the goal in execution")

    def spin_until(self, condition: Callable[[], bool], timeout_s: float, what: str) -> None:
        """Spin until the condition holds, or fail saying what did not come."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"expected {what} within {timeout_s} s; {self._graph()}"
            self.executor.spin_once(timeout_sec=0.05)

    def spin_for(self, seconds: float) -> None:
        """Let that much time pass, for what must not happen."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.executor.spin_once(timeout_sec=0.05)

    def _graph(self) -> str:
        """How the processes are and what they printed last."""
        lines = [f"domain {self.domain}"]
        for process in self.processes:
            printed = process.log.read_text(errors="replace").splitlines()[-6:] if process.log else []
            lines += [f"{process.spec.name} (exit status {process.popen.poll()}):", *printed]
        return "\n".join(lines)

    def _on_diagnostics(self, msg: DiagnosticArray) -> None:
        for status in msg.status:
            self.diagnostics[status.name] = status
