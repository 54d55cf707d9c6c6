"""Write docs/results.md and its plots from result directories of `rsd eval`: nothing in them but recorded data.

Runs of one suite, policy, machine, clock and transport stand in one table; gated and speculative are compared with the
baseline run among them, episode by episode, or with the speculative one where there is none.

    ./rsd eval --task-suite libero_spatial --tasks 0-9 --num-trials 20 --mode baseline --no-ros --out out/baseline
    ./rsd eval --task-suite libero_spatial --tasks 0-9 --num-trials 20 --mode gated --no-ros --out out/gated
    .venv/bin/python -m benchmarks.results_page out/baseline out/gated --ablations a.json b.json --exit-layer exit.json
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.ablations import deviations, exit_layer
from benchmarks.ablations import tables as ablation_tables
from benchmarks.ablations.tables import Ablations
from rsd_policy.errors import ArgumentError, RSDError
from rsd_policy.exit_status import DONE, WRONG_ARGUMENTS
from rsd_policy.files import write_text
from rsd_policy.reports.comparison import findings
from rsd_policy.reports.markdown import results_table, setting, table, tasks_table
from rsd_policy.reports.runs import Run, load_runs

PAGE = Path("docs") / "results.md"
PLOTS = "results"
"""Folder of the plots, beside the page."""

COLOURS = ("#98a2b3", "#2f6fdb", "#d9822b", "#3f9d5a")

HEAD = """# Results

