"""docs/results.md: what the databases hold, each setting for itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import results_page as results
from rsd_policy import cli
from rsd_policy.evaluation.protocol import EvalConfig
from rsd_policy.evaluation.results import EpisodeResult
from rsd_policy.evaluation.store import ResultStore

Make = Callable[..., EpisodeResult]
Open = Callable[..., ResultStore]


@pytest.fixture
def runs(make_result: Make, open_run: Open) -> list[Path]:
    """Gated (5 of 8, twice as fast, half skipped), baseline (6 of 8) of one suite, the expert on another."""
    base = {"tasks": (0, 1), "trials": tuple(range(4)), "ros": False}
    directories = []
    for name, mode, failing, ms in (("fast", "gated", (0, 1), 40), ("slow", "baseline", (3,), 80)):
        config = EvalConfig(suite="libero_object", mode=mode, **base)
        with open_run(config, name) as store:
            for spec in config.episodes():
                success = spec.trial not in failing or (mode == "gated" and spec.task == 0 and spec.trial == 0)
                result = make_result(spec, success=success, ms=ms)
                first, second = result.chunks
                if mode == "gated":
                    second = replace(second, accepted=None, skipped=True, audited=spec.trial == 0)
                    second = replace(second, audit_deviated=spec.task == 1 if second.audited else None)
                store.record(replace(result, chunks=(first, second)))
            directories.append(store.directory)
    config = EvalConfig(suite="libero_goal", policy="expert", **base)
    with open_run(config, "expert") as store:
        for spec in config.episodes():
            store.record(replace(make_result(spec), chunks=()))
        directories.append(store.directory)
    return directories


def test_the_page_holds_every_figure(runs: list[Path], tmp_path: Path) -> None:
    page = tmp_path / "docs" / "results.md"
    by_hand = tmp_path / "held-out.md"
    by_hand.write_text("## Held out\n\n296 / 300\n")
    assert results.main([*map(str, runs), "--out", str(page), "--include", str(by_hand)]) == 0
    assert results.main([*map(str, runs), "--out", str(tmp_path / "other.md"), "--include", "not there"]) == 2
    text = page.read_text()
    lines = text.splitlines()
    assert "296 / 300" in lines
    assert [line for line in lines if line.startswith("## ")] == [
        "## Overview",
        "## Held out",
        "## libero_goal, policy expert",
        "## libero_object, policy mini",
    ]
    gated = next(line for line in lines if line.startswith("| gated"))
    for figure in ("5 / 8", "62.5 %", "-12.5 (", "80.0 | 80.0 | 120.0", "20.0 | 20.0", "100.0 %", "50.0 %", "2: 1"):
        assert figure in gated, figure
    assert gated.endswith("| 2.00 x (2.00 .. 2.00) |")
    baseline = next(line for line in lines if line.startswith("| baseline"))
    assert "6 / 8" in baseline and "160.0 | 160.0 | 240.0" in baseline
    assert "| 0: do task 0 | 3 / 4 (30.1 - 95.4) | 3 / 4 (30.1 - 95.4) |" in lines
    assert "| 1: do task 1 | 3 / 4 (30.1 - 95.4) | 2 / 4 (15.0 - 85.0) |" in lines
    assert "- success of gated minus baseline: -12.5 points" in text
    assert (
        "./rsd eval --task-suite libero_object --tasks 0-1 --num-trials 4 --policy mini --mode gated --no-ros" in lines
    )
    assert "test, 2 cores; policy on cpu; in process, lockstep" in text
    linked = [line.split("(")[1].rstrip(")") for line in lines if line.startswith("![")]
    assert linked == [
        "results/libero_goal-expert-cpu-success.png",
        "results/libero_object-mini-cpu-success.png",
        "results/libero_object-mini-cpu-latency.png",
    ]
    for link in linked:
        assert (page.parent / link).read_bytes().startswith(b"\x89PNG")


def test_the_page_tells_how_far_drafts_are_off(make_result: Make, open_run: Open, tmp_path: Path) -> None:
    """Of 6 episodes' 3 drafts: one within 5 mm, one off in z by 8 mm, one that turns too far and opens the gripper."""
    config = EvalConfig(suite="libero_object", tasks=(0,), trials=tuple(range(6)), mode="speculative", ros=False)
    with open_run(config) as store:
        for spec in config.episodes():
            result = make_result(spec)
            chunk = replace(result.chunks[0], max_deviation=(0.1,) * 6 + (0.0,))
            off = replace(chunk, accepted=False, max_deviation=(0.0, 0.0, 0.16, 0.0, 0.0, 0.0, 0.0))
            opens = replace(chunk, accepted=False, max_deviation=(0.0, 0.0, 0.0, 0.3, 0.0, 0.0, 2.0))
            store.record(replace(result, chunks=(chunk, off, opens)))
    page = tmp_path / "results.md"
    assert results.main([str(store.directory), "--out", str(page)]) == 0
    lines = page.read_text().splitlines()
    assert "## How far drafts are off" in lines
    a_third, two_thirds = "33 % (33 - 33)", "67 % (67 - 67)"
    columns = ["18", "0 % (0 - 0)", a_third, a_third, two_thirds, two_thirds, two_thirds]
    assert "| libero_object, mini, CPU | " + " | ".join(columns) + " |" in lines
    assert "| libero_object, mini, CPU | 12 | 50 % | 0 % | 0 % | 50 % | 0 % |" in lines
    assert (tmp_path / "results" / "draft-deviations.png").read_bytes().startswith(b"\x89PNG")


