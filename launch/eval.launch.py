"""Evaluate a policy in closed loop on LIBERO: `ros2 launch rsd_policy eval.launch.py task_suite:=libero_spatial`.

The graph is the one that `./rsd eval` starts (rsd_policy/graph/bringup.py). `ros2 launch` returns 0 whatever the nodes
return: the outcome is in the table at the end and in summary.json of the result directory.
"""

from __future__ import annotations

from pathlib import Path

from launch.actions import OpaqueFunction, RegisterEventHandler
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from launch import LaunchContext, LaunchDescription
from rsd_policy.graph.bringup import EVAL_ARGUMENTS, launched_eval
from rsd_policy.graph.launching import declared, entities
from rsd_policy.settings import EVAL_CONFIG


def _graph(context: LaunchContext) -> list[Node | RegisterEventHandler]:
    values = {argument.name: LaunchConfiguration(argument.name).perform(context) for argument in EVAL_ARGUMENTS}
    specs = launched_eval(values)
    config = Path(__file__).resolve().parents[1] / EVAL_CONFIG
    return entities(specs, str(config), "the evaluation")


def generate_launch_description() -> LaunchDescription:
    """The arguments and the graph."""
    return LaunchDescription([*declared(EVAL_ARGUMENTS), OpaqueFunction(function=_graph)])
