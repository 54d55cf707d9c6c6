"""`rsd compare A B`: paired statistics of two results."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from rsd_policy.errors import RSDError


def main(argv: list[str]) -> int:
    """Run `rsd compare` with these arguments. Returns 0, or 2 when the results cannot be compared."""
    parser = argparse.ArgumentParser(
        prog="rsd compare",
        description="Compare run B with the reference A over the episodes both have finished. Writes comparison.json "
        "and comparison.html into B; when A is a baseline run, B's summary and report get their speed-up.",
    )
    parser.add_argument("a", type=Path, metavar="A", help="result directory of the reference, e.g. mode baseline")
    parser.add_argument("b", type=Path, metavar="B", help="result directory of the run that is compared")
    parser.add_argument("--json", action="store_true", help="print the JSON instead of the table")
    arguments = parser.parse_args(argv)

    from rich.console import Console
    from rich.table import Table

    from rsd_policy.evaluation import comparison
    from rsd_policy.evaluation.report import write_outputs
    from rsd_policy.evaluation.store import ResultStore
    from rsd_policy.evaluation.summary import COMPARISON, write_atomically

    try:
        with ResultStore.open_results(arguments.a) as a, ResultStore.open_results(arguments.b) as b:
            result = comparison.compare(a, b)
            text = json.dumps(result, indent=2)
            write_atomically(b.directory / COMPARISON, text + "\n")
            write_atomically((b.directory / COMPARISON).with_suffix(".html"), comparison.render(result))
            write_outputs(b)
    except RSDError as error:
        print(f"rsd compare: {error}", file=sys.stderr)
        return 2
    if arguments.json:
        print(text)
        return 0
    table = Table("", *comparison.COLUMNS)
    for task, row in result["per_task"].items():
        table.add_row(f"task {task}", *comparison.cells(row))
    table.add_section()
    table.add_row("all", *comparison.cells(result))
    console = Console(highlight=False)
    console.print(table)
    for line in comparison.findings(result):
        console.print(line, markup=False, soft_wrap=True)
    console.print(f"written to {arguments.b / COMPARISON} and .html", markup=False, soft_wrap=True)
    return 0
