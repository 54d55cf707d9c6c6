"""report.html: one self-contained page about a run (plots are inline SVG; only videos are separate files)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from rsd_policy.evaluation.in_process.video import video_path
from rsd_policy.evaluation.results import ERROR, EpisodeResult
from rsd_policy.evaluation.store import ResultStore
from rsd_policy.files import write_text
from rsd_policy.reports import plots
from rsd_policy.reports.summary import write_summary
from rsd_policy.reports.tables import figures, percent

REPORT = "report.html"

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:64rem;padding:0 1rem;color:#1c2430;background:#fff}
h1{font-size:1.5rem;margin-bottom:.2rem}h2{font-size:1.15rem;margin-top:2.2rem;border-bottom:1px solid #d9dee6}
table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.3rem .7rem;border-bottom:1px solid #e8ebf0}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}tr.all td{font-weight:600}
.big{font-size:2.2rem;font-weight:650}.muted{color:#667085}.error{color:#b42318}
.cards{display:flex;flex-wrap:wrap;gap:1rem;margin:1rem 0}
.card{border:1px solid #d9dee6;border-radius:.5rem;padding:.6rem 1rem}
figure{margin:1rem 0}svg{width:100%;height:auto}
.videos{display:grid;grid-template-columns:repeat(auto-fill,minmax(19rem,1fr));gap:1rem}video{width:100%}
details{margin:.6rem 0}pre{background:#f5f7fa;padding:.7rem;overflow:auto;font-size:13px}
"""


def write_outputs(store: ResultStore) -> dict[str, Any]:
    """Write summary.json and report.html of the stored results. Returns the summary."""
    summary = write_summary(store)
    page = render(summary, store.episodes(), store.directory)
    write_text(store.directory / REPORT, page)
    return summary


def render(summary: dict[str, Any], episodes: Sequence[EpisodeResult], directory: Path) -> str:
    """The page as text."""
    mode = f", mode {summary['mode']}" if summary["mode"] else ""
    title = f"{summary['policy']} on {summary['suite']}{mode}"
    sections = [
        f"<h1>{escape(title)}</h1>",
        f"<p class=muted>{_setting(summary)}</p>",
        _headline(summary),
        "<h2>Success per task</h2>",
        _figure(plots.success_per_task(summary)),
        _task_table(summary),
    ]
    finished = [episode for episode in episodes if episode.outcome != ERROR]
    chunks = [chunk for episode in finished for chunk in episode.chunks]
    if chunks:
        sections += ["<h2>Latency</h2>", _figure(plots.latency_histogram(chunks))]
        if summary["stage_ms"]:
            sections.append(_figure(plots.stage_bars(summary["stage_ms"])))
        sections.append(_latency_table(summary))
    if summary["draft_acceptance_rate"] is not None or summary["skip_rate"]:
        sections += ["<h2>Draft</h2>", _figure(plots.draft_over_episode(chunks))]
        if summary["token_agreement"]:
            sections.append(_figure(plots.token_agreement(summary["token_agreement"])))
    if summary["errors"]:
        sections += ["<h2>Episodes that could not be run</h2>", _errors(summary)]
    sections += [_videos(finished, directory), "<h2>Episodes</h2>", _episodes(finished, directory)]
    sections += ["<h2>Versions and hardware</h2>", _block(summary["versions"]), _block(summary["hardware"])]
    head = f"<meta charset=utf-8><meta name=viewport content='width=device-width'><title>{escape(title)}</title>"
    body = "".join(sections)
    return f"<!doctype html><html lang=en><head>{head}<style>{STYLE}</style></head><body>{body}</body></html>\n"


def _setting(summary: dict[str, Any]) -> str:
    hardware = summary["hardware"]
    parts = [
        f"{summary['transport']}, {summary['clock']}",
        f"{len(summary['tasks'])} tasks x {len(summary['trials'])} trials, seed {summary['seed']}",
        f"{hardware['cpu']}, {hardware['cores']} cores" + (f", {hardware['gpu']}" if hardware["gpu"] else ""),
    ]
    if hardware["workers"] > 1:
        parts.append(f"{hardware['workers']} workers at once (latencies share the machine)")
    if not summary["complete"]:
        parts.append("<b>not complete: the same command runs the rest</b>")
    return " · ".join(part if part.startswith("<b>") else escape(part) for part in parts)


