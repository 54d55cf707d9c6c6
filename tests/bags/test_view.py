"""Rerun shows a bag, where it is installed; where it is not, one line says what to do."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from rsd_policy.commands.view import main
from rsd_policy.errors import SetupError
from tests.bags.synthetic import START, chunk_row, recorded, robot


def test_a_bag_is_written_for_rerun(tmp_path, capsys):
    pytest.importorskip("rerun")
    actions = np.full((8, 7), 0.1, np.float32)
    rows = [*robot(3), chunk_row(START, actions, verified=False), chunk_row(START, actions)]
    bag = recorded(tmp_path / "bag", rows)
    assert main([str(bag), "--save", str(tmp_path / "bag.rrd")]) == 0
    assert "1 observations" in capsys.readouterr().out
    written = (tmp_path / "bag.rrd").read_bytes()
    assert written.startswith(b"RRF") and b"robot/draft" in written and b"cameras/wrist" in written


def test_without_rerun_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "rerun", None)
    with pytest.raises(SetupError, match=r"rsd_policy\[view\]"):
        main([str(recorded(tmp_path / "bag", robot(1))), "--save", str(tmp_path / "bag.rrd")])
