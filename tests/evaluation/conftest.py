"""Fixtures that these tests share with others."""

from tests.recorded_runs import config, make_result, open_run

__all__ = ["config", "make_result", "open_run"]
