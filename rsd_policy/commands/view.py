"""`rsd view`: a bag, or the results of `rsd eval`, in Rerun."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rsd_policy.errors import SetupError
from rsd_policy.exit_status import DONE
from rsd_policy.robots.contract import DEFAULT_ROBOT, Contract, load_contract


def main(argv: list[str]) -> int:
    """Run `rsd view` with these arguments. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="rsd view",
        description="Show a bag in Rerun: cameras, the hand, drafts and final chunks as paths, acceptance and latency; "
        "or the results of `rsd eval`: per episode what was executed, acceptance, latency and its video.",
        epilog="Exit status: 0 shown, 2 wrong arguments, 3 no Rerun (extra [view]), 4 unreadable.",
    )
    parser.add_argument("source", type=Path, metavar="BAG|RUN", help="a bag, or a directory of results")
    parser.add_argument("--robot", default=DEFAULT_ROBOT, metavar="ROBOT", help="contract: name or path (%(default)s)")
    parser.add_argument("--namespace", default="", metavar="NS", help="where relative topics are in the bag")
    parser.add_argument("--save", type=Path, metavar="FILE.rrd", help="write a file in place of opening a window")
    arguments = parser.parse_args(argv)
    contract = load_contract(arguments.robot)
    from rsd_policy.evaluation.store import DATABASE

    show = _results if (arguments.source / DATABASE).is_file() else _bag
    shown = show(arguments, contract)
    print(shown + (f" in {arguments.save}" if arguments.save else ""))
    return DONE


def _bag(arguments: argparse.Namespace, contract: Contract) -> str:
    from rsd_policy.bags.playback import Playback, read_recorded
    from rsd_policy.bags.reader import Bag
    from rsd_policy.bags.view import view_bag

    with Bag(arguments.source) as bag:
        recorded = read_recorded(bag, contract, arguments.namespace)
        instruction = "" if recorded.instructions or recorded.episodes else "not recorded"
        playback = Playback(
            bag, contract, recorded, instruction=instruction, period_s=0.0, namespace=arguments.namespace
        )
        rerun = _begin(arguments.save)
        count = view_bag(rerun, playback)
        rerun.disconnect()
        for line in bag.damage:
            print(line)
    return f"{count} observations"


def _results(arguments: argparse.Namespace, contract: Contract) -> str:
    from rsd_policy.evaluation.store import ResultStore
    from rsd_policy.reports.view import view_results

    with ResultStore.open_results(arguments.source) as store:
        rerun = _begin(arguments.save)
        count = view_results(rerun, store, contract.action)
        rerun.disconnect()
    return f"{count} episodes"


def _begin(save: Path | None) -> Any:
    """Rerun's module, with a recording that goes to a file, or to a window that it opens.

    Raises:
        SetupError: Rerun is not installed.
    """
    try:
        import rerun
    except ImportError as error:
        raise SetupError("Rerun is not installed: pip install 'rsd_policy[view]'") from error
    rerun.init("rsd_policy", spawn=save is None)
    if save is not None:
        save.parent.mkdir(parents=True, exist_ok=True)
        rerun.save(str(save))
    return rerun
