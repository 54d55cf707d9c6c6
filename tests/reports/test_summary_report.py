"""Figures and pages made from recorded episodes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from rsd_policy import cli
from rsd_policy.evaluation.protocol import EvalConfig
from rsd_policy.evaluation.results import ERROR, EpisodeResult
from rsd_policy.evaluation.store import ResultStore
from rsd_policy.reports.comparison import compare, findings
from rsd_policy.reports.report import write_outputs
from rsd_policy.reports.tables import print_summary

Make = Callable[..., EpisodeResult]
Open = Callable[..., ResultStore]

DESIGN_FIELDS = {
    "suite", "policy", "mode", "clock", "episodes", "successes", "success_rate", "success_ci95", "per_task",
    "latency_ms", "first_action_ms", "draft_acceptance_rate", "skip_rate", "audit", "speedup_vs_baseline", "errors",
    "versions", "hardware",
}  # fmt: skip


@pytest.fixture
def run(config: EvalConfig, make_result: Make, open_run: Open) -> Path:
    first, second, third, fourth = config.episodes()
    with open_run(config) as store:
        store.record(make_result(first))
        store.record(make_result(second, success=False))
        store.record(make_result(third))
        store.record(EpisodeResult(fourth, ERROR, steps=0, error="SimulationError: <no> assets"))
        write_outputs(store)
        return store.directory


def test_summary_has_every_field_and_counts_errors_apart(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    assert summary.keys() >= DESIGN_FIELDS
    assert (summary["episodes"], summary["successes"], summary["complete"]) == (3, 2, False)
    assert summary["success_rate"] == pytest.approx(2 / 3)
    assert summary["per_task"]["0"]["successes"] == 1
    assert summary["per_task"]["1"]["episodes"] == 1
    assert summary["errors"] == [{"task": 1, "trial": 1, "error": "SimulationError: <no> assets"}]
    assert summary["latency_ms"]["mean"] == pytest.approx(80.0)  # three episodes with chunks of 40 and 120 ms
    assert summary["latency_ms"]["p50"] == pytest.approx(80.0)
    assert summary["first_action_ms"]["mean"] == pytest.approx(20.0)
    assert summary["draft_acceptance_rate"] == 0.5
    assert summary["skip_rate"] == 0.0
    assert summary["token_agreement"] == pytest.approx([1.0, 0.75, 0.5])
    assert summary["stage_ms"] == pytest.approx({"vision": 10.0, "head": 10.0})
    assert summary["speedup_vs_baseline"] is None


def test_report_is_self_contained_and_escapes_text(run: Path) -> None:
    page = (run / "report.html").read_text()
    assert page.count("<svg") == 5  # success, latency, stages, draft over the episode, token agreement
    assert "SimulationError: &lt;no&gt; assets" in page
    links: list[str] = []

    class Links(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            links.extend(value or "" for name, value in attrs if name in ("src", "href"))

    Links().feed(page)
    assert [link for link in links if link.startswith(("http:", "https:", "/", "file:"))] == []


def test_report_links_the_videos_that_exist(run: Path) -> None:
    (run / "videos").mkdir()
    (run / "videos" / "task01-trial00.mp4").write_bytes(b"")
    assert cli.main(["report", str(run)]) == 0
    assert set(re.findall(r"videos/[^'\"]+", (run / "report.html").read_text())) == {"videos/task01-trial00.mp4"}


def test_a_run_without_any_finished_episode_still_reports(config: EvalConfig, open_run: Open) -> None:
    with open_run(config) as store:
        summary = write_outputs(store)
    assert (summary["episodes"], summary["success_rate"], summary["latency_ms"]) == (0, None, None)
    assert (store.directory / "report.html").stat().st_size > 1000


def test_table_shows_intervals_and_errors(run: Path) -> None:
    console = Console(record=True, width=120, file=(run / "table.txt").open("w"))
    print_summary(json.loads((run / "summary.json").read_text()), run, console)
    text = console.export_text()
    assert "66.7 %" in text
    assert "20.8 - 93.9" in text  # Wilson, 2 of 3
    assert "not run: task 1 trial 1: SimulationError: <no> assets" in text


def test_report_of_no_results_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", str(tmp_path / "nothing")]) == 2
    assert "holds no results" in capsys.readouterr().err


def _pair(open_run: Open, make_result: Make, **b_fields: object) -> tuple[Path, Path]:
    base = {"suite": "libero_object", "tasks": (0, 1), "trials": tuple(range(4)), "ros": False}
    a, b = EvalConfig(**base, mode="baseline"), EvalConfig(**{**base, "mode": "speculative", **b_fields})
    with open_run(a, "a") as store:
        for spec in a.episodes():
            store.record(make_result(spec, success=spec.trial != 3, ms=80))
    with open_run(b, "b") as store:
        for spec in b.episodes()[:-1]:
            store.record(make_result(spec, success=spec.trial not in (0, 1), ms=40))
    return store.directory.parent / "a", store.directory


def test_compare_pairs_common_episodes_and_gives_the_speed_up(
    open_run: Open, make_result: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = _pair(open_run, make_result)
    assert cli.main(["compare", str(a), str(b), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["common"], result["both"], result["only_a"], result["only_b"]) == (7, 2, 4, 1)
    assert result["difference"] == pytest.approx(-3 / 7)
    assert result["mcnemar_p"] == pytest.approx(2 * 6 / 32)  # 4 against 1: 2 * (1 + 5) / 2^5
    assert result["identical_actions"] == 7
    assert result["inference_speedup"]["value"] == pytest.approx(2.0)
    assert json.loads((b / "summary.json").read_text())["speedup_vs_baseline"] == pytest.approx(2.0)
    assert "<svg" in (b / "comparison.html").read_text()
    assert cli.main(["compare", str(a), str(b)]) == 0
    assert "7 common episodes" in capsys.readouterr().out


def test_the_exact_test_alone_decides_whether_runs_differ(open_run: Open, make_result: Make) -> None:
    """Of 20 pairs, 5 against 0 (as of 200): Newcombe's interval leaves 0 out, and "different" stood beside p = 0.06."""
    base = {"suite": "libero_object", "tasks": (0, 1), "trials": tuple(range(10)), "ros": False}
    a, b = EvalConfig(**base, mode="baseline"), EvalConfig(**base, mode="speculative")
    with open_run(a, "a") as ours, open_run(b, "b") as theirs:
        for spec in a.episodes():
            ours.record(make_result(spec, success=spec.task or spec.trial >= 5))
            theirs.record(make_result(spec))
        result = compare(ours, theirs)
    assert (result["only_a"], result["only_b"], result["common"]) == (0, 5, 20)
    assert result["difference_ci95"][0] > 0 and result["mcnemar_p"] == pytest.approx(2 / 2**5)
    assert result["different"] is False
    assert any("no difference shown" in line for line in findings(result))


def test_another_policys_baseline_gives_no_speed_up(open_run: Open, make_result: Make) -> None:
    """Of two policies of different sizes the ratio of times was recorded as what the mode had gained."""
    a, b = _pair(open_run, make_result, policy_sha256="other")
    with ResultStore.open_results(a) as ours, ResultStore.open_results(b) as theirs:
        result = compare(ours, theirs)
    assert result["speedup_vs_baseline"] is None
    assert result["inference_speedup"]["value"] == pytest.approx(2.0)


def test_incomparable_runs_are_refused(open_run: Open, make_result: Make, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = _pair(open_run, make_result, suite="libero_goal")
    assert cli.main(["compare", str(a), str(b)]) == 2
    assert "suite libero_object" in capsys.readouterr().err
    assert not (b / "comparison.json").exists()
