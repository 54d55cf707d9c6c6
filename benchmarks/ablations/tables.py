"""Rows, plots and the Markdown section of what `benchmarks.ablations` has recorded, of one file or several."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.ablations.pool import Outcome
from benchmarks.ablations.variants import order
from rsd_policy.errors import ArgumentError
from rsd_policy.evaluation.statistics import paired_difference_interval, wilson_interval
from rsd_policy.reports import markdown
from rsd_policy.reports.runs import shipped_name

ALL = "all suites"
COLOURS = ("#2f6fdb", "#d9822b", "#3f9d5a", "#8a5cc2", "#1d2433")


@dataclass(frozen=True)
class Ablations:
    """Outcomes of one policy, of one or several files.

    Attributes:
        policy: its shipped name, where it is a shipped checkpoint that lay elsewhere at the time.
        hardware, commands: of each file.
        not_available: gated variant -> why the gate cannot be had.
    """

    policy: str
    policy_sha256: str
    hardware: list[dict[str, Any]]
    commands: list[str]
    not_available: dict[str, str]
    outcomes: list[Outcome]

    @classmethod
    def load(cls, paths: Iterable[Path]) -> Ablations:
        """Read files of `benchmarks.ablations` as one.

        Raises:
            ArgumentError: a file is none of them, of another policy than the first, or has an episode of another one.
        """
        records: list[tuple[Path, dict[str, Any]]] = [(path, json.loads(path.read_text())) for path in paths]
        seen: dict[Any, Path] = {}
        outcomes = []
        for path, record in records:
            if record.get("benchmark") != "ablations":
                raise ArgumentError(f"{path}: expected a file of benchmarks.ablations")
            if record["policy_sha256"] != records[0][1]["policy_sha256"]:
                raise ArgumentError(f"{path}: expected the policy of {records[0][0]}, got another one")
            for entry in record["episodes"]:
                outcome = Outcome(**entry)
                if outcome.error is not None:
                    continue
                if outcome.spec in seen:
                    raise ArgumentError(f"{outcome.spec} is in {seen[outcome.spec]} and in {path}; give one of them")
                seen[outcome.spec] = path
                outcomes.append(outcome)
        first = records[0][1]
        policy = shipped_name(first["policy_sha256"]) or first["policy"]
        commands = [command for _, record in records for command in record["commands"]]
        return cls(
            policy,
            first["policy_sha256"],
            [record["hardware"] for _, record in records],
            [re.sub(r"--policy \S+", f"--policy {policy}", command) for command in commands],
            {text: why for _, record in records for text, why in record["not_available"].items()},
            outcomes,
        )

    def suites(self) -> list[str]:
        """Suites in the order of the tables, with all of them together when there are several."""
        found = sorted({outcome.suite for outcome in self.outcomes})
        return [*found, ALL] if len(found) > 1 else found

    def of(self, suite: str, text: str) -> list[Outcome]:
        """Outcomes of a variant in a suite or in all."""
        return [o for o in self.outcomes if o.variant == text and suite in (o.suite, ALL)]


def rows(ablations: Ablations) -> list[dict[str, Any]]:
    """One per suite and variant, with the paired difference from the baseline over the episodes of both.

    For all suites together only variants that were run in each of them.
    """
    texts = sorted({outcome.variant for outcome in ablations.outcomes}, key=order)
    found = [
        _row(suite, text, mine, ablations.of(suite, "baseline"))
        for suite in ablations.suites()
        for text in texts
        if (mine := ablations.of(suite, text))
    ]
    run_in = Counter(row["variant"] for row in found if row["suite"] != ALL)
    return [row for row in found if row["suite"] != ALL or run_in[row["variant"]] == max(run_in.values())]


def _row(suite: str, text: str, mine: Sequence[Outcome], baseline: Sequence[Outcome]) -> dict[str, Any]:
    good = sum(o.success for o in mine)
    chunks, compared = sum(o.chunks for o in mine), sum(o.compared for o in mine)
    skipped = sum(o.skipped for o in mine)
    row: dict[str, Any] = {
        "suite": suite,
        "variant": text,
        "successes": good,
        "episodes": len(mine),
        "success_rate": good / len(mine),
        "success_ci95": wilson_interval(good, len(mine)),
        "skip_rate": skipped / chunks,
        "deviation_rate": sum(o.deviated for o in mine) / skipped if skipped else None,
        "deviation_ci95": wilson_interval(sum(o.deviated for o in mine), skipped),
        "acceptance": sum(o.accepted for o in mine) / compared if compared else None,
        "inference_ms": sum(o.inference_ms for o in mine) / chunks,
        "first_action_ms": sum(o.first_action_ms for o in mine) / chunks,
        "difference": None,
    }
    reference = {(o.suite, o.task, o.trial): o.success for o in baseline}
    pairs = [(reference[key], o.success) for o in mine if (key := (o.suite, o.task, o.trial)) in reference]
    if text != "baseline" and pairs:
        both, only_a = sum(a and b for a, b in pairs), sum(a and not b for a, b in pairs)
        only_b = sum(b and not a for a, b in pairs)
        interval = paired_difference_interval(both, only_a, only_b, len(pairs) - both - only_a - only_b)
        row |= {"difference": (only_b - only_a) / len(pairs), "difference_ci95": interval}
    return row


COLUMNS = (
    "suite", "variant", "success", "95 % interval", "minus baseline, points", "chunks skipped", "of them deviating",
    "drafts accepted", "inference ms", "first action ms",
)  # fmt: skip


def cells(row: dict[str, Any]) -> list[str]:
    """A row as text, in the order of `COLUMNS`."""
    low, high = row["success_ci95"]
    gated = row["variant"].startswith(("gated", "draft-only"))
    difference = "-"
    if row["difference"] is not None:
        worst, best = row["difference_ci95"]
        difference = f"{100 * row['difference']:+.1f} ({100 * worst:+.1f} .. {100 * best:+.1f})"
    return [
        row["suite"],
        row["variant"],
        f"{row['successes']} / {row['episodes']}",
        f"{100 * low:.1f} - {100 * high:.1f}",
        difference,
        _percent(row["skip_rate"]) if gated else "-",
        _percent(row["deviation_rate"]),
        _percent(row["acceptance"]),
        f"{row['inference_ms']:.1f}",
        f"{row['first_action_ms']:.1f}",
    ]


def plot_all(ablations: Ablations, directory: Path, stem: str) -> list[Path]:
    """Write the plots for which there are variants: over alpha, and over the levels. Returns their paths."""
    found = rows(ablations)
    plots = []
    for name, draw, texts in (("alpha", _alpha_plot, ("gated:",)), ("levels", _levels_plot, ("levels:",))):
        if any(row["variant"].startswith(texts) for row in found):
            path = directory / f"{stem}-{name}.png"
            draw(ablations.suites(), found).savefig(path, dpi=110, metadata={"Software": None})
            plots.append(path)
    return plots


def _alpha_plot(suites: Sequence[str], found: Sequence[dict[str, Any]]) -> Figure:
    """Success, skipped chunks and measured deviations over alpha; the baseline's success as a line."""
    figure = Figure(figsize=(12.6, 3.9), layout="constrained")
    success, skipped, deviating = figure.subplots(1, 3)
    for colour, suite in zip(COLOURS, suites, strict=False):
        mine = [row for row in found if row["suite"] == suite and row["variant"].startswith("gated:")]
        alphas = [float(row["variant"].partition(":")[2]) for row in mine]
        _with_interval(success, alphas, mine, "success", colour, suite)
        for row in found:
            if row["suite"] == suite and row["variant"] == "baseline":
                success.axhline(100 * row["success_rate"], color=colour, lw=1, ls=":")
        skipped.plot(alphas, [100 * row["skip_rate"] for row in mine], "o-", color=colour, ms=4, label=suite)
        some = [(alpha, row) for alpha, row in zip(alphas, mine, strict=True) if row["deviation_rate"] is not None]
        _with_interval(deviating, [alpha for alpha, _ in some], [row for _, row in some], "deviation", colour, suite)
    top = max(float(row["variant"].partition(":")[2]) for row in found if row["variant"].startswith("gated:"))
    deviating.plot([0, top], [0, 100 * top], color="#98a2b3", lw=1, ls="--", label="alpha")
    for axes, title in (
        (success, "success, % (dotted: baseline)"),
        (skipped, "chunks skipped, %"),
        (deviating, "skipped chunks that deviate, %"),
    ):
        _finish(axes, "alpha", title)
        axes.set_xlim(0, top * 1.05)
    return figure


