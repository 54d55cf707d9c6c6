"""What `benchmarks.ablations` varies: each variant drives an episode with one thing changed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rsd_policy import ActionChunk, Observation, Policy, RSDInferenceEngine
from rsd_policy.engine.gate import Gate
from rsd_policy.errors import ArgumentError, RSDError
from rsd_policy.observation import PROPRIO_DIM
from rsd_policy.settings import IMAGE_SIZE
from rsd_policy.training.mini.paraphrase import wordings
from sim_bridge.libero_assets import task_spec
from sim_bridge.libero_env import LiberoEnv

ALPHAS = (0.02, 0.05, 0.1, 0.2)
LEVELS = (1, 2, 3, 4, 5)
WORDING_SEED = 77
"""Other than training's, so that most of the sentences are new (their words are not)."""

_VALUES: dict[str, tuple[type, float, float]] = {
    "gated": (float, 0.0, 1.0),
    "execute": (int, 1, 255),
    "levels": (int, 1, 255),
}
"""Variants with a value, after a colon: its type, lowest and highest."""

_NAMES = (
    "baseline",
    "gated",
    "gated-without-gripper-rule",
    "draft-only",
    "execute",
    "levels",
    "arg-max-digits",
    "paraphrased",
    "wrong-instruction",
)
"""In the order of the tables."""

VARIANTS = (
    "baseline",
    *(f"gated:{alpha}" for alpha in ALPHAS),
    "gated-without-gripper-rule",
    "draft-only",
    "execute:4",
    *(f"levels:{levels}" for levels in LEVELS),
    "arg-max-digits",
    "paraphrased",
    "wrong-instruction",
)
"""Run by default; others of the same kind can be asked for, such as gated:0.15 or execute:2."""


def variant(text: str) -> str:
    """A variant as it was given, after a look at its name and value.

    Raises:
        ArgumentError: there is no such variant.
    """
    name, _, value = text.partition(":")
    wrong = ArgumentError(
        f"variant: expected one of {', '.join(n + (':VALUE' if n in _VALUES else '') for n in _NAMES)}, got '{text}'"
    )
    if name not in _NAMES or bool(value) != (name in _VALUES):
        raise wrong
    if value:
        kind, low, high = _VALUES[name]
        try:
            number = kind(value)
        except ValueError:
            raise wrong from None
        if not low <= number <= high:
            raise wrong
    return text


def order(text: str) -> tuple[int, float]:
    """Sorts variants as the tables list them."""
    name, _, value = text.partition(":")
    return _NAMES.index(name), float(value or 0)


class Driver:
    """An engine with what a variant changes before and after it.

    Args:
        ask: the observation that the policy gets to see.
        answer: the chunk that is executed.
    """

    needs_images = True

    def __init__(
        self,
        engine: RSDInferenceEngine,
        ask: Callable[[Observation], Observation] = lambda observation: observation,
        answer: Callable[[ActionChunk], ActionChunk] = lambda chunk: chunk,
    ) -> None:
        self._engine, self._ask, self._answer = engine, ask, answer

    def reset(self, env: LiberoEnv) -> None:
        self._engine.reset()

    def infer(self, env: LiberoEnv) -> ActionChunk:
        return self._answer(self._engine.infer(self._ask(env.observe())))


