"""Training loop of `mini`: backbone, main head and draft jointly, by teacher-forced cross-entropy on RFSQ levels.

    loss = sum_l w_l CE(main level l) + l1_weight * |a - a_L1|
         + draft_weight * sum_{l<3} w_l [(1 - m) CE(draft level l) + m CE(draft level l, main's probabilities)]
         + codistillation * sum_{l<3} w_l CE(main level l, draft's probabilities)
         + consistency * mean over steps of the largest |E draft - E main| / tolerance

The draft hangs on the hidden states after layer k and sends its gradient into layers 0 .. k-1, so that these layers
learn to carry what the draft needs. A share m of its loss is distillation (Hinton et al., 2015): it is accepted when it
says what the main head says, so it learns the main head's probabilities, also on steps whose label is masked. The main
head learns a little of the draft's in turn: two models that teach each other disagree less by chance (codistillation:
Anil et al., 2018). What is compared in the end are means, and by the tolerance: the last term is nearly that, E being
the mean of the two coarsest levels' joint distribution. Targets are constants. The L1 regressor gives the backbone a
gradient that knows distances, which cross-entropy does not, and is not kept.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from rsd_policy.checkpoints.loading import Policy
from rsd_policy.errors import NonFiniteError
from rsd_policy.files import whole_file
from rsd_policy.heads import RFSQHead
from rsd_policy.observation import ACTION_DIM, GRIPPER
from rsd_policy.training.mini.augment import augment_images
from rsd_policy.training.mini.dataset import Demonstrations
from rsd_policy.training.mini.parameter_vector import FlatTraining
from rsd_policy.training.mini.validate import accuracy, predict
from rsd_policy.training.team import Team

LEVEL_WEIGHTS = (1.0, 1.0, 0.8, 0.5, 0.3, 0.2, 0.1, 0.1)
"""Weight of each level's cross-entropy: the last levels are hundredths of a millimetre and mostly noise."""

MEAN_LEVELS = 2
"""Levels in the mean of the consistency: the next one's cells are a quarter of the tolerance, its work is threefold."""

IMPOSSIBLE = -1e4
"""Least log-probability in a product with a probability: a digit that a level does not have has -inf, and 0 times -inf
is not 0."""


@dataclass(frozen=True)
class TrainConfig:
    """Hyper-parameters; stored in the checkpoint's provenance.

    Attributes:
        seconds: of training, resumed runs counted in, that take the place of `steps`: the learning rate falls as they
            pass. 0 for a number of steps.
        batch_size: frames per step, of all processes together.
        snapshot_every: steps between two copies of the averaged policy, 0 for none.
    """

    steps: int = 4000
    seconds: float = 0.0
    batch_size: int = 512
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup_steps: int = 200
    ema_decay: float = 0.998
    max_shift: int = 5
    colour: float = 0.2
    proprio_noise: float = 0.02
    draft_weight: float = 1.0
    distillation: float = 0.5
    codistillation: float = 0.2
    consistency: float = 0.5
    l1_weight: float = 2.0
    seed: int = 0
    checkpoint_every: int = 500
    validate_every: int = 1000
    snapshot_every: int = 0


@dataclass(frozen=True)
class Progress:
    """One report of the loop: accuracies of the running training batch, teacher-forced."""

    step: int
    seconds: float
    loss: float
    main_accuracy: tuple[float, ...]
    draft_accuracy: tuple[float, ...]


@dataclass(frozen=True)
class Validation:
    """Figures of the averaged weights on held-out frames; see `rsd_policy.training.mini.validate.accuracy`."""

    step: int
    figures: dict[str, Any]


