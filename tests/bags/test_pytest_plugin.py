"""A team's own test fails when a policy's answers to a pinned bag change, and names the field."""

from __future__ import annotations

import subprocess
import sys

PINNED = """
def test_same(rsd_bag, rsd_replay):
    assert rsd_replay(rsd_bag, policy={same!r})["compared"] == 3


def test_changed(rsd_bag, rsd_replay):
    rsd_replay(rsd_bag, policy={changed!r})
"""


def test_a_pinned_bag_passes_and_a_gain_fails_with_its_field(answered, policy, with_gain, tmp_path):
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["rsd_policy.bags.pytest_plugin"]\n')
    (tmp_path / "test_pinned.py").write_text(PINNED.format(same=str(policy), changed=str(with_gain)))
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        str(tmp_path),
        "--rsd-bag",
        str(answered),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert "1 failed, 1 passed" in done.stdout, done.stdout + done.stderr
    assert "FAILED" in done.stdout and "test_changed" in done.stdout and "step 0, dz:" in done.stdout