def test_without_a_baseline_runs_are_compared_with_speculative_and_times_are_not(
    runs: list[Path], make_result: Make, open_run: Open, tmp_path: Path
) -> None:
    config = EvalConfig(suite="libero_object", mode="speculative", tasks=(0, 1), trials=tuple(range(4)), ros=False)
    with open_run(config) as store:
        for spec in config.episodes():
            store.record(make_result(spec, success=spec.trial != 3, ms=80))
    page = tmp_path / "results.md"
    assert results.main([str(runs[0]), str(store.directory), "--out", str(page)]) == 0
    text = page.read_text()
    assert "- success of gated minus speculative: -12.5 points" in text
    gated = next(line for line in text.splitlines() if line.startswith("| gated"))
    assert "-12.5 (" in gated and gated.endswith("| - |")


def test_runs_of_other_settings_are_not_compared(
    runs: list[Path], make_result: Make, open_run: Open, tmp_path: Path
) -> None:
    config = EvalConfig(suite="libero_object", tasks=(0,), trials=(0,), mode="speculative", clock="realtime")
    with open_run(config, "live") as store:
        store.record(make_result(config.episodes()[0]))
    page = tmp_path / "results.md"
    assert results.main([str(runs[1]), str(store.directory), "--out", str(page)]) == 0
    assert page.read_text().count("## libero_object, policy mini") == 2
    assert next(line for line in page.read_text().splitlines() if line.startswith("| speculative")).endswith("| - |")


def test_runs_of_other_initial_states_stand_in_tables_of_their_own(
    runs: list[Path], make_result: Make, open_run: Open, tmp_path: Path
) -> None:
    """States that were looked at flatter: figures of them and of held-out ones must not be set off with each other."""
    config = EvalConfig(suite="libero_object", tasks=(0, 1), trials=(20, 21), mode="gated", ros=False)
    with open_run(config, "held-out") as store:
        for spec in config.episodes():
            store.record(make_result(spec))
    page = tmp_path / "results.md"
    assert results.main([str(runs[1]), str(store.directory), "--out", str(page)]) == 0
    settings = [line for line in page.read_text().splitlines() if "canonical initial states" in line]
    assert [("states 0-3" in line, "states 20-21" in line) for line in settings] == [(True, False), (False, True)]


def test_runs_that_execute_other_steps_are_not_compared(
    runs: list[Path], make_result: Make, open_run: Open, tmp_path: Path
) -> None:
    config = EvalConfig(suite="libero_object", tasks=(0,), trials=(0,), mode="gated", ros=False, execute_steps=4)
    with open_run(config, "four") as store:
        store.record(make_result(config.episodes()[0]))
    page = tmp_path / "results.md"
    assert results.main([str(runs[1]), str(store.directory), "--out", str(page)]) == 0
    assert page.read_text().count("## libero_object, policy mini") == 2
    assert "seed 0; execute_steps 4." in page.read_text()


def test_a_directory_without_results_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert results.main([str(tmp_path), "--out", str(tmp_path / "results.md")]) == 2
    assert "holds no results" in capsys.readouterr().err
    assert not (tmp_path / "results.md").exists()


def test_compare_and_report_take_several_runs(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    gated, baseline, _ = runs
    assert cli.main(["compare", str(baseline), str(gated), str(baseline)]) == 0
    assert (gated / "comparison.json").exists() and (baseline / "comparison.json").exists()
    assert "A: mini baseline, B: mini gated, libero_object" in capsys.readouterr().out
    assert cli.main(["report", str(gated), str(baseline)]) == 0
    output = capsys.readouterr().out
    assert "mode gated" in output and "mode baseline" in output and "speed-up to baseline  2.00 x" in output


def test_gates_of_several_alphas_are_rows_of_their_own(make_result: Make, open_run: Open, tmp_path: Path) -> None:
    """Four suites, in some of them other tasks than the baseline's: pairs are the common episodes."""
    directories = []
    for suite in ("libero_spatial", "libero_object", "libero_goal", "libero_10"):
        for name, tasks, fields in (
            ("gated-0.2", (0, 2), {"mode": "gated", "alpha": 0.2}),
            ("gated-0.05", (2, 5), {"mode": "gated", "alpha": 0.05}),
            ("baseline", (0, 1, 2, 5), {"mode": "baseline"}),
        ):
            config = EvalConfig(suite=suite, tasks=tasks, trials=(0, 1), ros=False, **fields)
            with open_run(config, f"{suite}-{name}") as store:
                for spec in config.episodes():
                    store.record(make_result(spec, success=spec.task != 2 or fields["mode"] == "baseline"))
                directories.append(str(store.directory))
    page = tmp_path / "results.md"
    assert results.main([*directories, "--out", str(page)]) == 0
    lines = page.read_text().splitlines()
    assert sum(line.startswith("## libero_") for line in lines) == 4
    rows = [line for line in lines if line.startswith(("| baseline", "| gated"))]
    assert [row.split(" | ")[0].lstrip("| ") for row in rows] == [
        *("baseline", "gated (alpha 0.05)", "gated (alpha 0.2)")
    ] * 4
    assert all("2 / 4" in row and "-50.0 (" in row for row in rows if "gated" in row)
    assert (
        "./rsd eval --task-suite libero_10 --tasks 2,5 --num-trials 2 --policy mini --mode gated --alpha 0.05 --no-ros"
        in lines
    )
    assert sum(line.startswith("- 4 common episodes") for line in lines) == 8
