"""Tables for the terminal."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def print_summary(summary: dict[str, Any], directory: Path, console: Console | None = None) -> None:
    """Success per task with intervals, then the figures of the run, on stdout."""
    console = console or Console(highlight=False, width=None if sys.stdout.isatty() else 110)
    mode = f", mode {summary['mode']}" if summary["mode"] else ""
    table = Table(title=f"{summary['suite']}, policy {summary['policy']}{mode}, {summary['transport']}")
    table.add_column("task", justify="right")
    table.add_column("instruction", overflow="fold")
    for column in ("success", "rate", "95 % interval"):
        table.add_column(column, justify="right", no_wrap=True)
    for task, row in summary["per_task"].items():
        table.add_row(task, row["instruction"] or "not run yet", *_success_cells(row))
    table.add_section()
    table.add_row("all", "", *_success_cells(summary))
    console.print(table)
    for name, text in figures(summary):
        console.print(f"{name:>22}  {text}", soft_wrap=True)
    for error in summary["errors"]:
        console.print(
            f"not run: task {error['task']} trial {error['trial']}: {error['error']}", markup=False, soft_wrap=True
        )
    console.print(f"{'written to':>22}  {directory}", soft_wrap=True)


def figures(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """The figures of a run that are there, as (name, text)."""
    rows = []
    for key, name in (("latency_ms", "inference"), ("first_action_ms", "first action")):
        latency = summary[key]
        if latency is not None:
            parts = ", ".join(f"{part} {latency[part]:.1f}" for part in ("mean", "p50", "p95", "p99"))
            rows.append((name, f"{parts} ms"))
    if summary["draft_acceptance_rate"] is not None:
        rows.append(("drafts accepted", f"{percent(summary['draft_acceptance_rate'])} of those compared"))
    if summary["mode"] == "gated" and summary["skip_rate"] is not None:
        alpha = f", alpha {summary['alpha']:g}" if summary["alpha"] is not None else ""
        rows.append(("backbone skipped", f"{percent(summary['skip_rate'])} of inferences{alpha}"))
    audit = summary["audit"]
    if audit["checked"]:
        rows.append(("audits", f"{audit['checked']} checked, {audit['deviated']} deviated"))
    if summary["speedup_vs_baseline"] is not None:
        rows.append(("speed-up to baseline", f"{summary['speedup_vs_baseline']:.2f} x"))
    if summary["errors"]:
        rows.append(("errors", f"{len(summary['errors'])} episodes could not be run; the same command runs them again"))
    return rows


def _success_cells(row: dict[str, Any]) -> list[str]:
    low, high = row["success_ci95"]
    interval = f"{100 * low:.1f} - {100 * high:.1f}" if row["episodes"] else "-"
    return [f"{row['successes']} / {row['episodes']}", percent(row["success_rate"]), interval]
