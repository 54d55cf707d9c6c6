"""`rsd replay`: show the observations of a bag to a policy, and say where its answers differ."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rsd_policy.errors import ArgumentError, EpisodeError, SetupError
from rsd_policy.exit_status import DONE, NOT_SET_UP, OUTSIDE_TOLERANCE, WRONG_ARGUMENTS
from rsd_policy.robots.contract import DEFAULT_ROBOT, load_contract
from rsd_policy.robots.transforms import refuse_transforms
from rsd_policy.settings import DEFAULT_MODE, MODES


def main(argv: list[str]) -> int:
    """Run `rsd replay` with these arguments. Returns the exit status."""
    arguments = parse(argv)
    if arguments.no_ros:
        from rsd_policy.bags.session import replay_in_process

        return replay_in_process(arguments)
    return _over_ros(arguments)


def parse(argv: list[str]) -> argparse.Namespace:
    """The arguments, checked as far as they can be without the bag.

    Raises:
        ArgumentError: no such mode, or a contract that is wrong.
    """
    arguments = _parser().parse_args(argv)
    if arguments.mode is not None and arguments.mode not in MODES:
        raise ArgumentError(f"--mode: expected one of {', '.join(MODES)}, got '{arguments.mode}'")
    contract = load_contract(arguments.robot)
    if not arguments.no_ros:
        refuse_transforms(contract)
    arguments.out = (arguments.out or Path("out") / f"replay-{arguments.bag.stem}").expanduser()
    return arguments


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rsd replay",
        description="Show the observations of a bag to a policy, one after the other, and compare its answers with the "
        "chunks in the bag, with the commands in it, with another mode, or with an earlier replay.",
        epilog="Exit status: 0 all answers within the contract's tolerance (or nothing to compare with), 2 wrong "
        "arguments, 3 not set up or checkpoint invalid, 4 the bag or the policy gave up, 5 outside the tolerance.",
    )
    parser.add_argument("bag", type=Path, metavar="BAG", help="rosbag2 directory, .mcap, .db3, .bag, also .zstd")
    parser.add_argument("--robot", default=DEFAULT_ROBOT, metavar="ROBOT", help="contract: name or path (%(default)s)")
    parser.add_argument("--namespace", default="", metavar="NS", help="where relative topics of the contract are")
    parser.add_argument("--policy", metavar="POLICY", help="mini or a checkpoint (the recorded one's name, else mini)")
    parser.add_argument("--mode", metavar="MODE", help=f"{', '.join(MODES)} (the recorded one, else {DEFAULT_MODE})")
    parser.add_argument("--alpha", type=float, metavar="P", help="mode gated: the bound (recorded, else the policy's)")
    parser.add_argument("--norm-key", metavar="KEY", help="OpenVLA: whose action statistics to use")
    parser.add_argument("--base", metavar="POLICY", help="what an adapter or heads stand on")
    parser.add_argument(
        "--against",
        metavar="WHAT",
        help="recorded, commands, a mode, or the directory of an earlier replay (what is in the bag)",
    )
    parser.add_argument("--instruction", default="", metavar="TEXT", help="instead of what the bag says")
    parser.add_argument(
        "--period", type=float, default=0.4, metavar="S", help="without recorded chunks: one observation per S (0.4)"
    )
    parser.add_argument("--no-ros", action="store_true", help="in this process instead of through policy_node")
    parser.add_argument("--device", default="cpu", help="torch device of the policy (%(default)s)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="of the report (out/replay-<bag>)")
    return parser


def _over_ros(arguments: argparse.Namespace) -> int:
    """The same loop in replay_node, with the answers of the real policy_node."""
    from rsd_policy.bags.session import recorded_run
    from rsd_policy.graph.bringup import replay_nodes
    from rsd_policy.graph.supervisor import run_graph

    run = recorded_run(arguments)
    session: dict[str, Any] = {
        key: str(value) if isinstance(value, Path) else value for key, value in vars(arguments).items()
    }
    session |= run
    robot = str(load_contract(arguments.robot).path.resolve())
    specs = replay_nodes(run, robot=robot, device=arguments.device, session=json.dumps(session))
    status = run_graph(specs, config=None, logs=arguments.out / "logs")
    if status == NOT_SET_UP:
        raise SetupError("the replay could not begin; replay_node has printed why")
    if status not in (DONE, OUTSIDE_TOLERANCE, WRONG_ARGUMENTS):
        raise EpisodeError(f"replay_node ended with exit status {status}; it has printed why")
    return status
