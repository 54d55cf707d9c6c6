"""`rsd report DIR...`: rebuild summary.json and report.html from the stored episodes."""

from __future__ import annotations

import argparse
from pathlib import Path

from rsd_policy.errors import ArgumentError
from rsd_policy.exit_status import DONE


def main(argv: list[str]) -> int:
    """Run `rsd report` with these arguments. Returns 0.

    Raises:
        ArgumentError, StoreError: there are no results.
    """
    parser = argparse.ArgumentParser(
        prog="rsd report",
        description="Rebuild summary.json and report.html of result directories; also while a run is going on.",
    )
    parser.add_argument("directories", type=Path, nargs="*", metavar="DIR", help="(the newest below out/)")
    arguments = parser.parse_args(argv)

    from rsd_policy.evaluation.store import DATABASE, ResultStore
    from rsd_policy.reports.report import REPORT, write_outputs
    from rsd_policy.reports.tables import print_summary

    directories = arguments.directories
    if not directories:
        found = sorted(Path("out").glob(f"*/{DATABASE}"), key=lambda path: path.stat().st_mtime)
        if not found:
            raise ArgumentError("no results below out/; run `rsd eval` or name a result directory")
        directories = [found[-1].parent]
    for directory in directories:
        with ResultStore.open_results(directory) as store:
            summary = write_outputs(store)
        print_summary(summary, directory)
        print(f"{'report':>22}  {directory / REPORT}")
    return DONE
