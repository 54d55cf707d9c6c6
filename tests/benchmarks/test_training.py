"""The training benchmark trains the shipped sizes and says how fast."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.latency import training


def test_a_short_training_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "FRAMES", 8)
    file = tmp_path / "training.json"
    assert training.main(["--device", "cpu", "--batch-size", "1", "--seconds", "3", "--json", str(file)]) == 0
    result = json.loads(file.read_text())
    assert result["frames_per_second"] == result["steps_per_second"] > 0
    assert result["first_report_seconds"] > 0
