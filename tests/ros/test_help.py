"""An installed node answers --help: rclpy would start it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

INSTALL = Path(__file__).resolve().parents[2] / "ros2_ws" / "install"


@pytest.mark.parametrize("node", ["policy_node", "eval_node", "replay_node"])
def test_an_installed_node_answers_help_and_does_not_start(node: str) -> None:
    done = subprocess.run(
        ["bash", "-c", '. "$0/setup.bash" && "$0/lib/rsd_policy/$1" --help', INSTALL, node],
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: {node} [--ros-args")
    assert f"{node}:" in done.stdout
