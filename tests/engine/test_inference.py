"""The engine's guarantees, with real modules and random weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rsd_policy import ActionChunk, Observation, RSDInferenceEngine
from rsd_policy.checkpoints.loading import Policy
from rsd_policy.engine.gate import Gate
from rsd_policy.errors import CheckpointError, InferenceError, NonFiniteError, RSDError
from tests.policies import calibrated_gate, random_observation, small_policy


def observations(count: int) -> list[Observation]:
    rng = np.random.default_rng(0)
    return [random_observation(rng) for _ in range(count)]


def run(policy: Policy, mode: str, count: int = 8) -> tuple[RSDInferenceEngine, list[ActionChunk]]:
    engine = RSDInferenceEngine(policy, mode)  # type: ignore[arg-type]
    return engine, [engine.infer(observation) for observation in observations(count)]


def test_stream_gives_the_draft_first_and_then_the_final_chunk() -> None:
    engine = RSDInferenceEngine(small_policy(), "speculative")
    provisional, final = list(engine.stream(observations(1)[0]))
    assert not provisional.verified and provisional.levels == 3
    assert final.verified and final.levels == 8
    assert final.stats.first_action_ms < final.stats.total_ms
    assert provisional.actions.shape == final.actions.shape == (8, 7)
    assert list(final.stats.stage_ms) == [
        "preprocess", "vision", "layers_early", "draft", "decode", "layers_late", "head"
    ]  # fmt: skip
    assert sum(final.stats.stage_ms.values()) == pytest.approx(final.stats.total_ms)


def test_gate_that_declines_everything_is_speculative() -> None:
    _, reference = run(small_policy(), "baseline")
    engine, chunks = run(small_policy(gate=calibrated_gate(threshold=1.1)), "gated")
    assert engine.totals.skipped == 0
    assert all(np.array_equal(c.actions, r.actions) for c, r in zip(chunks, reference, strict=True))


def still_gripper_policy() -> Policy:
    """A policy whose draft always closes the hand, so that the gripper rule never interferes."""
    policy = small_policy(gate=calibrated_gate(threshold=0.0))
    for level in policy.draft.level_mlp:
        bias = level[-1].bias  # type: ignore[index]
        bias.zero_()[-1] = 1e3  # the highest cell
    return policy


def test_open_gate_skips_all_but_the_first_chunk_and_audits_every_nth() -> None:
    # random weights deviate at every audit: under alpha = 1 that is no broken promise
    engine = RSDInferenceEngine(still_gripper_policy(), "gated", audit_every=3, gate=Gate(0.0, alpha=1.0, steps=8))
    engine._last_action = np.ones(7, np.float32)
    chunks = [engine.infer(observation) for observation in observations(6)]
    assert engine.totals.skipped == 6 and engine.totals.audited == 2
    assert [chunk.stats.audited for chunk in chunks] == [False, False, True, False, False, True]
    assert all(chunk.skipped and not chunk.verified and chunk.levels == 3 for chunk in chunks)
    assert "layers_late" not in chunks[0].stats.stage_ms


def test_totals_add_up_over_skipped_verified_and_audited_chunks() -> None:
    policy = small_policy(6, "mode", acceptance={"threshold": 0.1, "tolerance": [2.0] * 6})
    gate = Gate(0.7, alpha=1.0, steps=8, gripper_rule=False)  # these random weights score on both sides of 0.7
    engine = RSDInferenceEngine(policy, "gated", gate=gate, audit_every=2)
    chunks = [engine.infer(observation) for observation in observations(16)]
    totals = engine.totals
    skipped = [chunk for chunk in chunks if chunk.skipped]
    verified = [chunk for chunk in chunks if chunk.verified]
    assert 0 < totals.skipped == len(skipped) < totals.chunks == 16 == len(skipped) + len(verified)
    assert totals.accepted == sum(bool(chunk.accepted) for chunk in verified)
    assert totals.accepted + totals.rejected == len(verified)
    assert totals.accepted > 0 and totals.rejected > 0
    audited = [chunk for chunk in skipped if chunk.stats.audited]
    assert totals.audited == engine.audit.checked == len(audited) == len(skipped) // 2 > 0
    assert totals.audit_deviated == engine.audit.deviated == sum(bool(c.stats.audit_deviated) for c in audited)
    for chunk in [*verified, *audited]:
        steps = chunk.stats.accepted_steps
        assert steps is not None and 0 <= steps <= 8
        assert not chunk.accepted or steps == 8
        assert not chunk.stats.audited or chunk.stats.audit_deviated is (steps < 8)
    assert all(chunk.stats.accepted_steps is None for chunk in skipped if not chunk.stats.audited)
    summed = [sum(chunk.stats.stage_ms.get(stage, 0.0) for chunk in chunks) for stage in totals.stage_ms]
    assert summed == pytest.approx(list(totals.stage_ms.values()))


def test_first_chunk_of_an_episode_is_verified() -> None:
    engine = RSDInferenceEngine(still_gripper_policy(), "gated")
    assert not engine.infer(observations(1)[0]).skipped
    engine.reset()
    assert engine._last_action is None


def test_gripper_change_is_verified() -> None:
    engine = RSDInferenceEngine(still_gripper_policy(), "gated")
    engine._last_action = -np.ones(7, np.float32)
    assert engine.infer(observations(1)[0]).verified


def test_audit_that_finds_deviations_falls_back_for_good() -> None:
    engine = RSDInferenceEngine(still_gripper_policy(), "gated", audit_every=1)
    skipped = []
    for observation in observations(8):
        engine._last_action = np.ones(7, np.float32)
        skipped.append(engine.infer(observation).skipped)
    assert engine.totals.audit_deviated > 0 and engine.totals.fell_back
    assert skipped[0] and not skipped[-1]
    engine.reset()
    assert engine.totals.fell_back


def test_audit_counts_across_episodes() -> None:
    engine = RSDInferenceEngine(still_gripper_policy(), "gated", audit_every=3)
    for observation in observations(3):
        engine.reset()
        engine._last_action = np.ones(7, np.float32)
        engine.infer(observation)
    assert engine.totals.audited == 1


def test_nan_in_the_weights_is_an_error_and_not_an_action() -> None:
    policy = small_policy()
    policy.mini.slot.fill_(float("nan"))
    engine = RSDInferenceEngine(policy, "baseline")
    with pytest.raises(NonFiniteError, match="NaN"):
        engine.infer(observations(1)[0])
    assert engine.totals.chunks == 0


def test_out_of_memory_is_a_typed_error(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = RSDInferenceEngine(small_policy(), "baseline")

    def exhausted(*_: object) -> None:
        raise torch.OutOfMemoryError("no memory left")

    monkeypatch.setattr(engine.policy.head, "forward", exhausted)
    with pytest.raises(InferenceError, match="out of memory"):
        engine.infer(observations(1)[0])


def test_an_engine_whose_policy_was_moved_away_says_so() -> None:
    """Another engine moves the shared policy to its own device: the first would replay graphs of freed weights."""
    policy = small_policy()
    engine = RSDInferenceEngine(policy, "speculative")
    engine.infer(observations(1)[0])
    policy.to(torch.device("meta"))
    with pytest.raises(InferenceError, match="moved"):
        engine.infer(observations(1)[0])


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(RSDError, match="baseline, speculative, gated"):
        RSDInferenceEngine(small_policy(), "turbo")  # type: ignore[arg-type]
    with pytest.raises(RSDError, match=r"1 \.\. 8"):
        RSDInferenceEngine(small_policy(), execute_steps=9)
    with pytest.raises(CheckpointError, match="speculative"):
        RSDInferenceEngine(small_policy(gate=None), "gated")
    with pytest.raises(RSDError, match="device"):
        RSDInferenceEngine(small_policy(), device="warp")
