"""`rsd export`: the copy is the checkpoint, or nothing is written; the card tells what was recorded, and no more."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rsd_policy import RSDInferenceEngine, cli, load_policy
from rsd_policy.checkpoints.loading import save_policy
from rsd_policy.checkpoints.manifest import MANIFEST, sha256
from rsd_policy.commands import export as module
from rsd_policy.commands.export import export
from rsd_policy.engine.calibration import Curve
from rsd_policy.engine.gate import Gate
from rsd_policy.errors import CheckpointError
from rsd_policy.evaluation.protocol import EvalConfig
from rsd_policy.evaluation.results import FAILURE, SUCCESS, ChunkRecord, EpisodeResult
from rsd_policy.evaluation.store import ResultStore
from rsd_policy.exit_status import NOT_SET_UP
from rsd_policy.reports.runs import load_runs
from tests.policies import random_observation, small_policy

HARDWARE = {"cpu": "a CPU", "cores": 2, "memory_gib": 1.0, "device": "cpu", "gpu": None, "workers": 2, "system": "x"}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    policy = small_policy(
        provenance={
            "data": {
                "tasks": {"libero_goal": [0, 3], "libero_10": [2]},
                "seeds": {"libero_goal": [1000, 1399], "libero_10": [5000, 5099]},
                "training_episodes": 123,
                "dagger_episodes": 45,
                "dagger_pilots": ["first", "second"],
                "takeover_from": 0.2,
                "stages": [{"frames": 1}],
            },
            "training": {"seed": 7, "seconds": 276.0, "device": "NVIDIA H200", "curve": list(range(99))},
            "torch": "2.13.0",
        },
        accuracy={"head_mean_abs_action_error": 0.0139812},
    )
    directory = tmp_path / "source"
    save_policy(directory, policy)
    (directory / "training.png").write_bytes(b"a plot")
    return directory


def record(directory: Path, source: Path, mode: str, successes: int) -> Path:
    config = EvalConfig(
        suite="libero_goal", tasks=(0,), trials=tuple(range(10)), policy=str(source), mode=mode, ros=False,
        policy_sha256=sha256(source / MANIFEST),
    )  # fmt: skip
    chunk = ChunkRecord(step=0, inference_ms=40.0 if mode == "baseline" else 20.0, first_action_ms=10.0)
    with ResultStore.open_run(directory, config, versions={}, hardware=HARDWARE) as store:
        for spec in config.episodes():
            outcome = SUCCESS if spec.trial < successes else FAILURE
            actions = np.zeros((8, 7), np.float32)
            store.record(EpisodeResult(spec, outcome, steps=8, instruction="open it", actions=actions, chunks=(chunk,)))
    return directory


@pytest.mark.parametrize("one_file", [False, True])
def test_the_copy_acts_as_the_original(source: Path, tmp_path: Path, one_file: bool) -> None:
    out = export(source, tmp_path / "out" / "copy", one_file=one_file)
    weights = sorted(path.name for path in out.glob("*.safetensors"))
    assert (weights == [module.ONE_FILE]) == one_file
    assert (out / "training.png").read_bytes() == b"a plot"
    observation = random_observation(np.random.default_rng(0))
    chunks = [RSDInferenceEngine(load_policy(path), mode="speculative").infer(observation) for path in (source, out)]
    assert chunks[0].actions.tobytes() == chunks[1].actions.tobytes()
    if not one_file:  # results name the manifest by its sha256
        assert (out / MANIFEST).read_bytes() == (source / MANIFEST).read_bytes()


def test_the_copy_promises_another_alpha_of_the_curve(tmp_path: Path) -> None:
    curve = Curve(threshold=[0.9, 0.5], skip_rate=[0.2, 0.6], deviation_rate=[0.01, 0.1],
                  chunk_deviation_rate=[0.01, 0.1], bound=[0.05, 0.15], confidence=0.95)  # fmt: skip
    policy = small_policy(gate={"alpha": 0.2, "steps": 8, "start_gripper": None, "curve": curve.to_manifest()})
    save_policy(tmp_path / "source", policy)
    out = export(tmp_path / "source", tmp_path / "out", alpha=0.1)
    gates = [Gate.from_manifest(load_policy(path).manifest["gate"]) for path in (tmp_path / "source", out)]
    assert [(gate.alpha, gate.threshold) for gate in gates] == [(0.2, 0.5), (0.1, 0.9)]
    before = (out / MANIFEST).read_bytes()
    assert (export(out, out, alpha=0.1, replace=True) / MANIFEST).read_bytes() == before, "the same promise as before"
    runs = load_runs([record(tmp_path / "run", tmp_path / "source", "baseline", 8)])
    card = (export(out, out, runs, replace=True) / "README.md").read_text()
    assert "8 / 10" in card and "another manifest" not in card, "results of the source are the copy's"
    with pytest.raises(CheckpointError, match=r"no threshold keeps alpha = 0\.01"):
        export(tmp_path / "source", tmp_path / "strict", alpha=0.01)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run", "source"]


def test_an_altered_or_too_large_checkpoint_is_not_written(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(CheckpointError, match=r"at most 0\.001 MB"):
        export(source, out, max_bytes=1000)
    weights = next(source.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(CheckpointError, match="sha256"):
        export(source, out)
    assert not out.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"], "no scratch is left"


def test_other_files_and_other_checkpoints_are_not_overwritten(source: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (work / "thesis.txt").write_text("precious")
    for replace in (False, True):
        with pytest.raises(CheckpointError, match="found other files"):
            export(source, work, replace=replace)
    out = export(source, tmp_path / "out")
    (out / "stale.png").write_bytes(b"")
    with pytest.raises(CheckpointError, match="--replace"):
        export(source, out)
    export(source, out, replace=True)
    assert not (out / "stale.png").exists()


def test_the_card_of_a_checkpoint_in_place_is_renewed(source: Path, tmp_path: Path) -> None:
    (source / "README.md").write_text("of long ago")
    export(source, source, load_runs([record(tmp_path / "run", source, "baseline", 8)]), replace=True)
    assert "8 / 10" in (source / "README.md").read_text()
    load_policy(source)


def test_a_failing_swap_leaves_what_was_there(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = export(source, tmp_path / "out")
    before = (out / "README.md").read_text()
    rename = Path.rename

    def fail_for_the_copy(self: Path, target: Path) -> Path:
        if self.name == out.name and Path(target) == out:
            raise OSError("disk full")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_for_the_copy)
    with pytest.raises(OSError, match="disk full"):
        export(source, out, replace=True)
    assert (out / "README.md").read_text() == before


def test_the_card_tells_data_training_accuracy_and_results(source: Path, tmp_path: Path) -> None:
    runs = [record(tmp_path / mode, source, mode, count) for mode, count in (("gated", 9), ("baseline", 8))]
    card = (export(source, tmp_path / "out" / "pet", load_runs(runs)) / "README.md").read_text()
    count = sum(p.numel() for m in load_policy(source).modules().values() for p in m.state_dict().values())
    assert f"{count / 1e6:.1f} million parameters" in card
    for line in (
        "# pet",
        "| tasks: libero goal | 0, 3 |",
        "| seeds: libero 10 | 5000 to 5099 |",
        "| training episodes | 123 |",
        "| takeover from | 0.2 |",
        "In 45 of the 123 training episodes a policy (first, second) drove the arm",
        "![losses and held-out accuracies over the training](training.png)",
        "| libero_goal | a CPU | gated | 9 / 10 (59.6 - 98.2) |",
        "| 0: open it | 8 / 10 (49.0 - 94.3) | 9 / 10 (59.6 - 98.2) |",
        "| seed | 7 |",
        "| seconds | 276 |",
        "| device | NVIDIA H200 |",
        "| head mean abs action error | 0.01398 |",
        "| torch | 2.13.0 |",
        "a CPU, 2 cores",
        "2 workers at once",
        "./rsd eval --task-suite libero_goal --tasks 0 --num-trials 10 --policy source --mode gated --no-ros",
    ):
        assert line in card, line
    assert "calibration.png" not in card, "there is none"
    assert "curve" not in card and str(tmp_path) not in card and "another manifest" not in card
    baseline, gated = (line for line in card.splitlines() if line.startswith(("| baseline", "| gated")))
    assert baseline.startswith("| baseline | 8 / 10 | 80.0 % | 49.0 - 94.3 | - | 40.0 |")
    assert gated.startswith("| gated | 9 / 10 | 90.0 % | 59.6 - 98.2 | +10.0 (")
    assert gated.endswith("| 2.00 x (2.00 .. 2.00) |")


def test_results_of_another_manifest_are_called_so(source: Path, tmp_path: Path) -> None:
    run = record(tmp_path / "run", source, "baseline", 8)
    out = export(source, tmp_path / "out", load_runs([run]), one_file=True)
    assert "Run with another manifest than this one" in (out / "README.md").read_text()


def test_the_command_says_what_it_wrote(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert cli.main(["export", "--policy", str(source), "--out", str(out)]) == 0
    output = capsys.readouterr()
    assert f"wrote {out}" in output.out and "no closed-loop results" in output.err
    assert cli.main(["export", "--policy", str(source), "--out", str(out)]) == NOT_SET_UP
    assert "--replace" in capsys.readouterr().err
