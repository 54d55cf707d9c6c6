"""From recorded rollouts to a predictor of the deviation and the gate's curve.

Episodes are split per task: half train the predictor (a quarter of those stops the training early, chooses, and gives
the thresholds to test), half calibrate. No episode serves for both, so the calibration half says nothing but how the
finished predictor does on episodes it never saw.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from rsd_policy.checkpoints.loading import Policy
from rsd_policy.engine.acceptance import steps_within
from rsd_policy.engine.calibration import Chunks, Curve, thresholds_from
from rsd_policy.engine.gate import Gate
from rsd_policy.errors import RSDError
from rsd_policy.heads import DeviationPredictor
from rsd_policy.training.gate.rollouts import Rollout

WIDTH = 64
EPOCHS = 200
PATIENCE = 25
"""Epochs without a better loss on the held-out episodes after which training ends."""

DOUBT_ITERATIONS, DOUBT_PENALTY = 60, 1e-4
"""Steps of LBFGS at most; and the loss that a weight of 1 costs."""

LEAST_GAIN = 1e-4
"""In held-out loss; less than that is no better."""

START_GRIPPER = -1.0
"""In LIBERO the hand is told to open while the objects settle, before the first observation."""

LEAST_RANKING_GAIN = 0.01
"""In the area under the curve, for the correction to be kept: half a standard error of some hundred chunks."""

LEAST_EPISODES = 6
"""Two to train, one to stop, three to calibrate: enough to run, though hardly for a guarantee."""


@dataclass(frozen=True)
class Rows:
    """Chunks of some episodes as tensors.

    Attributes:
        inputs: hidden, margins [N, levels, T, D], draft actions, last action, first: see DeviationPredictor.forward.
        within: float32 [N, T], 1 where the first t steps are within tolerance.
        eligible: bool [N], the gripper rule lets the gate decide.
        episode: int [N].
    """

    inputs: tuple[Tensor, ...]
    within: Tensor
    eligible: NDArray[np.bool_]
    episode: NDArray[np.int64]

    def logits_of(self, predictor: DeviationPredictor, index: Tensor | slice = slice(None)) -> Tensor:
        """Log-probability [N, T] of the rows at `index`."""
        hidden, margins, actions, last, first = (tensor[index] for tensor in self.inputs)
        return predictor.log_probability(hidden, margins.transpose(0, 1), actions, last, first)


def split(rollouts: Sequence[Rollout], seed: int) -> tuple[list[Rollout], list[Rollout], list[Rollout]]:
    """Episodes to train on, to stop by, and to calibrate on; each task in about the same shares.

    Raises:
        RSDError: too few episodes.
    """
    if len(rollouts) < LEAST_EPISODES:
        raise RSDError(f"calibration: expected at least {LEAST_EPISODES} episodes, got {len(rollouts)}")
    rng = np.random.default_rng(seed)
    order = sorted(rollouts, key=lambda r: (r.place.suite, r.place.task, rng.random()))
    train: list[Rollout] = []
    stop: list[Rollout] = []
    calibrate: list[Rollout] = []
    for i, rollout in enumerate(order):
        (calibrate if i % 2 else stop if (i // 2) % 4 == 2 else train).append(rollout)
    if not stop:
        stop.append(train.pop())
    return train, stop, calibrate


def to_rows(rollouts: Sequence[Rollout], tolerance: NDArray[np.float32], steps: int) -> Rows:
    """Stack chunks; eligibility is the gate's own rule for `steps` executed steps."""
    rule = Gate(threshold=0.0, alpha=1.0, steps=steps, start_gripper=START_GRIPPER)

    def stacked(name: str) -> Any:
        return np.concatenate([getattr(r, name) for r in rollouts])

    draft, last, first = stacked("draft_actions"), stacked("last_action"), stacked("first")
    good = steps_within(draft, stacked("main_actions"), tolerance)
    arrays = (stacked("hidden"), stacked("margins"), draft, last, first)
    return Rows(
        inputs=tuple(torch.from_numpy(array) for array in arrays),
        within=torch.from_numpy((good[:, None] > np.arange(draft.shape[1])).astype(np.float32)),
        eligible=np.array(
            [rule.eligible(d, None if f else a) for d, a, f in zip(draft, last, first, strict=True)], dtype=bool
        ),
        episode=np.repeat(np.arange(len(rollouts)), [len(r.first) for r in rollouts]),
    )


