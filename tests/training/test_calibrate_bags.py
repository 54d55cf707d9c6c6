"""A gate calibrated on bags: the bag is the trial of the promise, and too few are refused with a number."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from rsd_policy import RSDInferenceEngine, load_policy
from rsd_policy.checkpoints.manifest import read_manifest
from rsd_policy.commands.calibrate import main
from rsd_policy.engine.calibration import episodes_needed
from rsd_policy.errors import RSDError
from rsd_policy.robots.contract import load_contract
from rsd_policy.training.gate.bags import find_bags, from_bag
from tests.bags.conftest import policy  # noqa: F401
from tests.bags.synthetic import START, Row, header, make, recorded, robot


def test_too_few_bags_are_refused_with_the_number_that_suffices(policy, tmp_path):  # noqa: F811
    bag = recorded(tmp_path / "bag", robot(2))
    needed = 2 * episodes_needed(0.1)
    with pytest.raises(RSDError, match=rf"alpha 0\.1 needs at least {needed} bags, got 1: .* record {needed - 1} more"):
        main(["--bags", str(bag), "--policy", str(policy), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_a_calibration_on_bags_is_stored_with_its_source_and_gates(policy, tmp_path):  # noqa: F811
    number = 2 * episodes_needed(0.5)
    for i in range(number):
        recorded(tmp_path / "bags" / f"bag{i:02d}", robot(3, seed=i, foreign=False))
    out = tmp_path / "out"
    arguments = ["--bags", str(tmp_path / "bags"), "--policy", str(policy), "--out", str(out), "--alpha", "0.5"]
    assert main([*arguments, "--period", "0"]) == 0
    gate = read_manifest(out)["gate"]
    assert gate["calibration"]["source"].startswith("bags of robot 'libero_sim'")
    assert gate["calibration"]["episodes"] == number and gate["calibration"]["success_rate"] is None
    assert json.dumps(gate["calibration"]["suites"]) == json.dumps({"libero_sim": number})
    if any(point["threshold"] is not None for point in gate["thresholds"] if point["alpha"] == 0.5):
        RSDInferenceEngine(load_policy(out), mode="gated", alpha=0.5)


def test_the_last_command_before_a_chunk_is_what_the_gate_sees(policy, tmp_path):  # noqa: F811
    """What was executed is in the bag; the policy's own last answer is only taken where nobody recorded it."""
    command = np.linspace(0.1, 0.7, 7).astype(np.float32)
    action = make(
        "rsd_msgs/msg/Action", header=header(START + 60_000_000), values=command, episode=0, step=0, remaining=0
    )
    rows = robot(3)
    with_command = [*rows, Row("/action", "rsd_msgs/msg/Action", START + 61_000_000, action)]
    contract, loaded = load_contract(), load_policy(policy)
    rollout = from_bag(recorded(tmp_path / "a", with_command), contract, loaded, 8, 0, period_s=0.0)
    assert rollout.first.tolist() == [True, False, False]
    assert not rollout.last_action[0].any()
    assert np.array_equal(rollout.last_action[2], command)
    plain = from_bag(recorded(tmp_path / "b", rows), contract, loaded, 8, 0, period_s=0.0)
    assert np.array_equal(plain.last_action[2], np.clip(plain.main_actions[1][7], -1, 1))
    assert replace(plain, last_action=rollout.last_action).main_actions.tobytes() == rollout.main_actions.tobytes()


def test_folders_of_bags_are_looked_into(tmp_path):
    a, b = (recorded(tmp_path / "many" / name, robot(1)) for name in ("a", "b"))
    assert find_bags([tmp_path / "many"]) == [a, b]
    assert find_bags([a]) == [a]
