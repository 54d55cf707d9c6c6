"""Show a bag to the policy: `ros2 launch rsd_policy replay.launch.py bag:=BAG`.

The graph is the one that `./rsd replay` starts (rsd_policy/graph/bringup.py), or with source:=play policy_node in real
time behind a player with the recording's clock. `ros2 launch` returns 0 whatever the nodes return: the outcome is in
the table at the end and in replay.json of the report.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from launch.actions import OpaqueFunction, RegisterEventHandler
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from launch import LaunchContext, LaunchDescription
from rsd_policy.bags.session import recorded_run
from rsd_policy.commands.replay import parse
from rsd_policy.graph.bringup import REPLAY_ARGUMENTS, play_nodes, replay_nodes
from rsd_policy.graph.launching import declared, entities
from rsd_policy.robots.contract import load_contract


def _arguments(values: dict[str, str]) -> argparse.Namespace:
    """The same as `rsd replay` gets; what is empty is not given."""
    options = [name for name in values if name not in ("bag", "source")]
    given = [part for name in options if values[name] for part in (f"--{name}", values[name])]
    return parse([values["bag"], *given])


def _graph(context: LaunchContext) -> list[Node | RegisterEventHandler]:
    values = {argument.name: LaunchConfiguration(argument.name).perform(context) for argument in REPLAY_ARGUMENTS}
    arguments = _arguments(values)
    run = recorded_run(arguments)
    robot = str(load_contract(arguments.robot).path.resolve())
    if values["source"] == "play":
        specs = play_nodes(
            run,
            bag=str(arguments.bag.resolve()),
            robot=robot,
            namespace=arguments.namespace,
            instruction=arguments.instruction,
            device=arguments.device,
        )
        return entities(specs, None, "the bag")
    given = {name: str(value) if isinstance(value, Path) else value for name, value in vars(arguments).items()}
    specs = replay_nodes(run, robot=robot, device=arguments.device, session=json.dumps(given | run))
    return entities(specs, None, "the replay")


def generate_launch_description() -> LaunchDescription:
    """The arguments and the graph."""
    return LaunchDescription([*declared(REPLAY_ARGUMENTS), OpaqueFunction(function=_graph)])
