"""Paired comparison of two runs over the episodes that both have finished."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from html import escape
from typing import Any

import numpy as np

from rsd_policy.errors import ArgumentError
from rsd_policy.evaluation.results import ERROR, EpisodeResult
from rsd_policy.evaluation.statistics import (
    SIGNIFICANCE,
    mcnemar_exact,
    paired_difference_interval,
    paired_ratio,
    wilson_interval,
)
from rsd_policy.evaluation.store import ResultStore
from rsd_policy.reports import plots
from rsd_policy.reports.report import STYLE

Pair = tuple[EpisodeResult, EpisodeResult]

_SAME_HARDWARE = ("cpu", "cores", "device", "gpu", "workers")
"""Latencies are compared only between runs that agree in these."""


def compare(a: ResultStore, b: ResultStore) -> dict[str, Any]:
    """Success, latency and actions of run B against run A (the reference), episode by episode.

    `different` is decided by the exact McNemar test at SIGNIFICANCE and by nothing else; `difference_ci95` says how
    large the difference may be. `speedup_vs_baseline` is of one policy against its own `baseline`; the speed-ups of
    runs of different policies are mere ratios of their times.

    Raises:
        ArgumentError: the runs are of different suites or seeds, or have no finished episode in common.
    """
    for field in ("suite", "seed"):
        ours, theirs = getattr(a.config, field), getattr(b.config, field)
        if ours != theirs:
            raise ArgumentError(
                f"these runs cannot be compared: {field} {ours} in {a.directory}, {theirs} in {b.directory}"
            )
    mine = {e.spec: e for e in a.episodes() if e.outcome != ERROR}
    pairs = [(mine[e.spec], e) for e in b.episodes() if e.outcome != ERROR and e.spec in mine]
    if not pairs:
        raise ArgumentError(f"{a.directory} and {b.directory} have no finished episode in common")
    hardware_a, hardware_b = a.provenance()[1], b.provenance()[1]
    differing = [key for key in _SAME_HARDWARE if hardware_a[key] != hardware_b[key]]
    inference = first_action = None
    if not differing:
        inference = _speedup(pairs, "inference_ms")
        first_action = _speedup(pairs, "first_action_ms")
    same_policy = (a.config.policy_sha256, a.config.norm_key) == (b.config.policy_sha256, b.config.norm_key)
    is_baseline = same_policy and a.config.mode == "baseline" and b.config.mode != "baseline"
    return {
        "a": _side(a, [x for x, _ in pairs]),
        "b": _side(b, [y for _, y in pairs]),
        "suite": a.config.suite,
        **_success(pairs),
        "per_task": {
            str(task): _success([pair for pair in pairs if pair[0].spec.task == task])
            for task in sorted({x.spec.task for x, _ in pairs})
        },
        "identical_actions": sum(
            x.actions.shape == y.actions.shape and bool(np.array_equal(x.actions, y.actions)) for x, y in pairs
        ),
        "inference_speedup": inference,
        "first_action_speedup": first_action,
        "hardware_differs_in": differing,
        "speedup_vs_baseline": inference["value"] if inference and is_baseline else None,
    }


def render(result: dict[str, Any]) -> str:
    """A self-contained page about a comparison."""
    rows = [(f"task {task}", row) for task, row in result["per_task"].items()] + [("all", result)]
    points = [(name, row["difference"], *row["difference_ci95"]) for name, row in rows]
    title = f"{side_name(result['b'])} against {side_name(result['a'])} on {result['suite']}"
    table = "".join(
        f"<tr><td>{name}" + "".join(f"<td class=n>{escape(cell)}" for cell in cells(row)) + "</tr>"
        for name, row in rows
    )
    head = "<th>" + "".join(f"<th class=n>{name}" for name in COLUMNS)
    lines = "".join(f"<li>{escape(line)}" for line in findings(result))
    return (
        f"<!doctype html><html lang=en><head><meta charset=utf-8><title>{escape(title)}</title>"
        f"<style>{STYLE}</style></head><body><h1>{escape(title)}</h1><ul>{lines}</ul>"
        f"<figure>{plots.paired_success(points)}</figure><table><tr>{head}</tr>{table}</table>"
        f"<details><summary>JSON</summary><pre>{escape(json.dumps(result, indent=2))}</pre></details></body></html>\n"
    )


COLUMNS = ("A", "B", "only A", "only B", "B - A", "95 % interval", "p")


def cells(row: dict[str, Any]) -> list[str]:
    """One row of the table, in the order of `COLUMNS`; differences in percentage points."""
    low, high = row["difference_ci95"]
    return [
        f"{row['both'] + row['only_a']} / {row['common']}",
        f"{row['both'] + row['only_b']} / {row['common']}",
        str(row["only_a"]),
        str(row["only_b"]),
        f"{100 * row['difference']:+.1f}",
        f"{100 * low:+.1f} .. {100 * high:+.1f}",
        f"{row['mcnemar_p']:.3f}",
    ]


def findings(result: dict[str, Any], a: str = "A", b: str = "B") -> list[str]:
    """What the comparison says, in sentences, with names for the runs."""
    lines = [f"{result['common']} common episodes; {result['identical_actions']} of them with identical actions"]
    low, high = result["difference_ci95"]
    verdict = "different" if result["different"] else "no difference shown"
    lines.append(
        f"success of {b} minus {a}: {100 * result['difference']:+.1f} points "
        f"({100 * low:+.1f} .. {100 * high:+.1f}); exact McNemar test, which decides at p < {SIGNIFICANCE:g}: "
        f"p = {result['mcnemar_p']:.3f}, {verdict}"
    )
    for key, name in (("inference_speedup", "inference"), ("first_action_speedup", "first action")):
        ratio = result[key]
        if ratio:
            interval = f" ({ratio['low']:.2f} .. {ratio['high']:.2f})" if ratio["low"] is not None else ""
            lines.append(f"{name}: {b} is {ratio['value']:.2f} x as fast{interval}")
    if result["hardware_differs_in"]:
        lines.append(f"latencies are not compared: the runs differ in {', '.join(result['hardware_differs_in'])}")
    return lines


def _success(pairs: Sequence[Pair]) -> dict[str, Any]:
    both = sum(x.success and y.success for x, y in pairs)
    only_a = sum(x.success and not y.success for x, y in pairs)
    only_b = sum(y.success and not x.success for x, y in pairs)
    neither = len(pairs) - both - only_a - only_b
    p = mcnemar_exact(only_a, only_b)
    return {
        "common": len(pairs),
        "both": both,
        "only_a": only_a,
        "only_b": only_b,
        "neither": neither,
        "difference": (only_b - only_a) / len(pairs),
        "difference_ci95": list(paired_difference_interval(both, only_a, only_b, neither)),
        "mcnemar_p": p,
        "different": p < SIGNIFICANCE,
    }


def _side(store: ResultStore, episodes: Sequence[EpisodeResult]) -> dict[str, Any]:
    successes = sum(episode.success for episode in episodes)
    return {
        "directory": str(store.directory),
        "policy": store.config.policy,
        "policy_sha256": store.config.policy_sha256,
        "mode": store.config.mode,
        "alpha": store.config.alpha,
        "clock": store.config.clock,
        "successes": successes,
        "success_rate": successes / len(episodes),
        "success_ci95": list(wilson_interval(successes, len(episodes))),
    }


def _speedup(pairs: Sequence[Pair], field: str) -> dict[str, float | None] | None:
    """Mean time of A over mean time of B, per inference."""
    ratio = paired_ratio(
        [[getattr(chunk, field) for chunk in x.chunks] for x, _ in pairs],
        [[getattr(chunk, field) for chunk in y.chunks] for _, y in pairs],
    )
    return asdict(ratio) if ratio else None


def side_name(side: dict[str, Any]) -> str:
    """What titles call one of the two runs: policy, mode, alpha."""
    alpha = f" (alpha {side['alpha']:g})" if side["alpha"] is not None else ""
    return f"{side['policy']}" + (f" {side['mode']}{alpha}" if side["mode"] else "")
