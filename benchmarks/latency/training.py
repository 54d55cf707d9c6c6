"""Steps a second of `rsd train` on random frames: what the machine gives, without reading or collecting anything.

The policy has the sizes of the shipped `mini`. On a GPU the first minute or more is compilation; the rate is that of
the last quarter of the time.

    .venv/bin/python -m benchmarks.latency.training --device cuda --batch-size 1024 --seconds 160 --json training.json
    .venv/bin/torchrun --standalone --nproc-per-node 4 -m benchmarks.latency.training --device cuda --batch-size 2048
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from rsd_policy.backbones.mini import MAX_WORDS, MiniConfig
from rsd_policy.checkpoints.loading import Policy, build_policy
from rsd_policy.checkpoints.manifest import SHIPPED, read_manifest
from rsd_policy.device import parse_device
from rsd_policy.errors import ArgumentError, RSDError
from rsd_policy.evaluation import provenance
from rsd_policy.exit_status import DONE, WRONG_ARGUMENTS
from rsd_policy.files import write_json
from rsd_policy.observation import ACTION_DIM, PROPRIO_DIM
from rsd_policy.training.mini.dataset import WORDINGS, Demonstrations
from rsd_policy.training.mini.trainer import Progress, TrainConfig, Validation, train
from rsd_policy.training.team import Team

FRAMES = 2000
"""Of each process; more take memory and change no figure."""

NEVER = 10**9


def main(argv: list[str]) -> int:
    """Train for a while and print the rate; returns 0, or 2 for wrong arguments."""
    parser = argparse.ArgumentParser(prog="benchmarks.latency.training", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch-size", type=int, default=512, help="frames per step, of all processes (%(default)s)")
    parser.add_argument("--seconds", type=float, default=160.0, help="of training (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    arguments = parser.parse_args(argv)
    try:
        team, device = Team.join(parse_device(arguments.device))
        result = measure(team, device, arguments.batch_size, arguments.seconds)
    except RSDError as error:
        print(f"benchmarks.latency.training: {error}", file=sys.stderr)
        return WRONG_ARGUMENTS
    if team.leads:
        place = result["hardware"]["gpu"] or result["hardware"]["cpu"]
        rate = result["steps_per_second"]
        print(
            f"{team.size} x {place}, batch {arguments.batch_size}: {rate:.2f} steps/s, "
            f"{result['frames_per_second']:.0f} frames/s; first report after {result['first_report_seconds']:.0f} s"
        )
        if arguments.json:
            write_json(arguments.json, result)
            print(f"wrote {arguments.json}")
    team.leave()
    return DONE


def measure(team: Team, device: torch.device, batch_size: int, seconds: float) -> dict[str, Any]:
    """Train on random frames and time it.

    Raises:
        ArgumentError: the time was over before the rate could be taken.
    """
    policy, frames = untrained(), random_frames()
    marks: list[tuple[int, float]] = []

    def mark(report: Progress | Validation) -> None:
        if isinstance(report, Progress):
            marks.append((report.step, report.seconds))

    config = TrainConfig(seconds=seconds, batch_size=batch_size, validate_every=NEVER, checkpoint_every=NEVER)
    with tempfile.TemporaryDirectory() as directory:
        train(policy, frames, frames.part(0, 16), config, device, Path(directory) / "state.pt", mark, team)
    late = [entry for entry in marks if entry[1] > 0.75 * seconds]
    if team.leads and (len(late) < 2 or late[-1][1] == late[0][1]):
        raise ArgumentError(
            f"--seconds: expected more than compilation takes, got {seconds:g} for {len(marks)} reports"
        )
    rate = (late[-1][0] - late[0][0]) / (late[-1][1] - late[0][1]) if team.leads else float("nan")
    return {
        "benchmark": "training",
        "batch_size": batch_size,
        "processes": team.size,
        "steps_per_second": rate,
        "frames_per_second": rate * batch_size,
        "first_report_seconds": marks[0][1] if marks else None,
        "versions": provenance.versions(),
        "hardware": provenance.hardware(str(device)),
    }


def untrained() -> Policy:
    """A policy as the shipped `mini` was before its training."""
    manifest = read_manifest(SHIPPED / "mini")
    manifest["architecture"].pop("deviation", None)
    torch.manual_seed(0)
    return build_policy("untrained", manifest | {"gate": None, "accuracy": {}, "provenance": {}, "files": {}})


def random_frames() -> Demonstrations:
    """Frames of the right shapes: the time does not depend on what they show."""
    size, horizon = MiniConfig.image_size, MiniConfig.horizon
    return Demonstrations(
        images=torch.randint(0, 256, (FRAMES, 2, size, size, 3), dtype=torch.uint8),
        proprio=torch.randn(FRAMES, PROPRIO_DIM),
        instruction=torch.arange(FRAMES) % 3,
        actions=2.0 * torch.rand(FRAMES, horizon, ACTION_DIM) - 1.0,
        mask=torch.ones(FRAMES, horizon, dtype=torch.bool),
        weight=torch.ones(FRAMES, dtype=torch.float64),
        wordings=torch.randint(1, 60, (3, WORDINGS, MAX_WORDS)),
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
