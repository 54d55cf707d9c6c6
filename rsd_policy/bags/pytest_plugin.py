"""Pins a policy's answers to bags in a team's own tests.

In conftest.py: `pytest_plugins = ["rsd_policy.bags.pytest_plugin"]`. Then

    def test_our_bags(rsd_bag, rsd_replay):
        rsd_replay(rsd_bag, policy="mini", against="baselines/monday")

runs once for each `--rsd-bag BAG` of the command line, and fails naming the first value outside the tolerance.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """The command line's bags."""
    parser.addoption("--rsd-bag", action="append", default=[], metavar="BAG", help="bag for tests that use rsd_bag")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test per bag."""
    if "rsd_bag" in metafunc.fixturenames:
        metafunc.parametrize("rsd_bag", [Path(bag) for bag in metafunc.config.getoption("--rsd-bag")], ids=str)


@pytest.fixture
def rsd_replay(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Replays a bag in process; returns the content of replay.json, fails outside the tolerance."""

    def run(bag: Path, **options: object) -> dict[str, Any]:
        from rsd_policy.bags.results import JSON
        from rsd_policy.commands.replay import main

        given = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]
        out = tmp_path / f"replay-{bag.stem}"
        main([str(bag), "--no-ros", "--out", str(out), *given])
        summary: dict[str, Any] = json.loads((out / JSON).read_text(encoding="utf-8"))
        if summary["within_tolerance"] is False:
            pytest.fail(f"{bag} against {summary['against']}: {summary['first_difference']}", pytrace=False)
        return summary

    return run
