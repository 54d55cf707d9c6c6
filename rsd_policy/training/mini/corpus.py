"""What a training knows of its episodes without their images, of all processes together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rsd_policy.errors import RSDError
from rsd_policy.observation import state_of
from rsd_policy.training.team import Team
from sim_bridge.demonstrations import Demonstration

COLLECTED = "scripted expert, random placements (canonical initial states held out)"
OTHERS = "demonstrations of other projects, from whatever initial states these began"


@dataclass(frozen=True)
class Corpus:
    """The training episodes of all processes.

    Attributes:
        keys: suite, task, seed and pilot of each.
        instructions: all that occur.
        frames: how many.
        others: episodes of other projects' files.
        actions: float32 [*, 7]; proprio: float32 [*, 8 or 10], states in a form of `STATES`, of all episodes in a row.
    """

    keys: list[tuple[str, int, int, str]]
    instructions: set[str]
    frames: int
    others: int
    actions: NDArray[np.float32]
    proprio: NDArray[np.float32]

    @classmethod
    def of(cls, team: Team, episodes: list[Demonstration], state: str) -> Corpus:
        """From this process's episodes and those of the others, their states in that form."""
        if not episodes:
            raise RSDError("training: expected at least one episode, got none; collect more demonstrations")
        own = cls(
            [(e.suite, e.task, e.seed, e.pilot) for e in episodes],
            {e.instruction for e in episodes},
            sum(len(e.frame_steps) for e in episodes),
            sum(not e.collected for e in episodes),
            np.concatenate([e.actions for e in episodes]),
            np.concatenate([state_of(e, state) for e in episodes]),
        )
        parts = team.gather(own)
        return cls(
            [key for part in parts for key in part.keys],
            set().union(*(part.instructions for part in parts)),
            sum(part.frames for part in parts),
            sum(part.others for part in parts),
            np.concatenate([part.actions for part in parts]),
            np.concatenate([part.proprio for part in parts]),
        )

    def summary(self) -> dict[str, Any]:
        """For the checkpoint's provenance."""
        suites = sorted({suite for suite, *_ in self.keys})
        seeds = {suite: [seed for s, _, seed, _ in self.keys if s == suite] for suite in suites}
        pilots = [pilot for *_, pilot in self.keys if pilot]
        collected = [COLLECTED] if self.others < len(self.keys) else []
        return {
            "source": " and ".join(collected + ([OTHERS] if self.others else [])),
            "tasks": {suite: sorted({task for s, task, *_ in self.keys if s == suite}) for suite in suites},
            "seeds": {suite: [min(seeds[suite]), max(seeds[suite])] for suite in suites},
            "training_episodes": len(self.keys),
            "episodes_of_others": self.others,
            "dagger_episodes": len(pilots),
            "dagger_pilots": sorted(set(pilots)),
            "frames": self.frames,
        }
