"""Tables of runs in Markdown, for pages that are generated from recorded results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rsd_policy.evaluation.protocol import format_indices
from rsd_policy.reports.runs import Run
from rsd_policy.reports.tables import percent
from rsd_policy.settings import SHARED

RESULT_COLUMNS = (
    "mode", "success", "rate", "95 % interval", "minus first row, points", "inference ms: mean", "p50", "p95",
    "first action ms: mean", "p50", "drafts accepted", "chunks skipped", "audits: deviating", "speed-up",
)  # fmt: skip


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table: first column to the left, the others to the right."""
    lines = [header, [":--", *["--:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def results_table(group: Sequence[Run]) -> str:
    """One line per run of a setting."""
    return table(RESULT_COLUMNS, [_result(run) for run in group])


def tasks_table(group: Sequence[Run]) -> str:
    """Successes of each task in each run, with Wilson 95 % intervals in percent."""
    tasks = sorted({task for run in group for task in run.summary["per_task"]}, key=int)
    rows = []
    for task in tasks:
        found = [run.summary["per_task"].get(task) for run in group]
        instruction = next((row["instruction"] for row in found if row and row["instruction"]), "")
        rows.append([f"{task}: {instruction}", *(successes(row) if row else "-" for row in found)])
    rows.append(["all", *(successes(run.summary) for run in group)])
    return table(["task", *(run.name for run in group)], rows)


def successes(row: dict[str, Any]) -> str:
    """Such as "17 / 20 (64.0 - 94.8)"."""
    return f"{row['successes']} / {row['episodes']} ({interval(row)})" if row["episodes"] else "not run"


def interval(row: dict[str, Any]) -> str:
    """The 95 % interval of a success rate, in percent."""
    low, high = row["success_ci95"]
    return f"{100 * low:.1f} - {100 * high:.1f}"


def setting(run: Run) -> str:
    """What runs of a setting have in common: machine, transport, clock, protocol."""
    hardware, config = run.summary["hardware"], run.config
    machine = f"{hardware['cpu']}, {hardware['cores']} cores" + (f", {hardware['gpu']}" if hardware["gpu"] else "")
    transport = "over ROS" if config.ros else "in process"
    workers = hardware["workers"]
    shared = f", {workers} workers at once (their latencies share the machine)" if workers > 1 else ""
    others = [f"{s.name} {getattr(config, s.name)}" for s in SHARED if getattr(config, s.name) != s.default]
    others += [f"norm key {config.norm_key}"] if config.norm_key else []
    return (
        f"{machine}; policy on {config.device or 'the CPU'}; {transport}, {config.clock}{shared}; "
        f"canonical initial states {format_indices(config.trials)}, seed {config.seed}"
        + "".join(f"; {other}" for other in others)
    )


def _result(run: Run) -> list[str]:
    summary = run.summary
    first, latency = summary["first_action_ms"], summary["latency_ms"]
    audit = summary["audit"]
    comparison = run.comparison
    difference, speedup = "-", "-"
    if comparison:
        low, high = comparison["difference_ci95"]
        difference = f"{100 * comparison['difference']:+.1f} ({100 * low:+.1f} .. {100 * high:+.1f})"
        ratio = comparison["inference_speedup"]
        if ratio and comparison["speedup_vs_baseline"] is not None:
            speedup = f"{ratio['value']:.2f} x"
            speedup += f" ({ratio['low']:.2f} .. {ratio['high']:.2f})" if ratio["low"] is not None else ""
    return [
        run.name + ("" if summary["complete"] else " (not complete)"),
        f"{summary['successes']} / {summary['episodes']}",
        percent(summary["success_rate"]),
        interval(summary) if summary["episodes"] else "-",
        difference,
        *(f"{latency[part]:.1f}" if latency else "-" for part in ("mean", "p50", "p95")),
        *(f"{first[part]:.1f}" if first else "-" for part in ("mean", "p50")),
        percent(summary["draft_acceptance_rate"]),
        percent(summary["skip_rate"]) if run.config.mode == "gated" else "-",
        f"{audit['checked']}: {audit['deviated']}" if audit["checked"] else "-",
        speedup,
    ]
