"""A small committed sample of real action chunks: actions only, so that the codec's study runs without simulation.

./rsd collect --task-suite libero_spatial --demos 3 --out out/demos-codec
./rsd collect --task-suite libero_object --demos 3 --out out/demos-codec
./rsd collect --task-suite libero_goal --demos 3 --out out/demos-codec
./rsd collect --task-suite libero_10 --demos 3 --out out/demos-codec
.venv/bin/python -m benchmarks.codec.sample out/demos-codec --episodes-per-task 3

A directory with more demonstrations will do: of each task those of the lowest seeds are taken which the expert drove
from the beginning.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

import h5py
import numpy as np

from rsd_policy.errors import RSDError
from rsd_policy.training.codec_data import ActionEpisode, read_actions
from sim_bridge.demonstrations import SUFFIX

SAMPLE = Path(__file__).parent / "data" / "libero_actions.npz"


def load_sample(path: Path = SAMPLE) -> list[ActionEpisode]:
    """The episodes of a sample file."""
    with np.load(path, allow_pickle=False) as file:
        actions, executed, noisy = file["actions"], file["executed"], file["noisy"]
        ends = np.cumsum(file["lengths"])
        starts = ends - file["lengths"]
        return [
            ActionEpisode(str(task), actions[start:end], executed[start:end], noisy[start:end])
            for task, start, end in zip(file["tasks"], starts, ends, strict=True)
        ]


def write_sample(episodes: list[ActionEpisode], path: Path = SAMPLE) -> None:
    """Pack the actions of episodes into one compressed file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        path,
        tasks=np.array([e.task for e in episodes]),
        lengths=np.array([len(e.actions) for e in episodes]),
        actions=np.concatenate([e.actions for e in episodes]),
        executed=np.concatenate([e.executed for e in episodes]),
        noisy=np.concatenate([e.noisy for e in episodes]),
    )


def choose(directory: Path, per_task: int) -> list[ActionEpisode]:
    """The first demonstrations of each task, by their seeds, without those that a policy began (DAgger).

    Args:
        directory: written by `rsd collect`, one episode a file.
        per_task: so many of each task, or as many as there are.

    Raises:
        RSDError: there is none, or a file is not one of `rsd collect`.
    """
    episodes, paths = read_actions(directory), sorted(directory.rglob(f"*{SUFFIX}"))  # in the same order
    if len(episodes) != len(paths):
        raise RSDError(f"{directory}: expected one episode a file, got {len(episodes)} in {len(paths)} files")
    chosen: list[ActionEpisode] = []
    taken: Counter[str] = Counter()
    for episode, path in zip(episodes, paths, strict=True):
        if taken[episode.task] < per_task and not _pilot(path):
            chosen.append(episode)
            taken[episode.task] += 1
    if not chosen:
        raise RSDError(f"{directory}: expected demonstrations that the expert drove from the beginning, found none")
    return chosen


def _pilot(path: Path) -> str:
    """The policy that began a demonstration, empty without one."""
    with h5py.File(path, "r") as file:
        return str(file["data"].attrs.get("pilot", ""))


def main(argv: list[str]) -> int:
    """Write the sample from a directory of demonstrations. Returns 0, or 2 for data that cannot be used."""
    parser = argparse.ArgumentParser(prog="benchmarks.codec.sample", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("directory", type=Path, help="demonstrations of `rsd collect`")
    parser.add_argument("--episodes-per-task", type=int, default=3, metavar="N", help="(%(default)s)")
    parser.add_argument("--out", type=Path, default=SAMPLE, metavar="FILE", help="(the committed sample)")
    arguments = parser.parse_args(argv)
    try:
        episodes = choose(arguments.directory, arguments.episodes_per_task)
    except RSDError as error:
        print(f"benchmarks.codec.sample: {error}", file=sys.stderr)
        return 2
    write_sample(episodes, arguments.out)
    tasks, size = len({episode.task for episode in episodes}), arguments.out.stat().st_size / 1024
    print(f"wrote {arguments.out}: {len(episodes)} demonstrations of {tasks} tasks, {size:.0f} KiB")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