def _headline(summary: dict[str, Any]) -> str:
    low, high = summary["success_ci95"]
    cards = [
        f"<div class=card><div class=big>{percent(summary['success_rate'])}</div>"
        f"{summary['successes']} of {summary['episodes']} episodes<br>"
        f"<span class=muted>95 % interval {100 * low:.1f} - {100 * high:.1f}</span></div>"
    ]
    cards += [f"<div class=card><b>{escape(name)}</b><br>{escape(text)}</div>" for name, text in figures(summary)]
    return f"<div class=cards>{''.join(cards)}</div>"


def _task_table(summary: dict[str, Any]) -> str:
    rows = [_success_row(task, row["instruction"] or "not run yet", row) for task, row in summary["per_task"].items()]
    rows.append(_success_row("all", "", summary, kind=" class=all"))
    head = "<th class=n>task<th>instruction<th class=n>success<th class=n>rate<th class=n>95 % interval"
    return f"<table><tr>{head}</tr>{''.join(rows)}</table>"


def _success_row(task: str, instruction: str, row: dict[str, Any], kind: str = "") -> str:
    low, high = row["success_ci95"]
    interval = f"{100 * low:.1f} - {100 * high:.1f}" if row["episodes"] else "-"
    return (
        f"<tr{kind}><td class=n>{task}<td>{escape(instruction)}<td class=n>{row['successes']} / {row['episodes']}"
        f"<td class=n>{percent(row['success_rate'])}<td class=n>{interval}</tr>"
    )


def _latency_table(summary: dict[str, Any]) -> str:
    rows = []
    for key, name in (("latency_ms", "inference (final chunk)"), ("first_action_ms", "first action")):
        if summary[key]:
            cells = "".join(f"<td class=n>{summary[key][part]:.2f}" for part in ("mean", "p50", "p95", "p99"))
            rows.append(f"<tr><td>{name}{cells}</tr>")
    head = "<th>ms<th class=n>mean<th class=n>p50<th class=n>p95<th class=n>p99"
    return f"<table><tr>{head}</tr>{''.join(rows)}</table>"


def _errors(summary: dict[str, Any]) -> str:
    items = [f"<li>task {e['task']} trial {e['trial']}: {escape(e['error'])}" for e in summary["errors"]]
    return f"<ul class=error>{''.join(items)}</ul>"


def _videos(episodes: Sequence[EpisodeResult], directory: Path) -> str:
    items = []
    for episode in episodes:
        path = video_path(directory, episode.spec)
        if path.exists():
            caption = f"task {episode.spec.task} trial {episode.spec.trial}: {episode.outcome}"
            link = escape(str(path.relative_to(directory)))
            items.append(
                f"<figure><video controls preload=metadata src='{link}'></video>"
                f"<figcaption><a href='{link}'>{caption}</a></figcaption></figure>"
            )
    return f"<h2>Videos</h2><div class=videos>{''.join(items)}</div>" if items else ""


def _episodes(episodes: Sequence[EpisodeResult], directory: Path) -> str:
    rows = []
    for e in episodes:
        path = video_path(directory, e.spec)
        video = f"<a href='{escape(str(path.relative_to(directory)))}'>video</a>" if path.exists() else ""
        mean = f"{sum(c.inference_ms for c in e.chunks) / len(e.chunks):.1f}" if e.chunks else "-"
        rows.append(
            f"<tr><td class=n>{e.spec.task}<td class=n>{e.spec.trial}<td>{e.outcome}<td class=n>{e.steps}"
            f"<td class=n>{len(e.chunks)}<td class=n>{mean}<td class=n>{e.wall_s:.1f}<td>{video}</tr>"
        )
    head = (
        "<th class=n>task<th class=n>trial<th>outcome<th class=n>steps<th class=n>inferences"
        "<th class=n>mean ms<th class=n>wall s<th>"
    )
    table = f"<table><tr>{head}</tr>{''.join(rows)}</table>"
    return f"<details><summary>{len(episodes)} episodes</summary>{table}</details>"


def _figure(svg: str) -> str:
    return f"<figure>{svg}</figure>"


def _block(value: dict[str, Any]) -> str:
    return f"<pre>{escape(json.dumps(value, indent=2))}</pre>"
