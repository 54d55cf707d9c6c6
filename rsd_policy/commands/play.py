"""`rsd play`: the inputs of a contract out of a bag into this ROS domain, as a robot sends them."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from rsd_policy.graph.bringup import play_node
from rsd_policy.graph.supervisor import ros_arguments
from rsd_policy.robots.contract import DEFAULT_ROBOT, load_contract
from rsd_policy.robots.transforms import refuse_transforms


def main(argv: list[str]) -> int:
    """Run `rsd play` with these arguments. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="rsd play",
        description="Publish the inputs of a robot's contract out of a bag as fast as recorded, with /clock, in "
        "this ROS domain (ROS_DOMAIN_ID): `ros2 bag play --clock` for machines without ros2bag. Starts when "
        "somebody hears every input.",
        epilog="Exit status: 0 played, 2 wrong arguments, 4 the bag cannot be read.",
    )
    parser.add_argument("bag", type=Path, metavar="BAG")
    parser.add_argument("--robot", default=DEFAULT_ROBOT, metavar="ROBOT", help="contract: name or path (%(default)s)")
    parser.add_argument("--namespace", default="", metavar="NS", help="where relative topics are in the bag")
    parser.add_argument("--instruction", default="", metavar="TEXT", help="instead of what the bag says")
    parser.add_argument("--rate", type=float, default=1.0, metavar="X", help="how much faster (%(default)s)")
    arguments = parser.parse_args(argv)
    contract = load_contract(arguments.robot)
    refuse_transforms(contract)
    spec = play_node(
        bag=str(arguments.bag),
        robot=str(contract.path),
        namespace=arguments.namespace,
        instruction=arguments.instruction,
        rate=arguments.rate,
    )
    print(f"playing {arguments.bag} in domain {os.environ.get('ROS_DOMAIN_ID', '0')}; Ctrl-C ends it", file=sys.stderr)
    from rsd_policy.nodes.play_node import main as play

    return play(["play_node", *ros_arguments(spec, None)])
