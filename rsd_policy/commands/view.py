"""`rsd view`: a bag in Rerun."""

from __future__ import annotations

import argparse
from pathlib import Path

from rsd_policy.exit_status import DONE
from rsd_policy.robots.contract import DEFAULT_ROBOT, load_contract


def main(argv: list[str]) -> int:
    """Run `rsd view` with these arguments. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="rsd view",
        description="Show a bag in Rerun: cameras, the hand, drafts and final chunks as paths, acceptance and latency.",
        epilog="Exit status: 0 shown, 2 wrong arguments, 3 no Rerun (extra [view]), 4 unreadable.",
    )
    parser.add_argument("bag", type=Path, metavar="BAG")
    parser.add_argument("--robot", default=DEFAULT_ROBOT, metavar="ROBOT", help="contract: name or path (%(default)s)")
    parser.add_argument("--namespace", default="", metavar="NS", help="where relative topics are in the bag")
    parser.add_argument("--save", type=Path, metavar="FILE.rrd", help="write a file in place of opening a window")
    arguments = parser.parse_args(argv)
    contract = load_contract(arguments.robot)
    from rsd_policy.bags.playback import Playback, read_recorded
    from rsd_policy.bags.reader import Bag
    from rsd_policy.bags.view import view

    with Bag(arguments.bag) as bag:
        recorded = read_recorded(bag, contract, arguments.namespace)
        instruction = "" if recorded.instructions or recorded.episodes else "not recorded"
        playback = Playback(
            bag, contract, recorded, instruction=instruction, period_s=0.0, namespace=arguments.namespace
        )
        count = view(playback, arguments.save)
        for line in bag.damage:
            print(line)
    print(f"{count} observations" + (f" in {arguments.save}" if arguments.save else ""))
    return DONE
