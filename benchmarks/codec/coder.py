"""Bits a chunk that an entropy coder spends on a codec's symbols, with the same learned context model for every codec.

A symbol is the number of a cell of a uniform grid, one per position (step or coefficient) and degree of freedom. Coded
are position after position, within a position one degree of freedom after another, and each chunk by itself. Before
each symbol a small network reads all symbols coded so far and gives a distribution over the cells: a mixture of
discretised logistics (Salimans et al., 2017) around five guesses (zero, the position before, its linear and its
quadratic continuation, a linear regression on everything coded so far), two each, where the cells at both ends take the
tails, and a uniform floor. The probabilities of a symbol's values sum to 1 and depend on earlier symbols only, so that
-log2 p, summed, is the length that an arithmetic coder reaches to within 2 bits a chunk.

One network per codec serves all its rates: it is trained on the fitting half of the episodes, and the cost is measured
on the other half. Architecture, training and contexts are the same for all codecs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

GUESSES = 5
WIDTH = 96
DROPOUT = 0.2
STEPS = 1200
BATCH = 64
"""Chunks a step of training. It, STEPS and DROPOUT were chosen for RFSQ and DCT alike, within the fitting half."""

RIDGE = 1e-7
"""Added to the variance of each symbol's value before regression, squared units of the limit."""

COMPRESSED = 0.3
"""Factor of values that were compressed by asinh, so that network inputs stay around 1."""

MOST_FIT_CHUNKS, MOST_TEST_CHUNKS = 20_000, 2_000


@dataclass(frozen=True)
class Symbols:
    """What is to be coded, at one rate.

    Attributes:
        fit: [M, T, D] and test: [N, T, D], cell numbers 0 .. cells - 1.
        cells: [T, D], odd or even; the grid is symmetric about 0.
        step: [T, D], distance between centres.
    """

    fit: NDArray[np.int64]
    test: NDArray[np.int64]
    cells: NDArray[np.int64]
    step: NDArray[np.float64]

    def __post_init__(self) -> None:
        for side in (self.fit, self.test):
            if (side < 0).any() or (side >= self.cells).any():
                raise ValueError(
                    f"expected symbols 0 .. cells - 1, got {side.min()} .. {side.max()} of {self.cells.max()}"
                )

    def values(self, symbols: NDArray[np.int64]) -> NDArray[np.float64]:
        """Centres of cells."""
        centres: NDArray[np.float64] = (symbols - (self.cells - 1) / 2.0) * self.step
        return centres


