"""How node processes end: a dead thread must not look like an ordinary shutdown."""

from __future__ import annotations

import threading

import pytest
from rclpy.clock import Clock, ClockType
from rclpy.node import Node

from rsd_policy.graph.supervisor import ros_domain
from rsd_policy.nodes.runtime import run_node


class Dying(Node):
    """Shuts its context down after a thread died, while a callback runs or while nothing happens."""

    def __init__(self, *, in_callback: bool, error: BaseException | None) -> None:
        super().__init__("dying")
        self.fatal_error: BaseException | None = None
        self.closed = False
        self._in_callback, self._error = in_callback, error
        self._thread = threading.Thread(target=self._die)
        self.create_timer(0.05, self._on_timer, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def close(self) -> None:
        self.closed = True

    def _on_timer(self) -> None:
        if self._thread.ident is None:
            self._thread.start()
            if self._in_callback:
                self._thread.join()

    def _die(self) -> None:
        self.fatal_error = self._error
        self.context.try_shutdown()


@pytest.mark.parametrize("in_callback", [True, False])
@pytest.mark.parametrize("error", [RuntimeError("the thread died of this"), None])
def test_the_exit_status_tells_whether_a_thread_died(monkeypatch, in_callback, error):
    nodes = []

    def make() -> Dying:
        nodes.append(Dying(in_callback=in_callback, error=error))
        return nodes[0]

    with ros_domain() as domain:
        monkeypatch.setenv("ROS_DOMAIN_ID", str(domain))
        if error is None:
            assert run_node(make) == 0
        else:
            with pytest.raises(RuntimeError, match="the thread died of this"):
                run_node(make)
    assert nodes[0].closed
