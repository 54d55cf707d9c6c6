"""The benchmark of the 7B shape runs at small sizes and reports what it says it does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.openvla import __main__ as openvla


def test_tiny_run_measures_every_mode_and_finds_the_final_chunk_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvla, "WARM_UP", 1)
    path = tmp_path / "openvla.json"
    assert openvla.main(["--tiny", "--calls", "2", "--json", str(path)]) == 0
    result = json.loads(path.read_text(encoding="utf-8"))
    assert result["failed"] == {}
    # Start token, two views, state, prompt, action slots, stop.
    assert result["sizes"]["sequence"] == 1 + 2 * 256 + 1 + 35 + 56 + 1
    early = ["preprocess", "vision", "layers_early"]
    assert {mode: list(result["eager"][mode]["stage_ms"]) for mode in ("baseline", "speculative", "skipped")} == {
        "baseline": [*early, "layers_late", "head", "decode"],
        "speculative": [*early, "draft", "decode", "layers_late", "head"],
        "skipped": [*early, "draft", "decode", "gate"],
    }
    assert result["identical"]["eager"] is True
    assert result["identical"]["eager_distinct"] > 1
    assert result["pixels"]["different"] == 0


def test_expected_mean_is_the_formula_on_medians() -> None:
    row = {
        "skipped": {"total_ms": {"p50": 10.0}, "stage_ms": {"gate": {"p50": 2.0}}},
        "speculative": {"total_ms": {"p50": 30.0}},
    }
    assert openvla.expected_means(row)["0.5"] == pytest.approx(0.5 * 10 + 0.5 * 32)


def test_an_exit_layer_beyond_the_model_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        openvla.main(["--tiny", "--exit-layer", "2"])
    assert "1 .. 1" in capsys.readouterr().err
