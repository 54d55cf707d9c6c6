"""ResidualFSQ of the package vector-quantize-pytorch on the same chunks, as fitted as it can be.

Two settings: `steps` quantises the actions themselves (its soft clamp inverted beforehand, so that it sees them
undistorted); `learned` puts a linear map of the whole chunk before and another after it, trained on the fitting half
for the mean squared error over all prefixes of levels and started at the orthonormal DCT.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.fft import dct
from torch import Tensor, nn

from benchmarks.codec.coder import Symbols
from benchmarks.codec.peers import Halves, Point, Setting, coded, prefix_name
from rsd_policy.errors import SetupError

ARM = 6
BINS = 3
LEVELS = 10
"""One more than make as many cells as RFSQ has, so that it is measured at as many bits when they are entropy coded."""


def residual_fsq(halves: Halves, steps: int = 1500) -> list[Point]:
    """Points of both settings, one per prefix of levels.

    Raises:
        SetupError: the package is not installed.
    """
    try:
        from vector_quantize_pytorch import ResidualFSQ
    except ImportError as error:
        raise SetupError(
            "the comparison needs vector-quantize-pytorch: pip install 'vector-quantize-pytorch>=1.32', "
            "or leave it out with --without-residual-fsq"
        ) from error
    torch.manual_seed(0)
    quantizer = ResidualFSQ(levels=[BINS] * ARM, num_quantizers=LEVELS)
    fit, test = (torch.from_numpy(halves.unit(half)).float() for half in (halves.fit, halves.test))
    plain = _points(halves, "ResidualFSQ, steps", quantizer, fit, test, nn.Identity())
    encoder, decoder = _learn(quantizer, fit, steps)
    with torch.no_grad():
        fit, test = encoder(fit), encoder(test)
    return plain + _points(halves, "ResidualFSQ, learned", quantizer, fit, test, decoder)


class _ChunkMap(nn.Module):
    """A linear map of a whole chunk, [N, 8, 6] to [N, 8, 6]."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.linear = nn.Linear(weight.shape[1], weight.shape[0])
        with torch.no_grad():
            self.linear.weight.copy_(weight)
            self.linear.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(1)).view_as(x)


def _learn(quantizer: Any, fit: Tensor, steps: int) -> tuple[nn.Module, nn.Module]:
    """Train the maps around the quantizer."""
    horizon = fit.shape[1]
    transform = np.kron(dct(np.eye(horizon), axis=0, norm="ortho"), np.eye(ARM))
    reach = np.abs(fit.flatten(1).numpy() @ transform.T).max(axis=0)[:, None]
    encoder = _ChunkMap(torch.from_numpy(transform / reach).float())
    decoder = _ChunkMap(torch.from_numpy((transform / reach).T * reach.T**2).float())
    parameters = [*encoder.parameters(), *decoder.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        batch = fit[torch.randint(len(fit), (256,))]
        latent = encoder(batch)
        codes = _codes(quantizer, latent)
        loss = torch.zeros(())
        for used in range(1, LEVELS + 1):
            # straight-through: the latent's gradient passes the quantizer unchanged
            through = latent + (codes[:used].sum(0) - latent).detach()
            error = (decoder(through) - batch).square().mean()
            # each prefix counts alike, whatever its magnitude
            loss = loss + torch.log(error + 1e-9)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return encoder.eval(), decoder.eval()


def _codes(quantizer: Any, latent: Tensor) -> Tensor:
    """[levels, N, 8, 6], what each level adds."""
    clamp = quantizer.soft_clamp_input_value
    bounded = latent.detach().clamp(-0.999 * clamp, 0.999 * clamp)
    # The forward pass squashes by clamp * tanh(x / clamp): undone here, or every code would be off.
    _, _, codes = quantizer(clamp * torch.atanh(bounded / clamp), return_all_codes=True)
    return codes.detach()


def _points(halves: Halves, name: str, quantizer: Any, fit: Tensor, test: Tensor, decoder: nn.Module) -> list[Point]:
    quantizer.eval()
    sides = [_codes(quantizer, side) for side in (fit, test)]
    scales = quantizer.scales.view(LEVELS, 1, 1, ARM)
    digits = [torch.round(side / scales).long().numpy() + BINS // 2 for side in sides]
    settings = []
    for used in range(1, LEVELS + 1):
        weights = BINS ** np.arange(used - 1, -1, -1)
        numbers = [np.tensordot(weights, side[:used], axes=1) for side in digits]
        with torch.no_grad():
            decoded = decoder(sides[1][:used].sum(0)).double().numpy()
        cells = np.full(numbers[0].shape[1:], BINS**used)
        step = np.broadcast_to(scales[used - 1, 0, 0].double().numpy(), cells.shape)
        symbols = Symbols(numbers[0], numbers[1], cells, step)
        settings.append(Setting(halves.point(name, prefix_name(used), cells, decoded), symbols))
    return coded(settings)
