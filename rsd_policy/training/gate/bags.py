"""Recordings for calibration out of bags: what draft and main head say to the user's own cameras.

A bag counts as one episode, whatever is in it: its moments depend on each other, and the promise is about the next bag.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rsd_policy.bags.playback import Playback, read_recorded
from rsd_policy.bags.reader import METADATA, SUFFIXES, Bag
from rsd_policy.checkpoints.loading import Policy
from rsd_policy.engine.calibration import episodes_needed
from rsd_policy.errors import RSDError
from rsd_policy.observation import ACTION_DIM
from rsd_policy.robots.contract import Contract
from rsd_policy.training.gate.rollouts import Place, Rollout, fingerprint, look

SOURCE = "bags of robot '{robot}': both heads on the recorded observations; a bag is one episode"


def find_bags(paths: Sequence[Path]) -> list[Path]:
    """Bags: the paths themselves, and what lies in those that are folders of bags."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir() and not (path / METADATA).exists() and not _files(path):
            found += sorted(inner for inner in path.iterdir() if inner.is_dir() or inner.suffix in SUFFIXES)
        else:
            found.append(path)
    return found


def _files(path: Path) -> bool:
    """Whether the files of one bag lie in a directory."""
    return any(inner.suffix in (*SUFFIXES, ".zstd") for inner in path.iterdir())


def check_number(bags: Sequence[Path], alpha: float) -> None:
    """Refuse bags that are too few for a promise, before anything is computed.

    Raises:
        RSDError: says how many would suffice.
    """
    needed = 2 * episodes_needed(alpha)
    if len(bags) < needed:
        raise RSDError(
            f"--bags: alpha {alpha:g} needs at least {needed} bags, got {len(bags)}: every second one calibrates, and "
            f"a bag is one trial of the promise; record {needed - len(bags)} more, or give a larger --alpha"
        )


def from_bag(path: Path, contract: Contract, policy: Policy, steps: int, number: int, period_s: float) -> Rollout:
    """Ask both heads about every observation of a bag that a replay would show.

    Args:
        steps: executed of each chunk.
        number: of the bag, which tells it from the others.
        period_s: as of `Playback`.

    Raises:
        RSDError: the bag holds no observation.
    """
    rows: list[dict[str, Any]] = []
    context = None
    with Bag(path) as bag:
        playback = Playback(bag, contract, read_recorded(bag, contract), period_s=period_s)
        for shown in playback.observations():
            first = shown.context != context
            context = shown.context
            last = shown.executed
            if first or not rows:
                last = np.zeros(ACTION_DIM, np.float32)
            elif last is None:
                last = np.clip(rows[-1]["main_actions"][steps - 1], -1.0, 1.0)
            rows.append(
                look(policy, shown.observation) | {"last_action": last, "first": first, "executed_draft": False}
            )
    if not rows:
        raise RSDError(f"{path}: no observation could be made of this bag; `rsd robot check` says why")
    return Rollout(
        place=Place(contract.robot, 0, number),
        policy=fingerprint(policy),
        execute_steps=steps,
        success=False,
        **{name: np.stack([row[name] for row in rows]) for name in rows[0]},
    )
