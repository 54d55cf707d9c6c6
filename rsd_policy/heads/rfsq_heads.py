"""RFSQHead and RFSQDraftModel: residual levels from the hidden states of the action slots.

    hidden [B, S, hidden_size] -> projection -> `num_layers` transformer layers over T*D positions -> levels

Every level sees the levels before it: the context of level l is the position's feature plus the embeddings of the
digits already chosen. In training the digits are the labels (teacher forcing). In inference those of the coarse levels
L0-L2 name the cell that holds the mean of their joint distribution, those of the finer levels are the arg max.

Why the mean: when to turn from one motion to the next is often uncertain by a step. The arg max answers such a doubt by
all or nothing, so draft and main head differ by the whole motion wherever their doubts fall on other sides of one half;
their means differ by as little as their doubts do (docs/rsd.md has the measurement).

The transformer runs once per chunk and only a small MLP once per level: running all of it for every level would cost
2.9 ms on an H100 in place of 0.4 (sizes of the defaults, CUDA graph).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from rsd_policy import kernels
from rsd_policy.codec.rfsq import BINS
from rsd_policy.errors import CheckpointError
from rsd_policy.observation import ACTION_DIM, GRIPPER

COARSE = 3
"""Levels whose digits are chosen together: those of the draft, so that draft and main head choose alike."""

CHOICES = ("mean", "mode")

LEAST_SPREAD = 1e-4
"""Cells of the last coarse level, added to a standard deviation, whose logarithm then is finite without a doubt."""


class RFSQHead(nn.Module):
    """Predicts residual levels L0 .. L(levels-1) for each of T*D positions.

    Args:
        hidden_size: width of the backbone's hidden states.
        horizon: T, steps of a chunk.
        slots: hidden states per chunk: T (each slot is spread over the D degrees of freedom) or T*D.
        width: width of the head.
        num_layers: transformer layers over the T*D positions; 0 leaves mixing to the backbone.
        levels: residual levels to predict.
        bins: cells per level as the codec has them, one number for all or one for each; of more levels the first count.
        choice: how inference chooses the digits of L0-L2: by the mean, or by the arg max of each ("mode").

    Raises:
        CheckpointError: slots or bins that do not fit the chunk or the levels, or another choice.
    """

    def __init__(
        self,
        hidden_size: int = 4096,
        horizon: int = 8,
        slots: int = 56,
        width: int = 1024,
        num_layers: int = 8,
        levels: int = 8,
        bins: int | Sequence[int] = BINS,
        choice: str = "mean",
    ) -> None:
        super().__init__()
        if choice not in CHOICES:
            raise CheckpointError(f"head: expected choice {' or '.join(CHOICES)}, got '{choice}'")
        self.choice = choice
        positions = horizon * ACTION_DIM
        if slots not in (horizon, positions):
            raise CheckpointError(f"head: expected slots = {horizon} or {positions}, got {slots}")
        self.bins = (bins,) * levels if isinstance(bins, int) else tuple(bins[:levels])
        if len(self.bins) != levels or min(self.bins, default=0) < 2:
            raise CheckpointError(f"head: expected at least 2 bins for each of {levels} levels, got {bins}")
        self.horizon = horizon
        self.levels = levels
        self.width = width
        self.norm = nn.LayerNorm(hidden_size)
        self.project = nn.Linear(hidden_size, width * (ACTION_DIM if slots == horizon else 1))
        self.position = nn.Parameter(torch.zeros(positions, width))
        # dropout 0 and enable_nested_tensor off: the same arithmetic in training and inference.
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width,
                nhead=max(1, width // 64),
                dim_feedforward=4 * width,
                dropout=0.0,
                activation="gelu",
                batch_first=True,
                norm_first=True,
            )
            for _ in range(num_layers)
        )
        self.digit_embedding = nn.Parameter(torch.randn(levels, max(self.bins), width) * 0.02)
        self.level_mlp = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, count))
            for count in self.bins
        )

    def features(self, hidden: Tensor) -> Tensor:
        """Per-position features.

        Args:
            hidden: [B, slots, hidden_size], any precision; computed in the head's own.

        Returns:
            [B, T*D, width], positions ordered step by step, degree of freedom fastest.
        """
        x = self.project(self.norm(hidden.to(self.norm.weight.dtype)))
        x = x.reshape(len(hidden), self.horizon * ACTION_DIM, self.width)
        x = x + self.position
        for layer in self.layers:
            x = _fused_layer(x, layer) if kernels.enabled() else layer(x)
        return x

    def teacher_forced_logits(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """Logits of every level given the true digits of the levels before it.

        Args:
            hidden: [B, slots, hidden_size].
            tokens: int64 [levels or more, B, T, D], labels.

        Returns:
            [levels, B, T, D, bins]; -inf where a level has fewer bins than another.
        """
        return self.level_logits(self.features(hidden), tokens)

    def level_logits(self, context: Tensor, tokens: Tensor) -> Tensor:
        """`teacher_forced_logits` from `features`, for those who need them for more than one labelling."""
        logits = []
        digit_values = torch.arange(max(self.bins), device=context.device)
        for level in range(self.levels):
            logits.append(self._padded(self.level_mlp[level](context)))
            digits = tokens[level].reshape(context.shape[:2])
            chosen = (digits[..., None] == digit_values).to(context.dtype)
            # A product and no look-up, whose gradient would add thousands of positions to a few numbers one by one.
            context = context + chosen @ self.digit_embedding[level]
        return torch.stack(logits).unflatten(2, (self.horizon, ACTION_DIM))

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens as `choice` says, and how sure they are.

        Args:
            hidden: [B, slots, hidden_size].

        Returns:
            tokens int64 [levels, B, T, D] and margins [levels, B, T, D]: log-probability of a level's likeliest digit,
            given the digits chosen before, minus that of the runner-up (>= 0); for the coarse levels of a mean -ln of
            their joint distribution's standard deviation in cells of the level.
        """
        context = self.features(hidden)
        if kernels.enabled():
            return self._fused_digits(context)
        tokens, margins = self._mean_digits(context) if self.choice == "mean" else ([], [])
        for level in range(len(tokens)):
            context = context + self.digit_embedding[level][tokens[level]]
        logits = []
        for level in range(len(tokens), self.levels):
            out = self.level_mlp[level](context)
            logits.append(self._padded(out))
            tokens.append(out.argmax(dim=-1))
            context = context + self.digit_embedding[level][tokens[level]]
        if logits:
            # A difference of logits is a difference of log-probabilities: the normaliser cancels. All levels at once,
            # to launch few kernels.
            best = torch.stack(logits).topk(2, dim=-1).values
            margins += list((best[..., 0] - best[..., 1]).float())
        shape = (self.horizon, ACTION_DIM)
        return torch.stack(tokens).unflatten(2, shape), torch.stack(margins).unflatten(2, shape)

    def cell_probabilities(self, features: Tensor, levels: int) -> Tensor:
        """Joint distribution of the first levels' digits.

        Args:
            features: [B, T*D, width].
            levels: how many, at most the head's.

        Returns:
            float32 [B, T*D, cells], cells in the codec's order: of increasing actions.
        """
        context, probability = features[:, :, None], torch.ones_like(features[:, :, :1], dtype=torch.float32)
        for level, count in enumerate(self.bins[:levels]):
            conditional = self.level_mlp[level](context).float().softmax(-1)
            probability = (probability[..., None] * conditional).flatten(2)
            if level + 1 < levels:
                context = (context[:, :, :, None] + self.digit_embedding[level][:count]).flatten(2, 3)
        return probability

    def _mean_digits(self, features: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Digits of the coarse levels: of the cell that holds the mean of their joint distribution; the gripper, which
        is open or closed and nothing in between, has the arg max.

        Args:
            features: [B, T*D, width].

        Returns:
            for each coarse level the digits, int64 [B, T*D], and -ln(standard deviation in cells of the level), float32
            [B, T*D].
        """
        bins = self.bins[:COARSE]
        probability = self.cell_probabilities(features, len(bins))
        # The number of a cell is the codec's, which holds its digits in the mixed base of the bins.
        cells = torch.arange(probability.shape[-1], device=probability.device)
        mean = probability @ cells.float()
        spread = (probability * (cells - mean[..., None]).square()).sum(-1).sqrt() + LEAST_SPREAD
        number = mean.round().long()
        is_gripper = torch.arange(number.shape[1], device=number.device) % ACTION_DIM == GRIPPER
        number = torch.where(is_gripper, probability.argmax(-1), number)
        digits, sureness = [], []
        for count in reversed(bins):
            digits.append(number % count)
            sureness.append(-spread.log())
            number, spread = number // count, spread / count
        return digits[::-1], sureness[::-1]

    def _fused_digits(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """What follows `features` in `forward`, in fused kernels."""
        from rsd_policy.kernels import levels
        from rsd_policy.kernels.transformer import Affine, linear

        def hidden(level: int, context: Tensor) -> Tensor:
            norm, up = self.level_mlp[level][:2]  # type: ignore[index]
            return linear(context, Affine.of(up), norm=norm, gelu=True)

        shape = (self.levels, *context.shape[:2])
        tokens = torch.empty(shape, dtype=torch.int64, device=context.device)
        margins = torch.empty(shape, dtype=torch.float32, device=context.device)
        coarse = COARSE if self.choice == "mean" else 0
        if coarse:
            logits, given = [], context
            for level, count in enumerate(self.bins[:COARSE]):
                logits.append(linear(hidden(level, given), Affine.of(self.level_mlp[level][-1])))  # type: ignore[index]
                if level + 1 < COARSE:
                    given = given[..., None, :] + self.digit_embedding[level][:count]
            context = levels.mean_digits(
                (logits[0], logits[1], logits[2]), context, self.digit_embedding,
                tokens[:COARSE], margins[:COARSE], LEAST_SPREAD, follow=self.levels > COARSE,
            )  # fmt: skip
        else:
            context = context.clone()
        for level in range(coarse, self.levels):
            out = self.level_mlp[level][-1]  # type: ignore[index]
            levels.choose(
                hidden(level, context), out.weight, out.bias, self.digit_embedding[level],
                context, tokens[level], margins[level],
            )  # fmt: skip
        steps = (self.horizon, ACTION_DIM)
        return tokens.unflatten(2, steps), margins.unflatten(2, steps)

    def _padded(self, logits: Tensor) -> Tensor:
        """[..., bins of one level] -> [..., largest number of bins], -inf where the level has none."""
        surplus = max(self.bins) - logits.shape[-1]
        return functional.pad(logits, (0, surplus), value=float("-inf")) if surplus else logits


def _fused_layer(x: Tensor, layer: nn.Module) -> Tensor:
    from rsd_policy.kernels.transformer import Affine, Layer, transformer_layer

    assert isinstance(layer, nn.TransformerEncoderLayer)
    attention = layer.self_attn
    qkv = Affine(attention.in_proj_weight, attention.in_proj_bias)
    out = Affine.of(attention.out_proj)
    up, down = Affine.of(layer.linear1), Affine.of(layer.linear2)
    return transformer_layer(x, Layer(attention.num_heads, layer.norm1, qkv, out, layer.norm2, up, down))


class RFSQDraftModel(RFSQHead):
    """RFSQHead that reads an early layer of the backbone and predicts the coarse levels L0-L2 only."""

    def __init__(self, *, levels: int = 3, **sizes: Any) -> None:
        super().__init__(levels=levels, **sizes)