def fit_predictor(
    policy: Policy, train: Rows, stop: Rows, seed: int, report: Callable[[str, int, float, float], None]
) -> DeviationPredictor:
    """Train a predictor by cross-entropy over all prefixes; keep the weights that did best on `stop`.

    The weights of the doubts come first, a few numbers that the chunks of `train` determine well, then everything
    together. The correction is kept when it ranks the chunks of `stop` clearly better than the doubts alone
    do: trained on some hundred chunks it lowers the loss and ranks worse.

    Args:
        report: called with what is trained, epoch, training loss and loss on `stop`.

    Returns:
        the predictor in evaluation mode on the CPU; its weights are rounded to float16, as checkpoints store them, so
        that the calibration is that of the stored predictor.
    """
    torch.manual_seed(seed)
    predictor = DeviationPredictor(
        policy.backbone.hidden_size,
        policy.horizon,
        policy.backbone.slots,
        policy.draft.levels,
        width=WIDTH,
        choice=policy.draft.choice,
    )
    generator = torch.Generator().manual_seed(seed)

    def held_out() -> float:
        with torch.inference_mode():
            return _cross_entropy(stop.logits_of(predictor), stop.within).item()

    loss = _fit_doubts(predictor, train)
    best, best_epoch, best_state = held_out(), 0, copy.deepcopy(predictor.state_dict())
    doubts_alone = best_state
    report("doubts", 0, loss, best)
    optimizer = torch.optim.AdamW(predictor.parameters(), lr=5e-4, weight_decay=0.3)
    for epoch in range(EPOCHS):
        loss = _epoch(predictor, optimizer, train, generator)
        now = held_out()
        report("all", epoch, loss, now)
        if now < best - LEAST_GAIN:
            best, best_epoch, best_state = now, epoch, copy.deepcopy(predictor.state_dict())
        elif epoch - best_epoch >= PATIENCE:
            break
    if _ranking(predictor, best_state, stop) < _ranking(predictor, doubts_alone, stop) + LEAST_RANKING_GAIN:
        best_state = doubts_alone
    predictor.load_state_dict({key: value.half().float() for key, value in best_state.items()})
    return predictor.eval().requires_grad_(False)


def _fit_doubts(predictor: DeviationPredictor, train: Rows) -> float:
    """Minimise the loss over the weights of the doubts with a quasi-Newton method. Returns what it came to."""
    parameters = list(predictor.doubt.parameters())
    optimizer = torch.optim.LBFGS(parameters, max_iter=DOUBT_ITERATIONS, line_search_fn="strong_wolfe")
    predictor.eval()

    def closure() -> Tensor:
        optimizer.zero_grad()
        # The penalty is for the few chunks that some weights tell apart without error, the larger the better.
        loss = _cross_entropy(train.logits_of(predictor), train.within)
        penalised = loss + DOUBT_PENALTY * predictor.doubt.weight.square().sum()
        penalised.backward()
        return penalised

    optimizer.step(closure)
    return closure().item()


@torch.inference_mode()
def _ranking(predictor: DeviationPredictor, state: dict[str, Tensor], rows: Rows) -> float:
    """Area under the curve of these weights for whole chunks; 0 where all or none deviate."""
    predictor.load_state_dict(state)
    whole = rows.within[:, -1].numpy() == 0
    return float(np.nan_to_num(_auc(rows.logits_of(predictor)[:, -1].double().numpy(), whole)))


def _epoch(
    predictor: DeviationPredictor, optimizer: torch.optim.Optimizer, train: Rows, generator: torch.Generator
) -> float:
    """One pass in random order; leaves the predictor in evaluation mode. Returns the mean loss."""
    predictor.train()
    losses = []
    for index in torch.randperm(len(train.within), generator=generator).split(128):
        loss = _cross_entropy(train.logits_of(predictor, index), train.within[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    predictor.eval()
    return float(np.mean(losses))


def _cross_entropy(log_probability: Tensor, within: Tensor) -> Tensor:
    log_probability = log_probability.clamp(max=-1e-6)
    missed = torch.log(-torch.expm1(log_probability))
    return -(within * log_probability + (1.0 - within) * missed).mean()


@torch.inference_mode()
def to_chunks(rows: Rows, predictor: DeviationPredictor, steps: int) -> Chunks:
    """Rows as the gate sees them when `steps` are executed."""
    score = rows.logits_of(predictor).exp()[:, steps - 1].double().numpy()
    return Chunks(rows.episode, score, rows.eligible, rows.within[:, steps - 1].numpy() == 0)


def measure_curve(stop: Chunks, calibrate: Chunks) -> Curve:
    """Curve of the calibration episodes at thresholds given by the others.

    Raises:
        RSDError: no chunk is eligible, so that there is nothing to choose.
    """
    if not stop.eligible.any():
        raise RSDError("calibration: every chunk changes the gripper: the gate has nothing to decide")
    return Curve.measure(calibrate, thresholds_from(stop.score[stop.eligible]))


def quality(rows: Rows, chunks: Chunks, steps: int) -> dict[str, float]:
    """How well the score, and the draft's own mean margin for comparison, tell deviating chunks from others.

    Area under the receiver operating characteristic over eligible chunks: 0.5 is chance, 1 is perfect.
    """
    margins = rows.inputs[1][:, :, :steps, :-1].clamp(max=4.0).mean(dim=(1, 2, 3)).double().numpy()
    keep = chunks.eligible
    bad = chunks.deviates[keep]
    probability = torch.from_numpy(chunks.score[keep]).clamp(1e-6, 1 - 1e-6)
    loss = functional.binary_cross_entropy(probability, torch.from_numpy(~bad).double())
    return {
        "auc": round(_auc(chunks.score[keep], bad), 4),
        "auc_of_mean_margin": round(_auc(margins[keep], bad), 4),
        "cross_entropy": round(float(loss), 4),
        "within_tolerance": round(float((~bad).mean()), 4),
        "mean_probability": round(float(chunks.score[keep].mean()), 4),
    }


def _auc(score: NDArray[np.float64], bad: NDArray[np.bool_]) -> float:
    """P(score of a good chunk > score of a bad one), ties half; NaN without one of either."""
    good, worse = score[~bad], np.sort(score[bad])
    if not len(good) or not len(worse):
        return float("nan")
    below = np.searchsorted(worse, good, "left") + np.searchsorted(worse, good, "right")
    return float(below.mean() / 2 / len(worse))
