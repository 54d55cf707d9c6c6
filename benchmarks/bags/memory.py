"""Memory of reading bags of synthetic frames: does it grow with the bag?

Each size is written, read by a process of its own (as a replay reads it: aligned, decoded, composed; no inference), and
removed. Peak resident memory is the process's own (ru_maxrss).

    .venv/bin/python -m benchmarks.bags.memory --gigabytes 0.1,10 --json bags-memory.json
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from rsd_policy.bags.playback import Playback, read_recorded
from rsd_policy.bags.reader import Bag
from rsd_policy.bags.writer import BagWriter
from rsd_policy.evaluation import provenance
from rsd_policy.exit_status import DONE
from rsd_policy.robots.contract import load_contract

WIDTH, HEIGHT = 640, 480
START = 1_700_000_000_000_000_000
PERIOD = 33_333_333


def main(argv: list[str]) -> int:
    """Measure each size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", default="0.1,10", help="sizes of the bags, uncompressed (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--folder", type=Path, default=Path("out"), help="where the bags are written (%(default)s)")
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.read:
        print(json.dumps(_read(arguments.read)))
        return DONE
    results = [_measure(float(size), arguments.folder) for size in arguments.gigabytes.split(",")]
    content = {
        "command": provenance.command("benchmarks.bags.memory", argv),
        "date": datetime.now(timezone.utc).date().isoformat(),
        "hardware": provenance.hardware("cpu"),
        "bags": results,
        "growth": results[-1]["peak_mib"] / results[0]["peak_mib"] - 1.0,
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(content, indent=1), encoding="utf-8")
    print(f"{results[0]['gigabytes']} -> {results[-1]['gigabytes']} GB: peak memory {content['growth']:+.1%}")
    return DONE


def _measure(gigabytes: float, folder: Path) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        bag = Path(temporary) / "bag"
        moments = max(2, round(gigabytes * 1e9 / (2 * WIDTH * HEIGHT * 3)))
        _write(bag, moments)
        disk = sum(file.stat().st_size for file in bag.iterdir())
        command = [sys.executable, "-m", "benchmarks.bags.memory", "--read", str(bag)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    found = {"gigabytes": gigabytes, "moments": moments, "bytes_on_disk": disk} | json.loads(done.stdout)
    print(found, flush=True)
    return found


def _write(path: Path, moments: int) -> None:
    """Two cameras of 640 x 480 rgb8, pose and joints. The frames repeat, so that zstd keeps the disk small."""
    from rosbags.typesys import Stores, get_typestore

    store = get_typestore(Stores.ROS2_JAZZY)
    types = store.types
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, 8, 3), dtype=np.uint8)
    frame = np.tile(pixels, (1, WIDTH // 8, 1)).reshape(-1)

    def header(stamp: int) -> Any:
        time_ = types["builtin_interfaces/msg/Time"](sec=stamp // 10**9, nanosec=stamp % 10**9)
        return types["std_msgs/msg/Header"](stamp=time_, frame_id="world")

    point = types["geometry_msgs/msg/Point"](x=0.0, y=0.0, z=1.0)
    turn = types["geometry_msgs/msg/Quaternion"](x=1.0, y=0.0, z=0.0, w=0.0)
    empty = np.zeros(0)
    kinds = {
        "/agentview/image_raw": "sensor_msgs/msg/Image",
        "/wrist/image_raw": "sensor_msgs/msg/Image",
        "/eef_pose": "geometry_msgs/msg/PoseStamped",
        "/joint_states": "sensor_msgs/msg/JointState",
    }
    with BagWriter(path) as writer:
        for topic, kind in kinds.items():
            writer.add_topic(topic, kind)
        for i in range(moments):
            stamp = START + i * PERIOD
            image = types["sensor_msgs/msg/Image"](
                header=header(stamp),
                height=HEIGHT,
                width=WIDTH,
                encoding="rgb8",
                is_bigendian=0,
                step=3 * WIDTH,
                data=frame,
            )
            pose = types["geometry_msgs/msg/Pose"](position=point, orientation=turn)
            posed = types["geometry_msgs/msg/PoseStamped"](header=header(stamp), pose=pose)
            joints = types["sensor_msgs/msg/JointState"](
                header=header(stamp),
                name=["panda_finger_joint1", "panda_finger_joint2"],
                position=np.array([0.04, -0.04]),
                velocity=empty,
                effort=empty,
            )
            for (topic, kind), message in zip(kinds.items(), (image, image, posed, joints), strict=True):
                writer.write(topic, stamp, bytes(store.serialize_cdr(message, kind)))


def _read(path: Path) -> dict[str, Any]:
    contract = load_contract()
    start = time.monotonic()
    count = 0
    with Bag(path) as bag:
        recorded = read_recorded(bag, contract)
        for shown in Playback(bag, contract, recorded, instruction="read", period_s=0.0).observations():
            count += int(shown.observation.images["agentview"].size > 0)
    seconds = time.monotonic() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"observations": count, "peak_mib": round(peak, 1), "observations_per_s": round(count / seconds, 1)}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
