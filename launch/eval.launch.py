"""Evaluate a policy in closed loop on LIBERO: `ros2 launch rsd_policy eval.launch.py task_suite:=libero_spatial`.

The graph is the one that `./rsd eval` starts (rsd_policy/graph/bringup.py). `ros2 launch` returns 0 whatever the nodes
return: the outcome is in the table at the end and in summary.json of the result directory.
"""

from __future__ import annotations

from pathlib import Path

from launch.actions import DeclareLaunchArgument, EmitEvent, LogInfo, OpaqueFunction, RegisterEventHandler
from launch.event_handlers import OnProcessExit
from launch.events import Shutdown
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from launch import LaunchContext, LaunchDescription
from rsd_policy.evaluation.protocol import first_trials, format_indices
from rsd_policy.graph.bringup import EVAL_ARGUMENTS, NodeSpec, eval_nodes
from rsd_policy.settings import EVAL_CONFIG


def _node(spec: NodeSpec) -> Node:
    # Values keep their type: "0" as tasks is a text, not a number.
    parameters = {
        name: ParameterValue(value, value_type=str) if isinstance(value, str) else value
        for name, value in spec.parameters.items()
    }
    return Node(
        package=spec.package,
        executable=spec.executable,
        name=spec.name,
        parameters=[str(Path(__file__).resolve().parents[1] / EVAL_CONFIG), parameters],
        output="screen",
    )


def _graph(context: LaunchContext) -> list[Node | RegisterEventHandler]:
    values = {argument.name: LaunchConfiguration(argument.name).perform(context) for argument in EVAL_ARGUMENTS}
    speculative = values.pop("use_speculative_decoding") == "true"
    specs = eval_nodes(
        task_suite=values["task_suite"],
        tasks=values["tasks"],
        trials=values["trials"] or format_indices(first_trials(int(values["num_trials"]))),
        policy=values["policy"],
        mode=values["mode"] if speculative else "baseline",
        alpha=float(values["alpha"]),
        norm_key=values["norm_key"],
        base=values["base"],
        clock=values["clock"],
        device=values["device"],
        seed=int(values["seed"]),
        out=values["out"],
        report=True,
    )
    entities: list[Node | RegisterEventHandler] = []
    for spec in specs:
        node = _node(spec)
        end = "the evaluation has ended" if spec.conducts else f"{spec.name} has ended"
        entities.append(node)
        # A graph with a node missing is no graph: whichever ends first, all end.
        entities.append(
            RegisterEventHandler(
                OnProcessExit(target_action=node, on_exit=[LogInfo(msg=end), EmitEvent(event=Shutdown(reason=end))])
            )
        )
    return entities


def generate_launch_description() -> LaunchDescription:
    """The arguments and the graph."""
    arguments = [
        DeclareLaunchArgument(
            argument.name,
            default_value=argument.default,
            description=argument.description,
            choices=list(argument.choices) or None,
        )
        for argument in EVAL_ARGUMENTS
    ]
    return LaunchDescription([*arguments, OpaqueFunction(function=_graph)])
