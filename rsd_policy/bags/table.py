"""The table that `rsd replay` prints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rsd_policy.bags.compare import FIELDS


def print_replay(summary: dict[str, Any], out: Path) -> None:
    """Differences per field, then the verdict and whatever was odd in the bag."""
    console = Console(highlight=False)
    against = summary["against"]
    if against:
        table = Table(title=escape(f"{summary['policy']}, {summary['mode']}, against {against}"))
        for title in ("field", "largest difference", "tolerance", "unit"):
            table.add_column(title, justify="left" if title in ("field", "unit") else "right")
        for name in FIELDS:
            largest = "" if summary["largest"] is None else f"{summary['largest'][name]:.6g}"
            table.add_row(name, largest, f"{summary['tolerance'][name]:g}", summary["units"][name])
        console.print(table)
    lines = [f"{summary['observations']} observations of {summary['bag']}"]
    if summary["acceptance_rate"] is not None:
        lines.append(f"drafts accepted {summary['acceptance_rate']:.1%}, skipped {summary['skip_rate']:.1%}")
    spread = summary["inference_ms"]
    if spread:
        lines.append(f"inference {spread['mean']:.1f} ms mean, {spread['p95']:.1f} ms p95")
    console.print(escape("; ".join(lines)))
    for line in odd(summary):
        console.print(f"  [yellow]{escape(line)}[/yellow]")
    console.print(verdict(summary), markup=False)
    console.print(f"report: {out / 'replay.html'}", markup=False)


def verdict(summary: dict[str, Any]) -> str:
    """One sentence."""
    if not summary["compared"]:
        return "nothing was compared: the bag holds neither chunks nor commands; --against names something"
    if summary["bit_equal"]:
        return f"equal to {summary['against']}, bit for bit, in all {summary['compared']} answers"
    if summary["within_tolerance"]:
        return f"within the tolerance of {summary['against']} in all {summary['compared']} answers"
    outside = sum(1 for answer in summary["answers"] if answer["outside"])
    return f"OUTSIDE the tolerance in {outside} of {summary['compared']} answers; first: {summary['first_difference']}"


def odd(summary: dict[str, Any]) -> list[str]:
    """What was not as it should be, one line each."""
    lines = list(summary["damage"])
    lines += [f"{topic}: {count} messages could not be decoded" for topic, count in summary["undecodable"].items()]
    lines += [f"{count} observations refused: {error}" for error, count in summary["refused"].items()]
    missing = summary["without_observation"]
    if missing:
        lines.append(f"{len(missing)} recorded chunks have no observation in the bag, the first at {missing[0]} ns")
    lines += [f"{name}: {count} times unlike the training's" for name, count in summary["unlike_training"].items()]
    then, now = summary["recorded_policy_sha256"], summary["policy_sha256"]
    if then and now and then != now:
        lines.append(f"another policy was recorded: {then[:12]}, this is {now[:12]}")
    return lines