def coded_bits(rates: Sequence[Symbols], seed: int = 0) -> list[float]:
    """Mean bits a chunk of the test half at each rate, by one network trained on the fitting half at all rates."""
    torch.manual_seed(seed)
    fit, test = (_Half.of(rates, side) for side in ("fit", "test"))
    coder = ContextCoder(*rates[0].cells.shape)
    optimizer = torch.optim.AdamW(coder.parameters(), lr=3e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 30) * (0.51 + 0.49 * math.cos(math.pi * step / STEPS))
    )
    for _ in range(STEPS):
        rate, chunk = torch.randint(len(rates), (BATCH,)), torch.randint(fit.values.shape[1], (BATCH,))
        loss = coder(*fit.batch(rate, chunk)).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(coder.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    coder.eval()
    with torch.inference_mode():
        every = torch.arange(test.values.shape[1])
        totals = [
            sum(float(coder(*test.batch(torch.full_like(part, rate), part)).sum()) for part in every.split(64))
            for rate in range(len(rates))
        ]
    return [total / len(every) for total in totals]


@dataclass(frozen=True)
class _Half:
    """One half of the episodes at all rates: values and their regressions [R, N, T, D]; step and highest [R, T, D]."""

    values: Tensor
    regressions: Tensor
    step: Tensor
    highest: Tensor

    @classmethod
    def of(cls, rates: Sequence[Symbols], side: str) -> _Half:
        most = MOST_FIT_CHUNKS if side == "fit" else MOST_TEST_CHUNKS
        values, regressions = [], []
        for rate in rates:
            chunks = rate.values(getattr(rate, side))
            chunks = chunks[:: -(-len(chunks) // most)]
            values.append(chunks)
            regressions.append(regression(rate.values(rate.fit), chunks))
        steps, highest = [rate.step for rate in rates], [(rate.cells - 1) / 2.0 * rate.step for rate in rates]
        v, r, s, h = (torch.from_numpy(np.stack(stack)).float() for stack in (values, regressions, steps, highest))
        return cls(v, r, s, h)

    def batch(self, rate: Tensor, chunk: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """[B] and [B] -> arguments of ContextCoder."""
        return self.values[rate, chunk], self.regressions[rate, chunk], self.step[rate], self.highest[rate]


def regression(fit: NDArray[np.float64], chunks: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each value's linear regression, fitted to `fit` [M, T, D], on all values of its chunk that are coded before it.

    With the Cholesky factor L of the covariance, x = mean + L z; entry j of x - diag(L) z rests on entries before j.
    """
    flat = fit.reshape(len(fit), -1)
    mean = flat.mean(axis=0)
    factor = np.linalg.cholesky(np.cov(flat.T, bias=True) + RIDGE * np.eye(len(mean)))
    x = chunks.reshape(len(chunks), -1)
    # Below the diagonal only: a value must not enter its own guess, not even by rounding.
    weights = np.tril(np.eye(len(mean)) - np.diag(factor)[:, None] * np.linalg.inv(factor), -1)
    guess: NDArray[np.float64] = mean + (x - mean) @ weights.T
    return guess.reshape(chunks.shape)


class ContextCoder(nn.Module):
    """Distribution of each symbol given those before it.

    Args:
        horizon, axes: T and D.
    """

    def __init__(self, horizon: int, axes: int) -> None:
        super().__init__()
        self.horizon, self.axes = horizon, axes
        self.before: Tensor
        self.register_buffer("before", torch.tril(torch.ones(axes, axes), -1))
        one_axis = 1 + 2 * (horizon - 1) + (GUESSES - 1) + 2 * GUESSES + 2
        inputs = horizon + axes + one_axis + 11 * axes
        self.first = nn.Linear(inputs, WIDTH)
        self.middle = nn.Linear(WIDTH, WIDTH)
        self.dropout = nn.Dropout(DROPOUT)
        self.last = nn.Linear(WIDTH, 6 * GUESSES + 1)
        nn.init.zeros_(self.last.weight)
        with torch.no_grad():
            # log widths, in steps, to start with: a narrow and a wide component around each guess
            first = 2 * GUESSES + 1
            self.last.bias.zero_()
            self.last.bias[first : first + GUESSES] = -1.0
            self.last.bias[first + GUESSES : first + 2 * GUESSES] = 2.0

    def forward(self, values: Tensor, regressions: Tensor, step: Tensor, highest: Tensor) -> Tensor:
        """Bits [B, T, D] of each symbol.

        Args:
            values: [B, T, D], centres of the cells that are coded.
            regressions: [B, T, D], `regression`'s guesses.
            step, highest: [B, T, D], distance between centres and the outermost centre.
        """
        guesses = self._guesses(values, regressions, highest)
        hidden = self.dropout(functional.gelu(self.first(self._context(values, guesses, step, highest))))
        hidden = hidden + functional.gelu(self.middle(hidden))
        count = 2 * GUESSES
        weights, width, shift = self.last(hidden).split((count + 1, count, count), dim=-1)
        weights = torch.log_softmax(weights, dim=-1)
        width = width.clamp(-4.0, 12.0).exp()
        away = ((values[..., None] - guesses) / step[..., None]).repeat(1, 1, 1, 2) - shift * width / 2.0
        cells = torch.log(2.0 * highest / step + 1.0)
        parts = _log_mass(
            away, width, (values < -highest + step / 2.0)[..., None], (values > highest - step / 2.0)[..., None]
        )
        log_p = torch.logsumexp(weights + torch.cat([parts, -cells[..., None]], dim=-1), dim=-1)
        # A symbol of one value says nothing.
        return torch.where(highest > step / 4.0, -log_p / math.log(2.0), 0.0)

    def _guesses(self, values: Tensor, regressions: Tensor, highest: Tensor) -> Tensor:
        """[B, T, D, 5], within the grid."""
        one, two, three = (_lag(values, count) for count in (1, 2, 3))
        place = torch.arange(self.horizon)[:, None]
        linear = torch.where(place >= 2, 2.0 * one - two, one)
        quadratic = torch.where(place >= 3, 3.0 * one - 3.0 * two + three, linear)
        guesses = torch.stack([torch.zeros_like(values), one, linear, quadratic, regressions], dim=-1)
        return torch.minimum(torch.maximum(guesses, -highest[..., None]), highest[..., None])

    def _context(self, values: Tensor, guesses: Tensor, step: Tensor, highest: Tensor) -> Tensor:
        """Network inputs [B, T, D, F] for each symbol, from symbols before it only."""
        shape = (*values.shape, self.axes)

        def here(x: Tensor) -> Tensor:
            """[B, T, D, D], other axes of this position that are coded already."""
            return x[:, :, None, :].expand(shape) * self.before

        def there(x: Tensor) -> Tensor:
            """[B, T, D, D], all axes of the position before."""
            return _lag(x, 1)[:, :, None, :].expand(shape)

        small = COMPRESSED * torch.asinh(values / step)
        # How far each guess was off, known once the symbol is.
        missed = COMPRESSED * torch.asinh((values[..., None] - guesses) / step[..., None])
        spread = COMPRESSED * torch.asinh((guesses[..., :-1] - guesses[..., -1:]) / step[..., None])
        at_end = (values.abs() > highest - step / 2.0).float()
        repeated = (values == _lag(values, 1)).float()
        lags = range(1, self.horizon)
        return torch.cat(
            [
                torch.eye(self.horizon)[:, None, :].expand(*values.shape, -1),
                torch.eye(self.axes).expand(shape),
                step.log()[..., None],
                *(_lag(values, count)[..., None] for count in lags),
                *(_lag(small, count)[..., None] for count in lags),
                spread,
                _lag(missed, 1),
                _lag(missed, 2),
                _lag(at_end, 1)[..., None],
                _lag(repeated, 1)[..., None],
                *(here(x) for x in (values, small, at_end, repeated)),
                there(values),
                *(view(missed[..., guess]) for guess in (1, 2, 4) for view in (here, there)),
            ],
            dim=-1,
        )


def _lag(x: Tensor, count: int) -> Tensor:
    """[B, T, ...] shifted by positions, zeros in front."""
    return torch.cat([torch.zeros_like(x[:, :count]), x[:, :-count]], dim=1)


def _log_mass(away: Tensor, width: Tensor, lowest: Tensor, highest: Tensor) -> Tensor:
    """log(F((away + 1/2) / width) - F((away - 1/2) / width)), F logistic; the cells at the ends reach to infinity."""
    far = torch.finfo(away.dtype).max
    upper = torch.where(highest, far, (away + 0.5) / width)
    lower = torch.where(lowest, -far, (away - 0.5) / width)
    # F(-x) = 1 - F(x): the difference is taken in the lower tail, where float32 resolves it.
    mirrored = away > 0
    upper, lower = torch.where(mirrored, -lower, upper), torch.where(mirrored, -upper, lower)
    log_upper, log_lower = functional.logsigmoid(upper), functional.logsigmoid(lower)
    return log_upper + torch.log(-torch.expm1((log_lower - log_upper).clamp(max=-1e-7)))
