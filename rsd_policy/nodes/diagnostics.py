"""/diagnostics of a node: one status per component, at 1 Hz, and at once when something fails."""

from __future__ import annotations

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.clock import Clock, ClockType
from rclpy.node import Node

OK, WARN, ERROR, STALE = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR, DiagnosticStatus.STALE

PERIOD_S = 1.0
"""REP 107: drivers publish diagnostics at 1 Hz."""


class Diagnostics:
    """Keeps the latest status of each component and publishes all of them once a second.

    Names follow REP 107: "node: component".
    """

    def __init__(self, node: Node, hardware_id: str) -> None:
        self._node = node
        self._hardware_id = hardware_id
        self._statuses: dict[str, DiagnosticStatus] = {}
        self._publisher = node.create_publisher(DiagnosticArray, "/diagnostics", 10)
        # All nodes of a graph are told of in one clock, whichever of them run by simulation time.
        self._wall = Clock(clock_type=ClockType.SYSTEM_TIME)
        # a steady clock: with simulation time a paused simulation would look like a dead node
        node.create_timer(PERIOD_S, self.publish, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def set(self, component: str, level: bytes, message: str, **values: object) -> None:
        """Set the status of a component. A change to ERROR is published at once.

        Args:
            component: e.g. "inference".
            level: OK, WARN, ERROR or STALE.
            message: one line for people.
            **values: details, shown as text.
        """
        before = self._statuses.get(component)
        self._statuses[component] = DiagnosticStatus(
            level=level,
            name=f"{self._node.get_fully_qualified_name().lstrip('/')}: {component}",
            message=message,
            hardware_id=self._hardware_id,
            values=[KeyValue(key=key.replace("_", " "), value=str(value)) for key, value in values.items()],
        )
        if level == ERROR and (before is None or before.level != ERROR or before.message != message):
            self.publish()

    def publish(self) -> None:
        array = DiagnosticArray(status=list(self._statuses.values()))
        array.header.stamp = self._wall.now().to_msg()
        self._publisher.publish(array)
