"""The table of what the expert can do: results replace earlier ones, --list prints them, and they can be had again."""

from __future__ import annotations

from pathlib import Path

import pytest

from rsd_policy.commands.collect import main
from sim_bridge.expert.measured import FIRST_SEED, Measured, measure, read_table, write_result


def test_a_result_replaces_the_earlier_one_of_its_task(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    write_result(Measured("libero_goal", 3, 1, 10, 80.0, "2026-01-01"), path)
    write_result(Measured("libero_goal", 1, 0, 10, None, "2026-01-01"), path)
    write_result(Measured("libero_goal", 3, 8, 10, 70.5, "2026-01-02"), path)
    table = read_table(path)
    assert [(m.task, m.solved, m.median_steps, m.reliable) for m in table] == [(1, 0, None, False), (3, 8, 70.5, True)]
    assert [p.name for p in tmp_path.iterdir()] == ["table.json"], "a partial file was left"


def test_list_prints_the_measured_tasks(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    printed = capsys.readouterr().out
    table = read_table()
    assert {"libero_spatial", "libero_object", "libero_goal", "libero_10"} == {m.suite for m in table}
    assert all(m.suite in printed for m in table)
    assert f"{sum(m.reliable for m in table)} of {len(table)} measured tasks" in printed


def test_a_measured_task_is_solved_again() -> None:
    """turn on the stove: its first placement."""
    ((_, steps),) = measure("libero_goal", 7, range(FIRST_SEED, FIRST_SEED + 1))
    (recorded,) = [m for m in read_table() if (m.suite, m.task) == ("libero_goal", 7)]
    assert recorded.reliable and recorded.median_steps is not None
    assert steps is not None and steps < 2 * recorded.median_steps
