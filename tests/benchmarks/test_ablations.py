"""Ablations: variants change what they say, figures are those of the episodes, several files are read as one."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from benchmarks.ablations import __main__ as ablations
from benchmarks.ablations import tables as ablation_tables
from benchmarks.ablations.pool import Outcome, Spec, _blocks, run
from benchmarks.ablations.tables import Ablations, cells, plot_all, rows
from benchmarks.ablations.variants import VARIANTS, WORDING_SEED, Drivers, order, variant
from rsd_policy import ActionChunk, Policy, RSDInferenceEngine
from rsd_policy.engine.gate import Gate
from rsd_policy.errors import ArgumentError, CheckpointError, EpisodeError, RSDError
from rsd_policy.training.mini.paraphrase import wordings
from sim_bridge.libero_assets import task_spec
from tests.policies import calibrated_gate, random_observation, small_policy


@pytest.fixture(scope="module")
def policy() -> Policy:
    policy = small_policy()
    assert policy.heads is not None
    return policy


def chunks(policy: Policy, text: str, count: int = 4) -> list[ActionChunk]:
    """What a variant answers to the same observations."""
    driver = Drivers(policy, "cpu").make(text, "libero_goal", 0, 0)
    rng = np.random.default_rng(0)
    observations = [random_observation(rng) for _ in range(count)]
    env = cast("Any", SimpleNamespace(observe=iter(observations).__next__))
    driver.reset(env)
    return [driver.infer(env) for _ in range(count)]


def test_levels_are_those_of_the_main_head(policy: Policy) -> None:
    baseline = chunks(policy, "baseline")
    for whole, all_levels, coarse in zip(baseline, chunks(policy, "levels:8"), chunks(policy, "levels:2"), strict=True):
        np.testing.assert_array_equal(whole.actions, all_levels.actions)
        assert whole.tokens is not None
        expected = policy.codec.decode(torch.from_numpy(whole.tokens[:2])).numpy()
        np.testing.assert_array_equal(coarse.actions, expected)
        assert not np.array_equal(coarse.actions, whole.actions)
    with pytest.raises(RSDError, match="at most 8, got 9"):
        chunks(policy, "levels:9")


def test_a_shorter_execution_is_a_prefix(policy: Policy) -> None:
    for whole, half in zip(chunks(policy, "baseline"), chunks(policy, "execute:4"), strict=True):
        np.testing.assert_array_equal(half.actions, whole.actions[:4])


def test_drafts_run_unverified_and_each_is_compared(policy: Policy) -> None:
    for chunk in chunks(policy, "draft-only", 12):
        assert chunk.skipped and chunk.stats.audited and chunk.accepted is not None and chunk.levels == 3


def test_the_gate_goes_on_where_an_audit_would_end_it() -> None:
    lenient = small_policy(gate=calibrated_gate(threshold=0.0, alpha=0.06))
    rng = np.random.default_rng(0)
    audited = RSDInferenceEngine(
        lenient, "gated", gate=Gate(threshold=0.0, alpha=0.06, steps=8, gripper_rule=False), audit_every=1
    )
    for _ in range(60):
        audited.infer(random_observation(rng))
    assert audited.totals.fell_back, "drafts of random weights deviate"
    gated = chunks(lenient, "gated-without-gripper-rule", 60)
    assert all(chunk.skipped and chunk.stats.audited for chunk in gated)
    assert sum(bool(chunk.stats.audit_deviated) for chunk in gated) > 6
    with pytest.raises(CheckpointError, match=r"alpha = 0\.01"):
        chunks(lenient, "gated:0.01")


def test_instructions_are_exchanged(policy: Policy) -> None:
    drivers, own = Drivers(policy, "cpu"), task_spec("libero_goal", 3).instruction
    others = {task_spec("libero_goal", task).instruction for task in range(10) if task != 3}
    for trial in range(12):
        asked = {}
        for text in ("paraphrased", "wrong-instruction"):
            seen: list[str] = []
            driver = drivers.make(text, "libero_goal", 3, trial)
            observation = random_observation(np.random.default_rng(0), own)
            driver._engine = cast("Any", SimpleNamespace(infer=lambda o, seen=seen: seen.append(o.instruction)))
            driver.infer(cast("Any", SimpleNamespace(observe=lambda observation=observation: observation)))
            (asked[text],) = seen
        assert asked["wrong-instruction"] in others
        assert asked["paraphrased"] in wordings(own, 64, WORDING_SEED) and asked["paraphrased"] != own.lower()


@pytest.mark.parametrize("text", ["", "gated", "gated:", "gated:2", "levels:x", "baseline:1", "execute:0", "turbo"])
def test_other_variants_are_refused(text: str) -> None:
    with pytest.raises(ArgumentError, match="gated:VALUE"):
        variant(text)


def test_variants_are_listed_in_the_order_of_the_tables() -> None:
    assert [variant(text) for text in sorted(VARIANTS, key=order)] == list(VARIANTS)


def test_blocks_hold_each_episode_once() -> None:
    specs = sorted(Spec("libero_goal", task, text, 0) for task in range(10) for text in VARIANTS)
    blocks = _blocks(specs, workers=3)
    assert [spec for block in blocks for spec in block] == specs
    assert len(blocks) >= 12


def test_a_worker_that_dies_is_named(tmp_path: Path) -> None:
    with pytest.raises(EpisodeError, match="ended with status 1 and 1 episodes to run"):
        list(run([Spec("libero_goal", 0, "baseline", 0)], str(tmp_path / "none"), "cpu", 1))


def write(path: Path, outcomes: Iterable[Outcome], **fields: Any) -> Path:
    record = {
        "benchmark": "ablations",
        "policy": "mini",
        "policy_sha256": "ab",
        "hardware": {"cpu": "test", "cores": 2, "gpu": None, "device": "cpu", "workers": 2},
        "commands": [f"python -m benchmarks.ablations --json {path.name}"],
        "not_available": {"gated:0.02": "too strict"},
        "episodes": [vars(outcome) for outcome in outcomes],
    }
    path.write_text(json.dumps(record | fields))
    return path


def outcomes(text: str, successes: Iterable[bool], suite: str = "libero_goal", **fields: Any) -> list[Outcome]:
    common = {"chunks": 10, "inference_ms": 500.0, "first_action_ms": 300.0} | fields
    return [Outcome(suite, 0, text, trial, success, **common) for trial, success in enumerate(successes)]


def test_several_files_are_one_table(tmp_path: Path) -> None:
    a = write(tmp_path / "a.json", [*outcomes("baseline", (True, True, False, True)), *outcomes("levels:2", (False,))])
    failed = Outcome("libero_goal", 0, "gated:0.1", 4, error="SimulationError: no")
    gated = outcomes("gated:0.1", (True, False, True, True), skipped=5, deviated=1, compared=10, accepted=6)
    b = write(tmp_path / "b.json", [*gated, failed, *outcomes("baseline", (True,), suite="libero_10")])
    merged = Ablations.load([a, b])
    assert merged.suites() == ["libero_10", "libero_goal", "all suites"]
    found = {(row["suite"], row["variant"]): row for row in rows(merged)}
    row = found["libero_goal", "gated:0.1"]
    assert (row["successes"], row["episodes"], row["difference"]) == (3, 4, 0.0)
    assert cells(row)[5:] == ["50.0 %", "20.0 %", "60.0 %", "50.0", "30.0"]
    assert found["all suites", "baseline"]["episodes"] == 5
    assert ("all suites", "gated:0.1") not in found, "it was run in one of them"
    assert found["libero_goal", "levels:2"]["difference"] == -1.0, "over the one episode that both have"
    assert merged.not_available == {"gated:0.02": "too strict"} and len(merged.commands) == 2
    for plot in plot_all(merged, tmp_path, "ablations"):
        assert plot.read_bytes().startswith(b"\x89PNG")


def test_the_page_has_a_table_per_question_and_the_commands(tmp_path: Path) -> None:
    found = [*outcomes("baseline", (True, True)), *outcomes("gated:0.1", (True, False), skipped=4, deviated=1)]
    found += [*outcomes("levels:2", (False, True)), *outcomes("wrong-instruction", (False, False))]
    plots = tmp_path / "results"
    plots.mkdir()
    text = ablation_tables.section(Ablations.load([write(tmp_path / "a.json", found)]), plots)
    titles = [line for line in text.splitlines() if line.startswith("### ")]
    assert len(titles) == 3, "nothing is said of what was not run: the steps of a chunk"
    assert ".venv/bin/python -m benchmarks.ablations --json a.json" in text and "too strict" in text
    assert text.count("| libero_goal | baseline | 2 / 2 |") == 3
    assert "| libero_goal | gated:0.1 | 1 / 2 | 9.5 - 90.5 | -50.0 (" in text and "| 40.0 % | 25.0 % |" in text
    assert "| libero_goal | wrong-instruction | 0 / 2 |" in text
    linked = [line.split("(")[1].rstrip(")") for line in text.splitlines() if line.startswith("![")]
    assert linked == ["results/ablations-alpha.png", "results/ablations-levels.png"]
    assert all((tmp_path / link).is_file() for link in linked)


def test_the_page_shows_every_variant_that_was_run(tmp_path: Path) -> None:
    found = [outcome for text in VARIANTS for outcome in outcomes(text, (True,))]
    plots = tmp_path / "results"
    plots.mkdir()
    text = ablation_tables.section(Ablations.load([write(tmp_path / "a.json", found)]), plots)
    assert [v for v in VARIANTS if f"| libero_goal | {v} | 1 / 1 |" not in text] == []


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    a = write(tmp_path / "a.json", outcomes("baseline", (True,)))
    with pytest.raises(ArgumentError, match="another one"):
        Ablations.load([a, write(tmp_path / "b.json", [], policy_sha256="cd")])
    with pytest.raises(ArgumentError, match="give one of them"):
        Ablations.load([a, write(tmp_path / "c.json", outcomes("baseline", (False,)))])
    with pytest.raises(ArgumentError, match=r"a file of benchmarks\.ablations"):
        Ablations.load([write(tmp_path / "d.json", [], benchmark="exit_layer")])


def test_a_file_of_another_policy_is_not_gone_on_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "a.json", outcomes("baseline", (True,)))
    before = path.read_text()
    assert ablations.main(["--json", str(path)]) == 2
    assert "give another --json" in capsys.readouterr().err
    assert path.read_text() == before
