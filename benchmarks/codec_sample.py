"""A small committed sample of real action chunks: actions only, so that the codec's study runs without simulation.

./rsd collect --task-suite libero_spatial --demos 3 --out out/demos-codec
./rsd collect --task-suite libero_object --demos 3 --out out/demos-codec
.venv/bin/python -m benchmarks.codec_sample out/demos-codec
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from rsd_policy.training.fit_codec_data import ActionEpisode, read_actions

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


def main(argv: list[str]) -> int:
    """Write the sample from a directory of demonstrations."""
    if len(argv) != 1:
        print("usage: python -m benchmarks.codec_sample DIRECTORY", file=sys.stderr)
        return 2
    write_sample(read_actions(Path(argv[0])))
    print(f"wrote {SAMPLE}, {SAMPLE.stat().st_size / 1024:.0f} KiB")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
