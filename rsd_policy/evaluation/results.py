"""What is recorded of an episode: its outcome, the executed actions, and one record per inference."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from rsd_policy.evaluation.protocol import EpisodeSpec
from rsd_policy.observation import ACTION_DIM, ActionChunk

SUCCESS = "success"
FAILURE = "failure"
ERROR = "error"
OUTCOMES = (SUCCESS, FAILURE, ERROR)


@dataclass(frozen=True)
class ChunkRecord:
    """One inference, as the final chunk reports it.

    Attributes:
        step: control step of the episode at which the observation was taken.
        inference_ms: from the call to the final chunk.
        first_action_ms: from the call to the first usable chunk.
        stage_ms: stage -> ms.
        accepted: None when draft and main head were not compared.
        token_agreement: per compared level, of the tokens that carry something; empty when nothing was compared.
        max_deviation: per degree of freedom, action units; empty when nothing was compared.
        audit_deviated: None when not audited.
    """

    step: int
    inference_ms: float
    first_action_ms: float
    stage_ms: dict[str, float] = field(default_factory=dict)
    verified: bool = True
    accepted: bool | None = None
    skipped: bool = False
    levels: int = 0
    token_agreement: tuple[float, ...] = ()
    max_deviation: tuple[float, ...] = ()
    audited: bool = False
    audit_deviated: bool | None = None

    @classmethod
    def from_chunk(cls, step: int, chunk: ActionChunk) -> ChunkRecord:
        stats = chunk.stats
        return cls(
            step=step,
            inference_ms=float(stats.total_ms),
            first_action_ms=float(stats.first_action_ms),
            stage_ms={name: float(value) for name, value in stats.stage_ms.items()},
            verified=chunk.verified,
            accepted=chunk.accepted,
            skipped=chunk.skipped,
            levels=chunk.levels,
            token_agreement=tuple(float(value) for value in stats.token_agreement),
            max_deviation=() if stats.max_deviation is None else tuple(float(v) for v in stats.max_deviation),
            audited=stats.audited,
            audit_deviated=stats.audit_deviated,
        )


@dataclass(frozen=True)
class EpisodeResult:
    """A finished episode.

    Attributes:
        outcome: "success", "failure" (the step limit was reached), or "error" (it could not be run to its end, which
            says nothing about the policy; it is run again on the next call).
        steps: control steps executed, wait steps excluded.
        actions: float32 [steps, 7], what the environment executed.
        wall_s: wall time from reset to the end.
        error: what went wrong, when the outcome is "error".
    """

    spec: EpisodeSpec
    outcome: str
    steps: int
    instruction: str = ""
    actions: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, ACTION_DIM), np.float32))
    chunks: tuple[ChunkRecord, ...] = ()
    wall_s: float = 0.0
    error: str | None = None

    def __post_init__(self) -> None:
        if self.outcome not in OUTCOMES:
            raise ValueError(f"outcome: expected one of {OUTCOMES}, got '{self.outcome}'")
        actions = np.asarray(self.actions, dtype=np.float32)
        if actions.shape != (self.steps, ACTION_DIM):
            raise ValueError(f"actions: expected [{self.steps}, {ACTION_DIM}], got {list(actions.shape)}")
        if (self.outcome == ERROR) != (self.error is not None):
            raise ValueError(f"an error text belongs to outcome 'error' and to no other; got '{self.outcome}'")
        object.__setattr__(self, "actions", actions)

    @property
    def success(self) -> bool:
        return self.outcome == SUCCESS
