"""`rsd import`: bags and LeRobot datasets of a robot that somebody drove become demonstrations to train on."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from rsd_policy.errors import ArgumentError, RSDError
from rsd_policy.exit_status import DONE
from rsd_policy.robots.contract import DEFAULT_ROBOT, load_contract

PLOTTED = 6


def main(argv: list[str]) -> int:
    """Run `rsd import` with these arguments. Returns the exit status."""
    arguments = _parser().parse_args(argv)
    contract = load_contract(arguments.robot)
    from rsd_policy.training.bag_demonstrations import (
        Episode,
        episodes_of,
        gripper_contradictions,
        plot_gripper,
    )
    from rsd_policy.training.gate.bags import find_bags
    from rsd_policy.training.lerobot_dataset import is_lerobot_dataset
    from rsd_policy.training.lerobot_demonstrations import episodes_of_dataset
    from sim_bridge.demonstrations import write_demonstration

    out: Path = arguments.out
    suite = re.sub(r"\W+", "_", contract.robot)
    if (out / suite).exists():
        raise ArgumentError(f"{out / suite}: expected no demonstrations of this robot yet; choose another --out")
    tasks: dict[str, int] = {}
    plotted: list[Episode] = []
    agree = against = written = 0
    datasets = [path for path in arguments.sources if is_lerobot_dataset(path)]
    bags = find_bags([path for path in arguments.sources if path not in datasets])
    for source in [*datasets, *bags]:
        read, key = episodes_of, "action.gripper"
        if source in datasets:
            read, key = episodes_of_dataset, "lerobot.action.gripper"
        try:
            for episode in read(
                source, contract, source=arguments.actions, size=arguments.image_size, instruction=arguments.instruction
            ):
                plotted = [*plotted, episode][:PLOTTED]
                one, other = gripper_contradictions(episode, contract.action.period_s)
                agree, against = agree + one, against + other
                if against > agree:
                    out.mkdir(parents=True, exist_ok=True)
                    plot_gripper(plotted, contract.action.period_s, out / "gripper.png")
                    raise RSDError(
                        f"the hand moved against the gripper's command in {against} of {agree + against} changes "
                        f"({out / 'gripper.png'}); correct {key} in the contract '{contract.robot}'"
                    )
                task = tasks.setdefault(episode.instruction, len(tasks))
                write_demonstration(out, episode.demonstration(suite, task, written))
                written += 1
        except RSDError as error:
            raise type(error)(f"{source}: {error}" if str(source) not in str(error) else str(error)) from error
    plot_gripper(plotted, contract.action.period_s, out / "gripper.png")
    print(f"{written} demonstrations of {len(tasks)} tasks in {out}")
    print(f"the hand followed {agree} of {agree + against} changes of the gripper's command: {out / 'gripper.png'}")
    return DONE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rsd import",
        description="Turn bags and LeRobot datasets (v2.1, v3.0; extra [lerobot]) of a robot that somebody drove into "
        "the demonstrations that train, train-heads and fit-codec read. Steps in which nothing moves are left out.",
        epilog="Exit status: 0 done, 2 wrong arguments or contract, 3 no pyarrow, 4 a bag or dataset cannot be read.",
    )
    parser.add_argument(
        "sources", type=Path, nargs="+", metavar="SOURCE", help="bags, folders of them, or LeRobot datasets"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DEMOS", help="folder of demonstrations")
    parser.add_argument("--robot", default=DEFAULT_ROBOT, metavar="ROBOT", help="contract: name or path (%(default)s)")
    parser.add_argument(
        "--actions",
        default="auto",
        choices=("auto", "commands", "state"),
        help="what was done: recorded commands, differences of the state, or commands where there are any (auto)",
    )
    parser.add_argument("--instruction", default="", metavar="TEXT", help="instead of what was recorded")
    parser.add_argument("--image-size", type=int, default=128, metavar="PX", help="of the images (%(default)s)")
    return parser