class Drivers:
    """Makes the drivers of a policy; keeps the last engine, since a GPU records its stages for each one anew."""

    def __init__(self, policy: Policy, device: str) -> None:
        self._policy, self._device = policy, device
        self._kept: tuple[str, RSDInferenceEngine] | None = None

    def make(self, text: str, suite: str, task: int, trial: int) -> Driver:
        """The driver of a variant for an episode.

        Raises:
            CheckpointError: the gate cannot keep this alpha, or the policy was never calibrated.
            RSDError: more steps or levels than a chunk has.
        """
        name, _, value = text.partition(":")
        engine = self._engine(text)
        if name == "execute":
            steps = int(value)
            return Driver(engine, answer=lambda chunk: replace(chunk, actions=chunk.actions[:steps]))
        if name == "levels":
            return Driver(engine, answer=lambda chunk: replace(chunk, actions=self._coarse(chunk, int(value))))
        if name in ("paraphrased", "wrong-instruction"):
            words = _paraphrase(suite, task, trial) if name == "paraphrased" else _other_task(suite, task, trial)
            return Driver(engine, ask=lambda observation: replace(observation, instruction=words))
        return Driver(engine)

    def _engine(self, text: str) -> RSDInferenceEngine:
        if self._kept is None or self._kept[0] != text:
            self._kept = None
            engine = self._new_engine(text)
            _warm_up(engine)
            self._kept = (text, engine)
        return self._kept[1]

    def _new_engine(self, text: str) -> RSDInferenceEngine:
        name, _, value = text.partition(":")
        options: dict[str, Any] = {"device": self._device}
        if name == "execute":
            return RSDInferenceEngine(self._policy, "speculative", execute_steps=int(value), **options)
        if name == "arg-max-digits":
            return RSDInferenceEngine(_by_arg_max(self._policy), "speculative", **options)
        if name not in ("gated", "gated-without-gripper-rule", "draft-only"):
            return RSDInferenceEngine(self._policy, "baseline", **options)
        # What is measured is the gate alone: every skipped chunk is verified after the fact, and the audit, which would
        # end the skipping when it finds too many deviations, is told that nothing was promised.
        if name == "draft-only":
            gate = Gate(threshold=0.0, alpha=1.0, steps=self._policy.horizon, gripper_rule=False)
        else:
            kept = gate_of(self._policy.manifest, text)
            gate = replace(kept, alpha=1.0, gripper_rule=name == "gated")
        return RSDInferenceEngine(self._policy, "gated", gate=gate, audit_every=1, **options)

    def _coarse(self, chunk: ActionChunk, levels: int) -> NDArray[Any]:
        assert chunk.tokens is not None, "a chunk of an engine with RFSQ heads has tokens"
        if levels > len(chunk.tokens):
            raise RSDError(f"levels: expected at most {len(chunk.tokens)}, got {levels}")
        return self._policy.codec.decode(torch.from_numpy(chunk.tokens[:levels])).numpy()


def _by_arg_max(policy: Policy) -> Policy:
    """The same weights, but both heads take the likeliest digit of each coarse level, not the cell of the mean."""
    head, draft = copy.copy(policy.head), copy.copy(policy.draft)
    head.choice = draft.choice = "mode"
    return replace(policy, heads=replace(policy.rsd, head=head, draft=draft))


def _warm_up(engine: RSDInferenceEngine) -> None:
    """So that the first chunk of an episode takes no longer than the others: a GPU records the stages here."""
    size = int(IMAGE_SIZE.default)
    black = np.zeros((size, size, 3), np.uint8)
    images = {"agentview": black, "wrist": black}
    for _ in range(2):  # the gate looks at the second one in any case: then there is a last command
        engine.infer(Observation(images, np.zeros(PROPRIO_DIM, np.float32), "do nothing"))
    engine.reset()


def gate_of(manifest: dict[str, Any], text: str) -> Gate:
    """The calibrated gate of a gated variant.

    Raises:
        CheckpointError: there is none, or it cannot keep this alpha.
    """
    _, _, value = text.partition(":")
    return Gate.from_manifest(manifest["gate"], float(value) if value else None)


def _paraphrase(suite: str, task: int, trial: int) -> str:
    own = task_spec(suite, task).instruction
    others = [text for text in wordings(own, 64, WORDING_SEED) if text != own.lower()]
    return others[trial % len(others)]


def _other_task(suite: str, task: int, trial: int) -> str:
    return task_spec(suite, (task + 1 + trial % 9) % 10).instruction
