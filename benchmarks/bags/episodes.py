"""Episodes recorded over ROS and replayed, through policy_node and in process: are the answers equal, bit for bit?

./rsd setup && source ros2_ws/install/setup.bash
.venv/bin/python -m benchmarks.bags.episodes --json bags-episodes.json
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rsd_policy.evaluation import provenance
from rsd_policy.exit_status import DONE, FAILED
from rsd_policy.libero import SUITES

FOUR_SUITES = [suite for suite in SUITES if suite in ("libero_spatial", "libero_object", "libero_goal", "libero_10")]


def main(argv: list[str]) -> int:
    """Record and replay; exit status 0 when all answers are equal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=5, metavar="N", help="tasks 0..N-1 of each suite (%(default)s)")
    parser.add_argument("--modes", default="speculative,gated", help="recorded in turn (%(default)s)")
    parser.add_argument("--json", type=Path, required=True, metavar="FILE")
    arguments = parser.parse_args(argv)
    modes = arguments.modes.split(",")
    episodes: list[dict[str, Any]] = []
    for suite in FOUR_SUITES:
        for task in range(arguments.tasks):
            with tempfile.TemporaryDirectory() as folder:
                episodes.append(_episode(Path(folder), suite, task, modes[len(episodes) % len(modes)]))
            print(episodes[-1], flush=True)
            content = {
                "command": provenance.command("benchmarks.bags.episodes", argv),
                "date": datetime.now(timezone.utc).date().isoformat(),
                "hardware": provenance.hardware("cpu"),
                "equal": sum(episode["ros"] and episode["in_process"] for episode in episodes),
                "episodes": episodes,
            }
            arguments.json.write_text(json.dumps(content, indent=1), encoding="utf-8")
    return DONE if all(episode["ros"] and episode["in_process"] for episode in episodes) else FAILED


def _episode(folder: Path, suite: str, task: int, mode: str) -> dict[str, Any]:
    bag = folder / "bag"
    _rsd("record", "--out", str(bag), "--task-suite", suite, "--task", str(task), "--mode", mode)
    ros, process = _replay(bag, folder / "ros"), _replay(bag, folder / "in-process", "--no-ros")
    return {
        "suite": suite,
        "task": task,
        "mode": mode,
        "observations": ros["observations"],
        "ros": bool(ros["bit_equal"]),
        "in_process": bool(process["bit_equal"]),
        "ros_inference_share": _share(ros),
        "in_process_inference_share": _share(process),
        "bag_bytes": sum(file.stat().st_size for file in bag.iterdir()),
    }


def _replay(bag: Path, out: Path, *more: str) -> dict[str, Any]:
    _rsd("replay", str(bag), "--out", str(out), *more)
    content: dict[str, Any] = json.loads((out / "replay.json").read_text(encoding="utf-8"))
    return content


def _share(found: dict[str, Any]) -> float:
    """How much of the replay's time was inference: 1 is as fast as inference alone."""
    inference = sum(answer["inference_ms"] for answer in found["answers"]) * 1e-3
    return inference / float(found["wall_s"])


def _rsd(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "rsd_policy.cli", *arguments], check=False, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
