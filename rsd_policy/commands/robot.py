"""`rsd robot check`: what a contract finds in a bag, before anything else trusts it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rsd_policy.exit_status import DONE, OUTSIDE_TOLERANCE
from rsd_policy.robots.contract import load_contract

if TYPE_CHECKING:
    from rsd_policy.bags.inspection import Inspection


def main(argv: list[str]) -> int:
    """Run `rsd robot` with these arguments. Returns the exit status."""
    return _check(_parser().parse_args(argv))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="rsd robot", description="Contracts of robots (config/robots).")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    check = commands.add_parser(
        "check",
        help="what a contract finds in a bag",
        description="Say of every topic of a contract whether a bag has it, at which rate, in which encoding and with "
        "which stamps, and show one observation as the policy sees it.",
        epilog="Exit status: 0 all inputs are there and sound, 2 wrong arguments or contract, 4 the bag is unreadable, "
        "5 something is missing or odd.",
    )
    check.add_argument("contract", metavar="CONTRACT", help="a name of config/robots, or a path")
    check.add_argument("bag", type=Path, metavar="BAG")
    check.add_argument("--namespace", default="", metavar="NS", help="where relative topics of the contract are")
    check.add_argument("--policy", default="mini", help="whose training the state is compared with (%(default)s)")
    check.add_argument("--norm-key", metavar="KEY", help="OpenVLA: whose statistics")
    check.add_argument("--out", type=Path, default=Path("out/robot-check.png"), help="the picture (%(default)s)")
    return parser


def _check(arguments: argparse.Namespace) -> int:
    contract = load_contract(arguments.contract)
    from rsd_policy.bags.inspection import inspect
    from rsd_policy.bags.playback import Playback, Recorded
    from rsd_policy.bags.reader import Bag

    with Bag(arguments.bag) as bag:
        playback = Playback(bag, contract, Recorded(), instruction="check", period_s=0.0, namespace=arguments.namespace)
        found = inspect(bag, contract, playback)
        damage = bag.damage
    _print(found, contract.alignment, damage)
    odd: list[str] = []
    if found.shown is not None:
        odd = _state(found.shown.observation.proprio, arguments)
        _picture(found.shown.observation, arguments.out)
        print(f"one observation as the policy sees it: {arguments.out}")
    return DONE if found.good and not odd and not damage else OUTSIDE_TOLERANCE


def _print(found: Inspection, alignment: Any, damage: list[str]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False, soft_wrap=True)
    console.width = max(console.width, 120)  # topics are long, and a cut one is of no use
    table = Table()
    for title in ("topic", "messages", "per second", "what", "header to arrival", ""):
        table.add_column(title, justify="right" if title in ("messages", "per second") else "left", overflow="fold")
    for report in found.topics:
        rate = "" if report.rate is None else f"{report.rate:.1f}"
        table.add_row(
            escape(report.topic),
            str(report.count),
            rate,
            escape(", ".join(report.what)),
            report.clock,
            "[red]see below[/red]" if report.problems else "[green]ok[/green]",
        )
    console.print(table)
    for report in found.topics:
        if report.problems:
            console.print(f"[red]{escape(report.topic)}: {escape('; '.join(report.problems))}[/red]")
    clocks = {report.clock == "its own" for report in found.topics if report.clock}
    if len(clocks) > 1 and alignment.stamps == "header":
        console.print("[red]some topics are stamped by another clock than others: no stamps can match[/red]")
    tolerance = "" if alignment.how == "exact" else f" within {alignment.tolerance_s * 1e3:.0f} ms"
    console.print(
        f"{found.complete} of {found.references} images of {alignment.reference} became an observation "
        f"({alignment.how} {alignment.stamps} stamps{tolerance})"
    )
    for line, count in found.refused.most_common(3):
        console.print(f"  [red]{count} x {escape(line)}[/red]")
    for line in damage:
        console.print(f"  [red]{escape(line)}[/red]")


def _state(state: Any, arguments: argparse.Namespace) -> list[str]:
    from rsd_policy import load_policy
    from rsd_policy.robots.state import FIELDS, unlike_training

    statistics = load_policy(arguments.policy, "cpu", norm_key=arguments.norm_key).state_statistics()
    print("state: " + ", ".join(f"{name} {value:.4f}" for name, value in zip(FIELDS, state, strict=True)))
    odd = [] if statistics is None else unlike_training(state, *statistics)
    for line in odd:
        print(f"  {line}")
    if statistics is not None and not odd:
        print(f"  as in the training of {arguments.policy}")
    return odd


def _picture(observation: Any, path: Path) -> None:
    """The cameras side by side, with their names."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(observation.images), 4.4), layout="constrained")
    axes = figure.subplots(1, len(observation.images), squeeze=False)[0]
    for axis, (name, image) in zip(axes, observation.images.items(), strict=True):
        axis.imshow(image)
        axis.set_title(f"{name}, {image.shape[1]} x {image.shape[0]}")
        axis.set_axis_off()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