def _levels_plot(suites: Sequence[str], found: Sequence[dict[str, Any]]) -> Figure:
    """Success over the number of levels that are executed; the baseline has all eight."""
    figure = Figure(figsize=(7.2, 3.9), layout="constrained")
    axes = figure.subplots()
    for colour, suite in zip(COLOURS, suites, strict=False):
        mine = [row for row in found if row["suite"] == suite and row["variant"].startswith("levels:")]
        counts = [float(row["variant"].partition(":")[2]) for row in mine]
        mine += [row for row in found if row["suite"] == suite and row["variant"] == "baseline"]
        counts += [8.0] * (len(mine) - len(counts))
        _with_interval(axes, counts, mine, "success", colour, suite)
    axes.set_xticks(range(1, 9), ["L0", *(f"L0-L{level}" for level in range(1, 8))])
    _finish(axes, "levels of the main head that are executed", "success, % (bar: 95 % interval)")
    return figure


def _with_interval(
    axes: Axes, x: Sequence[float], found: Sequence[dict[str, Any]], what: str, colour: str, label: str
) -> None:
    """Points joined by a line, with their 95 % intervals."""
    rates = [100 * row[f"{what}_rate"] for row in found]
    axes.plot(x, rates, "o-", color=colour, ms=4, lw=1.4, label=label)
    for at, row in zip(x, found, strict=True):
        low, high = row[f"{what}_ci95"]
        axes.plot([at, at], [100 * low, 100 * high], color=colour, lw=1, alpha=0.5)


