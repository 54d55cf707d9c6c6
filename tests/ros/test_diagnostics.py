"""What all nodes say about themselves in the same way."""

from __future__ import annotations

import time

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.parameter import Parameter

from rsd_policy.nodes.diagnostics import OK, Diagnostics
from rsd_policy.nodes.messages import to_seconds


def test_a_node_in_simulation_time_reports_in_the_clock_of_the_others(probe):
    """In real time /diagnostics mixed the wall clock of some nodes with the simulation time of others."""
    arrays = probe.record(DiagnosticArray, "/diagnostics")
    overrides = [Parameter("use_sim_time", Parameter.Type.BOOL, True)]
    node = rclpy.create_node("simulated", context=probe.node.context, parameter_overrides=overrides)
    diagnostics = Diagnostics(node, "")
    diagnostics.set("commands", OK, "commanding")
    probe.executor.add_node(node)
    probe.spin_until(lambda: len(arrays) > 0, 10, "a report")
    probe.executor.remove_node(node)
    node.destroy_node()
    assert abs(to_seconds(arrays[0].header.stamp) - time.time()) < 60.0
