"""Training of RFSQHead, then of RFSQDraftModel, on the stored hidden states of a frozen backbone.

    head:   loss = sum_l w_l CE(head_l(late; labels), labels)
    draft:  loss = (1 - distill) * sum_l w_l CE(draft_l(early; labels), labels)
                 +      distill  * sum_l w_l CE(draft_l(early; g), g),    g = tokens of the trained head

Teacher forcing throughout: level l reads the digits of the levels before it from the target. The second term is about
what decides acceptance, agreement with the head, and counts every step, whether its label is valid or not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rsd_policy.checkpoints.loading import Policy
from rsd_policy.errors import NonFiniteError, RSDError
from rsd_policy.files import whole_file
from rsd_policy.heads import RFSQHead
from rsd_policy.training.heads.extract import HiddenStates
from rsd_policy.training.mini.parameter_vector import parameter_groups
from rsd_policy.training.mini.trainer import LEVEL_WEIGHTS, schedule, token_loss
from rsd_policy.training.mini.validate import HiddenBatch

PHASES = ("head", "draft")


@dataclass(frozen=True)
class HeadConfig:
    """Hyper-parameters of both phases; stored in the checkpoint's provenance."""

    steps: int = 500
    batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup_steps: int = 50
    distill: float = 0.5
    seed: int = 0
    checkpoint_every: int = 100


@dataclass(frozen=True)
class HeadProgress:
    """One report: accuracy is teacher-forced, per level, on the training batch."""

    phase: str
    step: int
    loss: float
    accuracy: tuple[float, ...]


def fit_heads(
    policy: Policy,
    data: HiddenStates,
    config: HeadConfig,
    device: torch.device,
    state_path: Path,
    report: Callable[[HeadProgress], None],
) -> None:
    """Train head and draft of a policy in place, weights in float32; leaves them in evaluation mode.

    Args:
        policy: its codec makes the labels; its backbone is not touched.
        data: training frames.
        state_path: where the resumable state is kept; an existing one of the same configuration is continued.
        report: called after every step.

    Raises:
        NonFiniteError: the loss is not finite; the last saved state is intact.
        RSDError: the state is that of another configuration.
    """
    saved = _load(state_path, config, len(data), device)
    for phase in PHASES:
        head = getattr(policy, phase).to(device).float()
        state = saved.get(phase)
        if state and state["step"] == config.steps:
            head.load_state_dict(state["model"])
        else:
            run = _Phase(phase, policy, head, data, config, device)
            run.resume(state)
            for _ in run.train(report):
                saved[phase] = run.state()
                _save(state_path, config, len(data), saved)
        head.eval().requires_grad_(False)


class _Phase:
    """Optimisation of one head."""

    def __init__(
        self,
        name: str,
        policy: Policy,
        head: RFSQHead,
        data: HiddenStates,
        config: HeadConfig,
        device: torch.device,
    ) -> None:
        self.name = name
        self.policy = policy
        self.head = head.train().requires_grad_(True)
        self.data = data
        self.config = config
        self.device = device
        self.step = 0
        self.weights = torch.tensor(LEVEL_WEIGHTS, device=device)
        groups = parameter_groups(head, config.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95))

    def state(self) -> dict[str, Any]:
        return {"model": self.head.state_dict(), "optimizer": self.optimizer.state_dict(), "step": self.step}

    def resume(self, state: dict[str, Any] | None) -> None:
        if state:
            self.head.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step = int(state["step"])

    def train(self, report: Callable[[HeadProgress], None]) -> Iterator[None]:
        """Train to the end; yields whenever the state is to be saved."""
        config = self.config
        while self.step < config.steps:
            for group in self.optimizer.param_groups:
                group["lr"] = config.learning_rate * schedule(self.step, config.warmup_steps, self.step / config.steps)
            # Drawn from the step's own seed: a resumed training sees the batches that an uninterrupted one sees.
            generator = torch.Generator().manual_seed(config.seed * 1_000_003 + self.step)
            rows = torch.randint(len(self.data), (config.batch_size,), generator=generator)
            batch = self.data.batch(rows, self.device)
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.device.type == "cuda"):
                loss, accuracy = self.loss(batch)
            value = loss.item()
            if not math.isfinite(value):
                raise NonFiniteError(f"loss of the {self.name} at step {self.step}: expected a finite one, got {value}")
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(self.head.parameters(), 1.0)
            self.optimizer.step()
            self.step += 1
            report(HeadProgress(self.name, self.step, value, tuple(accuracy.tolist())))
            if self.step % config.checkpoint_every == 0 or self.step == config.steps:
                yield

    def loss(self, batch: HiddenBatch) -> tuple[Tensor, Tensor]:
        labels = self.policy.codec.encode(batch.actions)
        hidden = batch.late if self.name == "head" else batch.early
        features = self.head.features(hidden)
        logits = self.head.level_logits(features, labels).float()
        loss, accuracy = token_loss(logits, labels, batch.mask, self.weights)
        if self.name == "head":
            return loss, accuracy
        with torch.no_grad():
            tokens, _ = self.policy.head(batch.late)
        everywhere = torch.ones_like(batch.mask)
        logits = self.head.level_logits(features, tokens).float()
        distilled, _ = token_loss(logits, tokens, everywhere, self.weights)
        return (1.0 - self.config.distill) * loss + self.config.distill * distilled, accuracy


def _load(path: Path, config: HeadConfig, frames: int, device: torch.device) -> dict[str, Any]:
    if not path.is_file():
        return {}
    state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    wanted = {**vars(config), "frames": frames}
    if state.pop("config") != wanted:
        raise RSDError(f"{path}: training state of other settings or data than {wanted}; remove it to start anew")
    return state


def _save(path: Path, config: HeadConfig, frames: int, phases: dict[str, Any]) -> None:
    with whole_file(path) as partial:
        torch.save({"config": {**vars(config), "frames": frames}, **phases}, partial)
