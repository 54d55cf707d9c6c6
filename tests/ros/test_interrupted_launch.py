"""What is left of a run when its launch is interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from rsd_policy.exit_status import INTERRUPTED


def test_an_interrupted_launch_leaves_its_report(probe, domain, tmp_path):
    """Ctrl-C reaches the whole group, and the launch signals again as others end: the report was cut off."""
    out = tmp_path / "run"
    arguments = ["-p", f"out:={out}", "-p", "start_timeout:=120.0"]
    command = [sys.executable, "-m", "rsd_policy.nodes.eval_node", "--ros-args", *arguments]
    environment = os.environ | {"ROS_DOMAIN_ID": str(domain)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    probe.spin_until(
        lambda: probe.node.count_clients("/policy_node/get_state") > 0, 60, "the run to wait for its nodes"
    )
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
    printed = process.communicate(timeout=60)[0].decode()
    # a signal can still meet the interpreter while it is torn down, after everything is written
    assert process.returncode in (INTERRUPTED, -signal.SIGINT), printed
    assert (out / "summary.json").exists() and (out / "report.html").read_text().rstrip().endswith("</html>")
