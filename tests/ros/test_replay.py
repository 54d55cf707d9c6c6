"""A bag through the real policy_node: acknowledged observation by observation, and the bits of the engine."""

from __future__ import annotations

import json

from rsd_policy.commands.replay import main
from rsd_policy.exit_status import DONE, OUTSIDE_TOLERANCE


def content(out):
    return json.loads((out / "replay.json").read_text())


def test_policy_node_and_the_engine_say_the_same_bits(answered, policy, tmp_path):
    arguments = [str(answered), "--policy", str(policy)]
    assert main([*arguments, "--out", str(tmp_path / "node")]) == DONE
    found = content(tmp_path / "node")
    assert found["ros"] and found["bit_equal"] and found["observations"] == 3


def test_a_changed_policy_fails_through_the_node_as_well(answered, with_gain, tmp_path):
    out = tmp_path / "node"
    assert main([str(answered), "--policy", str(with_gain), "--out", str(out)]) == OUTSIDE_TOLERANCE
    assert "dz" in content(out)["first_difference"]