Written by `python -m benchmarks.results_page` from the result directories of `./rsd eval`; every figure is computed
from their `episodes.sqlite`, but for sections that say otherwise. Success rates carry Wilson 95 % intervals.
Differences are from the first run of a table, over the same episodes (same task, initial state and seed): `baseline`,
or `speculative`, whose final chunks are the same bit for bit. Whether rates differ is decided by the exact McNemar test
(p < 0.05) alone; the interval of a difference (Newcombe's method 10) says how large it may be. A speed-up is the mean
inference time of `baseline` over that of the run, with a bootstrap over episodes. `first action` is the time until the
first chunk that can be executed, `drafts accepted` is of those compared with the main head, and an audit verifies a
skipped chunk after the fact."""


def main(argv: list[str]) -> int:
    """Write the page and its plots; returns 0, or 2 when a directory holds no results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.results_page", description="Tables and plots of runs.")
    parser.add_argument("directories", type=Path, nargs="+", metavar="DIR", help="result directories of rsd eval")
    parser.add_argument("--out", type=Path, default=PAGE, metavar="FILE", help="Markdown page (%(default)s)")
    parser.add_argument(
        "--ablations",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="of benchmarks.ablations, one policy's",
    )
    parser.add_argument(
        "--include",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="Markdown that follows the overview as it is",
    )
    parser.add_argument("--exit-layer", type=Path, metavar="FILE", help="of benchmarks.ablations.exit_layer")
    arguments = parser.parse_args(argv)
    plots = arguments.out.parent / PLOTS
    try:
        groups = load_runs(arguments.directories)
        ablations = Ablations.load(arguments.ablations) if arguments.ablations else None
        included = [_included(path) for path in arguments.include]
        plots.mkdir(parents=True, exist_ok=True)
        draft_layer = exit_layer.section(arguments.exit_layer, plots) if arguments.exit_layer else None
    except RSDError as error:
        print(f"results: {error}", file=sys.stderr)
        return WRONG_ARGUMENTS
    sections = [HEAD, _overview(groups), *included]
    for name, group in zip(_names(groups), groups, strict=True):
        sections.append(_section(name, group, plots))
    drafts = deviations.section(groups, plots)
    sections += [drafts] if drafts else []
    sections += [ablation_tables.section(ablations, plots)] if ablations else []
    sections += [draft_layer] if draft_layer else []
    write_text(arguments.out, "\n\n".join(sections) + "\n")
    print(f"wrote {arguments.out} and {len(list(plots.glob('*.png')))} plots in {plots}")
    return DONE


def _names(groups: Sequence[Sequence[Run]]) -> list[str]:
    """A file name for each group: suite and device, numbered where that is not enough."""
    names: list[str] = []
    for group in groups:
        config = group[0].config
        parts = [config.suite, Path(config.policy).name, (config.device or "cpu").replace(":", "")]
        parts += ["ros"] if config.ros else []
        parts += [config.clock] if config.clock != "lockstep" else []
        name, number = "-".join(parts), 2
        while name in names:
            name, number = f"{'-'.join(parts)}-{number}", number + 1
        names.append(name)
    return names


def _included(path: Path) -> str:
    """A section that is written by hand: what was measured where no result directory is at hand.

    Raises:
        ArgumentError: the file cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ArgumentError(f"--include {path}: expected a Markdown file, got {error}") from error


def _overview(groups: Sequence[Sequence[Run]]) -> str:
    rows = []
    for group in groups:
        for run in group:
            summary, comparison = run.summary, run.comparison
            low, high = summary["success_ci95"]
            rate = f"{100 * summary['success_rate']:.1f} ({100 * low:.1f} - {100 * high:.1f})" if run.episodes else "-"
            latency = summary["latency_ms"]
            ratio = comparison["speedup_vs_baseline"] if comparison else None
            rows.append(
                [
                    run.config.suite,
                    Path(run.config.policy).name,
                    run.summary["hardware"]["gpu"] or run.summary["hardware"]["cpu"],
                    run.name,
                    str(summary["episodes"]),
                    rate,
                    f"{latency['p50']:.1f}" if latency else "-",
                    f"{ratio:.2f} x" if ratio else "-",
                ]
            )
    header = ["suite", "policy", "hardware", "mode", "episodes", "success, % (95 %)", "inference p50, ms", "speed-up"]
    return "## Overview\n\n" + table(header, rows)


def _section(name: str, group: Sequence[Run], plots: Path) -> str:
    first = group[0]
    dates = f"{min(run.started for run in group)} to {max(run.finished or run.started for run in group)}"
    digests = sorted({str(run.config.policy_sha256)[:12] for run in group if run.config.policy_sha256})
    commits = sorted({run.summary["versions"].get("commit") or "unknown" for run in group})
    parts = [
        f"## {first.config.suite}, policy {Path(first.config.policy).name}",
        f"{setting(first)}. {dates} (UTC); commit {', '.join(commits)}; "
        f"sha256 of the checkpoint's manifest {', '.join(digests) or '-'}.",
        "\n".join(["```", *(run.command for run in group), "```"]),
        results_table(group),
        _plot(_success_plot(group), plots / f"{name}-success.png", "success per task"),
    ]
    parts += [_against_reference(run) for run in group if run.comparison]
    if any(run.summary["latency_ms"] for run in group):
        parts.append(_plot(_latency_plot(group), plots / f"{name}-latency.png", "inference time"))
    errors = sum(len(run.summary["errors"]) for run in group)
    if errors:
        parts.append(f"{errors} episodes could not be run; they count neither as successes nor as failures.")
    return "\n\n".join([*parts, tasks_table(group)])


def _against_reference(run: Run) -> str:
    assert run.comparison is not None and run.reference is not None
    lines = findings(run.comparison, a=run.reference, b=run.name)
    return "\n".join([f"`{run.name}` against `{run.reference}`:", "", *(f"- {line}" for line in lines)])


def _plot(figure: Figure, path: Path, what: str) -> str:
    figure.savefig(path, dpi=110, metadata={"Software": None})
    return f"![{what}]({PLOTS}/{path.name})"


def _success_plot(group: Sequence[Run]) -> Figure:
    """Success rate of each task and of all in each run, with 95 % intervals."""
    tasks = sorted({task for run in group for task in run.summary["per_task"]}, key=int)
    figure, axes = _figure(1.0 + (0.14 + 0.11 * len(group)) * (len(tasks) + 1))
    for index, run in enumerate(group):
        rows = [run.summary["per_task"].get(task) for task in tasks] + [run.summary]
        for y, row in enumerate(rows):
            if row and row["episodes"]:
                at = y + 0.7 * ((index + 0.5) / len(group) - 0.5)
                low, high = row["success_ci95"]
                colour = COLOURS[index % len(COLOURS)]
                axes.plot([100 * low, 100 * high], [at, at], color=colour, lw=2, solid_capstyle="butt")
                label = run.name if y == len(rows) - 1 else None
                axes.plot(100 * row["success_rate"], at, "o", color=colour, ms=5, label=label)
    axes.set_yticks(range(len(tasks) + 1), [*(f"task {task}" for task in tasks), "all"])
    axes.set_ylim(len(tasks) + 0.5, -0.5)
    axes.set_xlim(-2, 102)
    axes.set_xlabel("success rate, % (bar: 95 % interval)")
    axes.grid(axis="x", color="#e8ebf0")
    axes.legend(frameon=False)
    return figure


def _latency_plot(group: Sequence[Run]) -> Figure:
    """Share of inferences done within a time, for the final chunk and for the first action."""
    figure, axes = _figure(3.2)
    top = 0.0
    for index, run in enumerate(group):
        chunks = [chunk for episode in run.episodes for chunk in episode.chunks]
        if not chunks:
            continue
        colour = COLOURS[index % len(COLOURS)]
        share = np.arange(1, len(chunks) + 1) / len(chunks) * 100
        final = np.sort([chunk.inference_ms for chunk in chunks])
        first = np.sort([chunk.first_action_ms for chunk in chunks])
        axes.plot(final, share, color=colour, lw=2, label=run.name)
        if not np.allclose(first, final):
            axes.plot(first, share, color=colour, lw=1.2, ls="--", label=f"{run.name}, first action")
        top = max(top, float(np.percentile(final, 99)) * 1.1)
    axes.set_xlim(0, top or 1)
    axes.set_ylim(0, 101)
    axes.set_xlabel("ms from the call (up to 1.1 x the slowest p99)")
    axes.set_ylabel("% of inferences")
    axes.grid(color="#e8ebf0")
    axes.legend(frameon=False)
    return figure


def _figure(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8.4, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
