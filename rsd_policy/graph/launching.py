"""Node graphs as entities of ROS's launch, for the launch files."""

from __future__ import annotations

from collections.abc import Sequence

from launch.actions import DeclareLaunchArgument, EmitEvent, LogInfo, RegisterEventHandler
from launch.event_handlers import OnProcessExit
from launch.events import Shutdown
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from rsd_policy.graph.bringup import Argument, NodeSpec


def declared(arguments: Sequence[Argument]) -> list[DeclareLaunchArgument]:
    """The arguments of a launch file."""
    return [
        DeclareLaunchArgument(
            argument.name,
            default_value=argument.default,
            description=argument.description,
            choices=list(argument.choices) or None,
        )
        for argument in arguments
    ]


def entities(specs: Sequence[NodeSpec], config: str | None, what: str) -> list[Node | RegisterEventHandler]:
    """The processes of a graph, which all end when one of them does: a graph with a node missing is no graph.

    Args:
        config: ROS parameter file for all nodes.
        what: the graph's work, for the message at its end.
    """
    found: list[Node | RegisterEventHandler] = []
    for spec in specs:
        node = _node(spec, config)
        end = f"{what} has ended" if spec.conducts else f"{spec.name} has ended"
        found.append(node)
        found.append(
            RegisterEventHandler(
                OnProcessExit(target_action=node, on_exit=[LogInfo(msg=end), EmitEvent(event=Shutdown(reason=end))])
            )
        )
    return found


def _node(spec: NodeSpec, config: str | None) -> Node:
    # Values keep their type: "0" as tasks is a text, not a number.
    parameters = {
        name: ParameterValue(value, value_type=str) if isinstance(value, str) else value
        for name, value in spec.parameters.items()
    }
    return Node(
        package=spec.package,
        executable=spec.executable,
        name=spec.name,
        parameters=[*([config] if config else []), parameters],
        output="screen",
    )
