"""Rollouts for calibration: what draft and main head say in the states that the policy itself gets into.

The policy drives from random placements; canonical initial states are never used. At every chunk both heads are asked
and, with probability DRAFT_SHARE, the draft's chunk is what is executed: so the states to which skipping leads are
among those recorded, next to those to which verifying leads. One file per episode.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rsd_policy.backbones.base import hidden_states
from rsd_policy.checkpoints.external import PLACES
from rsd_policy.checkpoints.loading import Policy
from rsd_policy.errors import NonFiniteError, RSDError
from rsd_policy.files import whole_file
from rsd_policy.observation import ACTION_DIM, Observation
from sim_bridge.libero_env import LiberoEnv

DRAFT_SHARE = 0.5


@dataclass(frozen=True)
class Place:
    """One episode: a LIBERO task and the seed of its random placement."""

    suite: str
    task: int
    seed: int

    def path(self, directory: Path) -> Path:
        """Where its recording is kept."""
        return directory / self.suite / f"task-{self.task:02d}" / f"seed-{self.seed}.npz"


@dataclass(frozen=True)
class Rollout:
    """Recording of one episode of n chunks.

    Attributes:
        place: task and seed.
        policy: `fingerprint` of the policy that drove.
        execute_steps: steps executed of each chunk.
        success: the task was solved.
        hidden: float16 [n, slots, hidden_size], action slots after layer k.
        margins: float32 [n, levels, T, 7] of the draft.
        draft_actions, main_actions: float32 [n, T, 7].
        last_action: float32 [n, 7], executed last before the chunk; zeros for the first.
        first: bool [n], the chunk is the episode's first.
        executed_draft: bool [n], the draft's chunk was executed.
    """

    place: Place
    policy: str
    execute_steps: int
    success: bool
    hidden: NDArray[np.float16]
    margins: NDArray[np.float32]
    draft_actions: NDArray[np.float32]
    main_actions: NDArray[np.float32]
    last_action: NDArray[np.float32]
    first: NDArray[np.bool_]
    executed_draft: NDArray[np.bool_]

    def save(self, directory: Path) -> None:
        """Write the file; a reader sees all of it or none."""
        path = self.place.path(directory)
        path.parent.mkdir(parents=True, exist_ok=True)
        fields = {name: value for name, value in vars(self).items() if name != "place"}
        with whole_file(path) as partial, partial.open("wb") as file:
            np.savez_compressed(file, **fields, **vars(self.place))

    @classmethod
    def load(cls, path: Path) -> Rollout:
        """Read a file of `save`.

        Raises:
            RSDError: it is not one.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                values: dict[str, Any] = {name: file[name] for name in file.files}
            for name, value in values.items():
                if value.ndim == 0:
                    values[name] = value.item()
            place = Place(*(values.pop(name) for name in ("suite", "task", "seed")))
            return cls(place=place, **values)
        except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
            raise RSDError(f"{path}: expected a recorded rollout: {error}; delete it and record it again") from error


def fingerprint(policy: Policy) -> str:
    """Hex digest of what decides the draft's and the main head's actions: the gate is not part of it."""
    # where an external backbone lies does not count: its identity is in the same entry
    architecture = {
        part: {name: size for name, size in sizes.items() if name not in PLACES} if isinstance(sizes, dict) else sizes
        for part, sizes in policy.manifest["architecture"].items()
        if part != "deviation"
    }
    digest = hashlib.sha256(f"{policy.exit_layer} {policy.manifest['codec']} {architecture}".encode())
    for name, module in policy.modules().items():
        if name != "deviation":
            for key, tensor in sorted(module.state_dict().items()):
                digest.update(f"{name}.{key}".encode())
                digest.update(tensor.detach().cpu().half().contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


@torch.inference_mode()
def look(policy: Policy, observation: Observation) -> dict[str, NDArray[Any]]:
    """Both heads' answers, computed as the engine does."""
    inputs = policy.backbone.preprocess([observation])
    hidden, late = hidden_states(policy.backbone, inputs, policy.exit_layer)
    draft, margins = policy.draft(hidden)
    main, main_margins = policy.head(late)
    if not bool(torch.isfinite(margins).all() and torch.isfinite(main_margins).all()):
        raise NonFiniteError("calibration: the model's logits hold NaN or infinity; check the checkpoint (rsd doctor)")
    return {
        "hidden": hidden[0].float().clamp(-65504.0, 65504.0).half().cpu().numpy(),
        "margins": margins[:, 0].float().cpu().numpy(),
        "draft_actions": policy.codec.decode(draft)[0].cpu().numpy(),
        "main_actions": policy.codec.decode(main)[0].cpu().numpy(),
    }


def roll_out(env: LiberoEnv, policy: Policy, place: Place, policy_digest: str, execute_steps: int) -> Rollout:
    """Drive one episode and record it.

    Args:
        env: of the place's task, with a renderer.
        policy: on its device.
    """
    env.reset(None, seed=place.seed)
    coin = np.random.default_rng([place.seed, place.task])
    last = np.zeros(ACTION_DIM, np.float32)
    rows: list[dict[str, Any]] = []
    success, steps = False, 0
    while not success and steps < env.max_steps:
        row: dict[str, Any] = look(policy, env.observe())
        row |= {"last_action": last, "first": not rows, "executed_draft": bool(coin.random() < DRAFT_SHARE)}
        rows.append(row)
        chunk = row["draft_actions" if row["executed_draft"] else "main_actions"][:execute_steps]
        for i, action in enumerate(chunk[: env.max_steps - steps]):
            last = np.clip(action, -1.0, 1.0)
            success = env.step(last, render=i == len(chunk) - 1)
            steps += 1
            if success:
                break
    return Rollout(
        place=place,
        policy=policy_digest,
        execute_steps=execute_steps,
        success=success,
        **{name: np.stack([row[name] for row in rows]) for name in rows[0]},
    )
