"""DeviationPredictor: will the draft's chunk stay within tolerance of what the main head would say?

The draft's own margins say how sure each digit is, and little about the deviation: a draft can be sure of a digit in
which the main head is as sure of another. This head is trained on that question itself, on pairs of draft and main
chunks recorded in rollouts (`rsd calibrate`), from what is known at the early exit.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from rsd_policy import kernels
from rsd_policy.errors import CheckpointError
from rsd_policy.observation import ACTION_DIM, GRIPPER

HALF_MAX = 65504.0
"""Largest float16."""


class DeviationPredictor(nn.Module):
    """Probability for each prefix of the chunk that the draft stays within tolerance of the main head.

        p[t] = prod_{u <= t} sigmoid(z[u])
        z[u] = b - sum_{l, d} w[l, d] doubt[l, u, d] + correction[u],   doubt = ln(1 + exp(-margin))

    where z[u] is the logit that step u is within tolerance (with the same gripper command), given that the steps before
    it were: so p falls with t by construction, as the event does. The doubt of a digit is -ln of its probability
    against the runner-up; weighting the doubts is all that a few hundred chunks can teach. The correction is a small
    network over hidden states, draft and doubts that starts at zero.

    A draft that takes the mean has ln(1 + standard deviation in cells) for a doubt, at each level's size of a cell. Of
    those only the largest of the arm and the gripper's are weighted: one degree of freedom is enough to deviate.

    Args:
        hidden_size: width of the backbone's hidden states.
        horizon: T, steps of a chunk.
        slots: hidden states per chunk: T or T*D, as for RFSQHead.
        levels: levels of the draft.
        width: of the correction's two hidden layers.
        dropout: in training, on the projected hidden states.
        choice: of the draft, see RFSQHead.

    Raises:
        CheckpointError: slots that do not fit the horizon.
    """

    def __init__(
        self,
        hidden_size: int,
        horizon: int,
        slots: int,
        levels: int,
        width: int = 64,
        dropout: float = 0.5,
        choice: str = "mean",
    ) -> None:
        super().__init__()
        if slots not in (horizon, horizon * ACTION_DIM):
            raise CheckpointError(f"deviation: expected slots = {horizon} or {horizon * ACTION_DIM}, got {slots}")
        self.horizon = horizon
        self.levels = levels
        self.choice = choice
        self.doubt = nn.Linear(levels * (ACTION_DIM if choice == "mode" else 2), 1)
        nn.init.constant_(self.doubt.weight, -1.0)
        nn.init.constant_(self.doubt.bias, 3.0)
        self.norm = nn.LayerNorm(hidden_size, elementwise_affine=False)
        self.project = nn.Linear(hidden_size, width)
        self.dropout = nn.Dropout(dropout)
        self.known = nn.Linear((levels + 2) * ACTION_DIM + 1, width)
        self.step = nn.Parameter(torch.zeros(horizon, width))
        self.context = nn.Linear(width, width)
        self.out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1))
        last = self.out[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def log_probability(
        self, hidden: Tensor, margins: Tensor, actions: Tensor, last_action: Tensor, first: Tensor
    ) -> Tensor:
        """Natural logarithm of `forward`, for training."""
        # Rounded to float16 as recorded rollouts hold them: the gate then sees the scores that it was calibrated on.
        hidden = hidden.clamp(-HALF_MAX, HALF_MAX).half().float()
        batch = len(hidden)
        slots = self.project(self.norm(hidden)).view(batch, self.horizon, -1, self.step.shape[-1]).mean(dim=2)
        start = torch.where(first[:, None], actions[:, 0], last_action)
        change = torch.diff(torch.cat([start[:, None], actions], dim=1), dim=1)
        doubt = functional.softplus(-margins.float()).permute(1, 2, 0, 3).flatten(2)
        flag = first[:, None, None].expand(-1, self.horizon, 1).float()
        known = self.known(torch.cat([doubt, actions, change, flag], dim=-1))
        x = functional.gelu(self.dropout(slots) + known + self.step)
        x = x + self.context(x.mean(dim=1, keepdim=True))
        if self.choice == "mean":
            each = doubt.unflatten(2, (self.levels, ACTION_DIM))
            doubt = torch.cat([each[..., :GRIPPER].amax(dim=-1), each[..., GRIPPER]], dim=-1)
        return functional.logsigmoid((self.doubt(doubt) + self.out(x)).squeeze(-1)).cumsum(dim=1)

    def forward(self, hidden: Tensor, margins: Tensor, actions: Tensor, last_action: Tensor, first: Tensor) -> Tensor:
        """Probability per prefix.

        Args:
            hidden: [B, slots, hidden_size], action slots after layer k.
            margins: [levels, B, T, D] of the draft, see RFSQHead.forward.
            actions: float32 [B, T, D], the decoded draft, action units.
            last_action: float32 [B, D], the command executed last; ignored where `first`.
            first: bool [B], the chunk is the first of its episode.

        Returns:
            float32 [B, T]; entry t - 1 is for the first t steps.
        """
        if kernels.enabled():
            from rsd_policy.kernels import deviation

            if deviation.fits(self):
                rounded = self.norm(hidden.clamp(-HALF_MAX, HALF_MAX).half().float())
                return deviation.probability(self, rounded, margins, actions, last_action, first)
        return self.log_probability(hidden, margins, actions, last_action, first).exp()