class _TrainingModel(nn.Module):
    """Policy parts plus the auxiliary regressor, with one forward, losses included, for the compiler."""

    def __init__(self, policy: Policy, config: TrainConfig) -> None:
        super().__init__()
        self.config = config
        self.level_weights: Tensor
        self.register_buffer("level_weights", torch.tensor(LEVEL_WEIGHTS), persistent=False)
        self.backbone = policy.mini
        self.head = policy.head
        self.draft = policy.draft
        self.exit_layer = policy.exit_layer
        self.regressor = nn.Linear(policy.head.width, 1)
        tolerance = torch.tensor(policy.manifest["acceptance"]["tolerance"], dtype=torch.float64)
        self.cell_widths: Tensor
        widths = policy.codec.widths[MEAN_LEVELS - 1, :GRIPPER].cpu() / tolerance
        self.register_buffer("cell_widths", widths.float(), persistent=False)

    def forward(
        self, pixels: Tensor, proprio: Tensor, words: Tensor, tokens: Tensor, actions: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The loss of the module's docstring, and the accuracies per level of main head and draft."""
        x = self.backbone.embed_pixels(pixels, proprio, words)
        x = self.backbone.forward_layers(x, 0, self.exit_layer)
        draft_features = self.draft.features(self.backbone.exit_hidden(x))
        draft = self.draft.level_logits(draft_features, tokens)
        x = self.backbone.forward_layers(x, self.exit_layer, self.backbone.num_layers)
        hidden = self.backbone.action_hidden(x)
        features = self.head.features(hidden)
        main = self.head.level_logits(features, tokens)
        regressed = self.regressor(features).view(len(pixels), -1, ACTION_DIM)
        loss, main_hit, draft_hit = self._loss(main.float(), draft.float(), regressed.float(), tokens, actions, mask)
        difference = self._means(self.draft, draft_features) - self._means(self.head, features).detach()
        apart = difference.abs().amax(dim=-1).mean()
        return loss + self.config.consistency * apart, main_hit, draft_hit

    def _means(self, head: RFSQHead, features: Tensor) -> Tensor:
        """[B, T, 6], mean of the coarsest levels, in tolerances from the least action."""
        probability = head.cell_probabilities(features, MEAN_LEVELS)
        cells = torch.arange(probability.shape[-1], dtype=probability.dtype, device=probability.device)
        mean = (probability * cells).sum(dim=-1)  # a matrix product would be in bfloat16
        return mean.unflatten(1, (-1, ACTION_DIM))[..., :GRIPPER] * self.cell_widths

    def _loss(
        self, main: Tensor, draft: Tensor, regressed: Tensor, tokens: Tensor, actions: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        config, weights = self.config, self.level_weights
        main_loss, main_hit = token_loss(main, tokens, mask, weights)
        label_loss, draft_hit = token_loss(draft, tokens, mask, weights)
        taught = distillation_loss(draft, main, weights)
        draft_loss = (1.0 - config.distillation) * label_loss + config.distillation * taught
        main_loss = main_loss + config.codistillation * distillation_loss(main[: len(draft)], draft, weights)
        l1 = ((regressed - actions).abs().mean(-1) * mask).sum() / mask.sum().clamp(min=1)
        return main_loss + config.draft_weight * draft_loss + config.l1_weight * l1, main_hit, draft_hit


def train(
    policy: Policy,
    data: Demonstrations,
    held_out: Demonstrations,
    config: TrainConfig,
    device: torch.device,
    state_path: Path,
    report: Callable[[Progress | Validation], None],
    team: Team | None = None,
    snapshot: Callable[[int, Policy], None] | None = None,
) -> Policy:
    """Train a policy and return it with averaged (EMA) weights.

    Args:
        policy: from `build_policy`; trained in place.
        data: training frames, moved to the device whole.
        held_out: frames for the validation curve.
        state_path: where the resumable state is kept; an existing one is continued.
        report: called about once a second of training with the running figures, and after each validation.
        team: processes that train together; each is given the same policy and configuration, and its own part of the
            data. The first alone validates, saves and reports.
        snapshot: given the step and the averaged policy every `snapshot_every` steps, for what cannot wait for the end
            of the training, such as the pilot of `rsd collect --policy`.

    Raises:
        NonFiniteError: the loss is not finite; the last saved state is intact.
    """
    team = team or Team()
    torch.manual_seed(config.seed)
    model = _TrainingModel(policy, config).to(device).train().requires_grad_(True)
    training = FlatTraining(model, config.learning_rate, config.weight_decay)
    average, optimizer = training.average, training.optimizer
    step, seconds = 0, 0.0
    if state_path.is_file():
        state = torch.load(state_path, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        step, seconds = int(state["step"]), float(state["seconds"])
    # Every process draws other frames, and a resumed run others than before.
    own_seed = [config.seed, step, team.rank]
    torch.manual_seed(int(np.random.SeedSequence(own_seed).generate_state(1)[0]))
    generator = torch.Generator(device).manual_seed(torch.initial_seed())
    batch_size = team.share(config.batch_size)
    compiled = torch.compile if device.type == "cuda" else _as_it_is
    forward, augment = compiled(model), compiled(augment_images)
    frames = data.to(device)
    # Once and not for each batch: the codec checks its input, and a check makes the CPU wait for the GPU.
    labels = policy.codec.encode(frames.actions).to(torch.uint8)
    started = time.monotonic() - seconds
    last_report, first_step = 0.0, step
    pace = _Pace(config, team)
    while (done := pace.done(step, time.monotonic() - started)) < 1.0:
        index = frames.draw(batch_size, generator)
        batch, tokens = frames.rows(index), labels[:, index].long()
        pixels = augment(batch.images, config.max_shift, config.colour)
        proprio = batch.proprio + config.proprio_noise * policy.mini.proprio_std * torch.randn_like(batch.proprio)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
            loss, *hits = forward(pixels, proprio, batch.reworded(generator), tokens, batch.actions, batch.mask)
        loss.backward()
        decay = min(config.ema_decay, (2.0 + step) / (11.0 + step))
        training.step(schedule(step, config.warmup_steps, done), decay, team)
        step += 1
        seconds = time.monotonic() - started
        if seconds - last_report > 1.0:
            last_report = seconds
            running = _progress(step, seconds, loss, hits)
            if team.leads:
                report(running)
        if not team.leads:
            continue
        if step % config.validate_every == 0:
            report(Validation(step, _validate(policy, average, held_out, device)))
        if snapshot and config.snapshot_every and step % config.snapshot_every == 0:
            snapshot(step, _averaged(policy, average))
        if step % config.checkpoint_every == 0:
            _save_state(state_path, model, average, optimizer, step, seconds)
    if team.leads and step > first_step:
        report(_progress(step, seconds, loss, hits))
        if step % config.validate_every:
            report(Validation(step, _validate(policy, average, held_out, device)))
        _save_state(state_path, model, average, optimizer, step, seconds)
    for name in ("backbone", "head", "draft"):
        module = policy.modules()[name]
        module.load_state_dict(getattr(average, name).state_dict())
        module.eval().requires_grad_(False)
    run = {"steps": step, "seconds": round(seconds, 1), "device": _name(device), "processes": team.size}
    policy.manifest["provenance"]["training"] = asdict(config) | run
    return policy


def _as_it_is(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


class _Pace:
    """How much of a training is done, the same in every process: they must agree on the learning rate and the end."""

    EVERY = 20
    """Steps between two looks at the clock, which make the processes wait for each other."""

    def __init__(self, config: TrainConfig, team: Team) -> None:
        self._config, self._team = config, team
        self._due, self._passed = 0, 0.0

    def done(self, step: int, seconds: float) -> float:
        """Share of the steps or of the time; the first process's clock counts."""
        if not self._config.seconds:
            return step / self._config.steps
        if step >= self._due:
            self._due, self._passed = step + self.EVERY, self._team.agree(seconds / self._config.seconds)
        return self._passed


def _progress(step: int, seconds: float, loss: Tensor, hits: Sequence[Tensor]) -> Progress:
    value = loss.item()
    if not math.isfinite(value):
        raise NonFiniteError(f"training loss at step {step}: expected a finite number, got {value}")
    main, draft = (tuple(hit.tolist()) for hit in hits)
    return Progress(step, seconds, value, main, draft)


def token_loss(logits: Tensor, tokens: Tensor, mask: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted cross-entropy over levels, and accuracy per level, over unmasked steps.

    Args:
        logits: [l, B, T, D, bins]; tokens: [L, B, T, D]; mask: [B, T].
    """
    levels = len(logits)
    target = tokens[:levels]
    entropy = functional.cross_entropy(logits.flatten(0, 3), target.flatten(), reduction="none").view(target.shape)
    count = mask.sum().clamp(min=1) * target.shape[-1]
    per_level = (entropy * mask[None, :, :, None]).sum(dim=(1, 2, 3)) / count
    hit = ((logits.argmax(-1) == target) * mask[None, :, :, None]).sum(dim=(1, 2, 3)) / count
    return (per_level * weights[:levels]).sum(), hit.detach()


def distillation_loss(student: Tensor, teacher: Tensor, weights: Tensor) -> Tensor:
    """Cross-entropy of one head against the other's probabilities, over all steps.

    Args:
        student: logits [l, B, T, D, bins]; teacher: logits [l or more, B, T, D, bins], not trained by this loss.
    """
    levels = len(student)
    probability = teacher[:levels].detach().softmax(-1)
    entropy = -(probability * student.log_softmax(-1).clamp(min=IMPOSSIBLE)).sum(-1).mean(dim=(1, 2, 3))
    return (entropy * weights[:levels]).sum()


def _averaged(policy: Policy, average: _TrainingModel) -> Policy:
    heads = replace(policy.rsd, head=average.head, draft=average.draft)
    return replace(policy, backbone=average.backbone, heads=heads, manifest=copy.deepcopy(policy.manifest))


def _validate(
    policy: Policy, average: _TrainingModel, held_out: Demonstrations, device: torch.device
) -> dict[str, Any]:
    averaged = _averaged(policy, average)
    average.eval()
    figures = accuracy(predict(averaged, held_out, device), averaged.manifest["acceptance"]["tolerance"])
    average.train()
    return figures


def schedule(step: int, warmup_steps: int, done: float) -> float:
    """Factor of the learning rate: a cosine from 1 to 2 % as `done` goes from 0 to 1, after a linear warm-up."""
    warmth = min(1.0, (step + 1) / max(1, warmup_steps))
    return warmth * (0.02 + 0.98 * 0.5 * (1.0 + math.cos(math.pi * min(1.0, done))))


def _save_state(
    path: Path, model: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer, step: int, seconds: float
) -> None:
    state = {
        "model": model.state_dict(),
        "average": average.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
        "seconds": seconds,
    }
    with whole_file(path) as partial:
        torch.save(state, partial)


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
