"""`rsd train`: snapshots, and a training that goes on with more demonstrations but not with other sizes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rsd_policy import load_policy
from rsd_policy.commands.train import INIT_SHARE, STARTED, main
from rsd_policy.errors import RSDError
from sim_bridge.demonstrations import write_demonstration
from tests.training.test_training import episode, trace


def collected(directory: Path, seeds: range) -> Path:
    for seed in seeds:
        small = episode(seed, steps=8)
        shape = (len(small.frame_steps), 2, 128, 128, 3)
        images = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
        demonstration = replace(small, images=images, actions=small.actions * np.float32(0.5 + seed / 20))
        write_demonstration(directory, demonstration, trace(demonstration))
    return directory


def run(data: Path, out: Path, steps: int, layers: int = 2) -> None:
    sizes = ["--layers", str(layers), "--exit-layer", "1", "--exit-readers", "1", "--batch-size", "2"]
    assert main([*sizes, "--data", str(data), "--out", str(out), "--steps", str(steps), "--snapshot-every", "1",
                 "--device", "cpu"]) == 0  # fmt: skip


def test_a_training_goes_on_with_more_demonstrations_and_keeps_its_scales(tmp_path: Path) -> None:
    data, out = collected(tmp_path / "demos", range(3)), tmp_path / "out"
    run(data, out, steps=1)
    first = json.loads((out / "manifest.json").read_text())
    assert load_policy(out / "step-000001").exit_layer == 1
    (out / "manifest.json").unlink()  # as if it had been ended after its last saved state
    collected(data, range(3, 6))
    with pytest.raises(RSDError, match=r"'--layers': 2.*'--layers': 3"):
        run(data, out, steps=2, layers=3)
    run(data, out, steps=2)
    second = json.loads((out / "manifest.json").read_text())
    assert second["codec"] == first["codec"] and second["proprio"] == first["proprio"]
    assert [r["steps"] for r in second["provenance"]["data"]["runs"]] == [1, 2]
    assert second["provenance"]["data"]["training_episodes"] > first["provenance"]["data"]["training_episodes"]
    assert (out / "step-000002" / "manifest.json").is_file()


def test_the_provenance_tells_what_a_fine_tuned_policy_had_learned_before(tmp_path: Path) -> None:
    run(collected(tmp_path / "first", range(3)), tmp_path / "begun", steps=1)
    before = json.loads((tmp_path / "begun" / "manifest.json").read_text())["provenance"]
    data = str(collected(tmp_path / "second", range(10, 14)))
    assert main(["--init", str(tmp_path / "begun"), "--data", data, "--out", str(tmp_path / "out"), "--steps", "1",
                 "--batch-size", "2", "--device", "cpu"]) == 0  # fmt: skip
    after = json.loads((tmp_path / "out" / "manifest.json").read_text())["provenance"]
    assert after["started_from"] == {"name": "begun"} | before
    assert after["data"]["seeds"] != before["data"]["seeds"] and "started_from" not in before
    assert after["training"]["learning_rate"] == pytest.approx(INIT_SHARE * before["training"]["learning_rate"])


def test_a_training_by_the_clock_ends_when_its_time_is_over_also_when_resumed(tmp_path: Path) -> None:
    data, out = collected(tmp_path / "demos", range(3)), tmp_path / "out"
    clock = ["--layers", "2", "--exit-layer", "1", "--exit-readers", "1", "--batch-size", "2", "--device", "cpu",
             "--data", str(data), "--out", str(out), "--steps", "1", "--seconds", "2"]  # fmt: skip
    assert main(clock) == 0
    first = json.loads((out / "manifest.json").read_text())["provenance"]["training"]
    assert first["steps"] > 1 and first["seconds"] >= 2
    begun = {"training_episodes": 2, "batch_size": 2, "seconds": 2.0}
    assert json.loads((out / STARTED).read_text())["runs"] == [begun]
    (out / "manifest.json").unlink()
    without_batch = [part for i, part in enumerate(clock) if "--batch-size" not in clock[max(i - 1, 0) : i + 1]]
    assert main(without_batch) == 0  # goes on with the batch that it was begun with
    assert json.loads((out / STARTED).read_text())["runs"] == [begun, begun]
    assert json.loads((out / "manifest.json").read_text())["provenance"]["training"]["steps"] == first["steps"]


def test_a_training_that_saved_no_state_begins_anew(tmp_path: Path) -> None:
    data, out = collected(tmp_path / "demos", range(3)), tmp_path / "out"
    out.mkdir()
    (out / STARTED).write_text("what an ended run left")
    run(data, out, steps=1)
    assert json.loads((out / STARTED).read_text())["runs"][0]["steps"] == 1