def _finish(axes: Axes, x: str, y: str) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e8ebf0")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.legend(frameon=False, fontsize=8)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


@dataclass(frozen=True)
class _Topic:
    """A part of the section: the variants (by the start of their name) that stand in one table with the baseline."""

    title: str
    text: str
    variants: tuple[str, ...]
    columns: tuple[str, ...]
    plot: str | None = None


_SUCCESS = COLUMNS[:5]

_TOPICS = (
    _Topic(
        "The gate at several alphas, without its gripper rule, and no gate at all",
        "Every skipped chunk was verified after the fact, without the audit's fall-back: `of them deviating` is the "
        "rate in closed loop of what alpha bounds over random placements. `gated-without-gripper-rule` has the "
        "checkpoint's own alpha. `draft-only` lets every draft through: L0-L2 of the draft, never verified.",
        ("gated", "draft-only"),
        (*COLUMNS[:7], *COLUMNS[8:]),
        "alpha",
    ),
    _Topic(
        "Levels executed",
        "`levels:n` executes the first n levels of the main head's chunks; the baseline has all of them.",
        ("levels",),
        _SUCCESS,
        "levels",
    ),
    _Topic(
        "Steps of a chunk executed",
        "`execute:n` looks again after n steps; the baseline executes all 8. The actions are the main head's, and a "
        "draft is compared over the steps that are executed.",
        ("execute",),
        (*_SUCCESS, "drafts accepted"),
    ),
    _Topic(
        "Coarse digits by arg max",
        "`arg-max-digits`: both heads take the likeliest digit of each level in place of the cell of the mean.",
        ("arg-max-digits",),
        (*_SUCCESS, "drafts accepted"),
    ),
    _Topic(
        "Does it listen?",
        "`paraphrased`: each trial in other words for the same task. `wrong-instruction`: the words of another task of "
        "the suite; a policy that listens then does not do this one.",
        ("paraphrased", "wrong-instruction"),
        _SUCCESS,
    ),
)


def section(ablations: Ablations, plots: Path) -> str:
    """The Markdown section; its plots are written into the folder `plots`, beside which the page lies."""
    found = rows(ablations)
    images = {path.stem.rpartition("-")[2]: path for path in plot_all(ablations, plots, "ablations")}
    machines = dict.fromkeys(
        f"{h['gpu'] or h['cpu']}, policy on {h['device']}, {h['workers']} workers at once (their latencies share the "
        "machine)"
        for h in ablations.hardware
    )
    parts = [
        f"## Ablations, policy {ablations.policy}",
        f"`benchmarks.ablations`, the same canonical initial states for every variant; {'; '.join(machines)}; sha256 "
        f"of the checkpoint's manifest {ablations.policy_sha256[:12]}. Differences from `baseline` are over the "
        "episodes that both have run (Newcombe's method 10; how large they may be, no test).",
        "\n".join(["```", *(f".venv/bin/{command}" for command in ablations.commands), "```"]),
    ]
    for topic in _TOPICS:
        mine = [row for row in found if row["variant"].startswith(("baseline", *topic.variants))]
        if all(row["variant"] == "baseline" for row in mine):
            continue
        index = [COLUMNS.index(column) for column in topic.columns]
        parts += [f"### {topic.title}", topic.text]
        parts.append(markdown.table(topic.columns, [[cells(row)[i] for i in index] for row in mine]))
        if topic.plot is not None and topic.plot in images:
            parts.append(f"![{topic.title}]({plots.name}/{images[topic.plot].name})")
    parts += [f"`{text}` was not run: {why}." for text, why in ablations.not_available.items()]
    return "\n\n".join(parts)
