"""`rsd compare A B...`: paired statistics of results against a reference."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from rsd_policy.exit_status import DONE


def main(argv: list[str]) -> int:
    """Run `rsd compare` with these arguments. Returns 0.

    Raises:
        StoreError, ArgumentError: results are missing, or cannot be compared.
    """
    parser = argparse.ArgumentParser(
        prog="rsd compare",
        description="Compare runs B with the reference A over the episodes that both have finished. Writes "
        "comparison.json and comparison.html into each B; when A is a baseline run, B's summary and report get their "
        "speed-up.",
    )
    parser.add_argument("a", type=Path, metavar="A", help="result directory of the reference, e.g. mode baseline")
    parser.add_argument("b", type=Path, nargs="+", metavar="B", help="result directories that are compared with it")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables, one object per line and B")
    arguments = parser.parse_args(argv)
    for directory in arguments.b:
        _compare(arguments.a, directory, as_json=arguments.json)
    return DONE


def _compare(reference: Path, directory: Path, *, as_json: bool) -> None:
    from rsd_policy.evaluation.store import ResultStore
    from rsd_policy.files import write_json, write_text
    from rsd_policy.reports import comparison
    from rsd_policy.reports.report import write_outputs
    from rsd_policy.reports.summary import COMPARISON

    with ResultStore.open_results(reference) as a, ResultStore.open_results(directory) as b:
        result = comparison.compare(a, b)
        write_json(directory / COMPARISON, result)
        write_text((directory / COMPARISON).with_suffix(".html"), comparison.render(result))
        write_outputs(b)
    if as_json:
        print(json.dumps(result))
        return
    _print(result)
    print(f"written to {directory / COMPARISON} and .html\n")


def _print(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from rsd_policy.reports import comparison

    a, b = comparison.side_name(result["a"]), comparison.side_name(result["b"])
    title = f"A: {a}, B: {b}, {result['suite']}"
    table = Table("", *comparison.COLUMNS, title=title)
    for task, row in result["per_task"].items():
        table.add_row(f"task {task}", *comparison.cells(row))
    table.add_section()
    table.add_row("all", *comparison.cells(result))
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 110)
    console.print(table)
    for line in comparison.findings(result):
        console.print(line, markup=False, soft_wrap=True)
