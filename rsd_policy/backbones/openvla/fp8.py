"""Matrix products of the language model in fp8: half the bytes and, on Hopper, twice the rate of bf16.

Weights have a scale for each output, activations one for each token, found when they are written (`kernels.llama`):
no calibration, no outlier of one token that costs the others their precision. Norms, attention, the embedding, the
vision towers and the heads stay as they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from rsd_policy.kernels.llama import Quantised, Unscaled

FP8_MAX = 448.0
"""Largest float8_e4m3fn."""


class Fp8Linear(nn.Module):
    """A linear layer without bias whose weight [outputs, inputs] is fp8 with a scale [outputs, 1] in float32."""

    weight: Tensor
    scale: Tensor
    one: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        scale = weight.abs().amax(dim=1, keepdim=True).float().clamp(min=1e-12) / FP8_MAX
        self.register_buffer("weight", (weight.float() / scale).to(torch.float8_e4m3fn))
        self.register_buffer("scale", scale)
        self.register_buffer("one", torch.ones((), device=weight.device))

    def forward(self, x: Tensor) -> Tensor:
        """The product in x's precision, for devices and calls without fp8 products."""
        return functional.linear(x, (self.weight.float() * self.scale).to(x.dtype))


def quantise_linears(module: nn.Module) -> None:
    """Replace every linear layer without bias below a module, one by one, so that both forms of all never coexist."""
    for name, child in module.named_children():
        if isinstance(child, nn.Linear) and len(list(child.parameters())) == 1:
            setattr(module, name, Fp8Linear(child.weight.detach()))
        else:
            quantise_linears(child)


def product(x: Tensor | Quantised, layer: nn.Module) -> Tensor:
    """x [rows, inputs] times a layer's weight, bf16 or fp8 [rows, outputs] -> [rows, outputs].

    Args:
        x: rows, in fp8 for an Fp8Linear.
        layer: linear, without bias.
    """
    if isinstance(layer, Fp8Linear):
        values, scale = x
        return torch._scaled_mm(
            values, layer.weight.t(), scale_a=scale, scale_b=layer.scale.t(),
            out_dtype=torch.bfloat16, use_fast_accum=True,
        )  # fmt: skip
    assert isinstance(x, Tensor) and isinstance(layer.weight, Tensor)
    return functional.linear(x, layer.weight)


def unscaled_product(x: Quantised, layer: Fp8Linear) -> Unscaled:
    """A product whose scales are applied where it is added to the residual stream.

    At 4096 outputs cuBLAS is slower with a scale for each row than without (606 rows of 11008 inputs on an H200: 74 us
    against 43), and whoever adds the product passes over it anyway.
    """
    from rsd_policy.kernels.llama import Unscaled

    out = torch._scaled_mm(
        x.values, layer.weight.t(), scale_a=layer.one, scale_b=layer.one,
        out_dtype=torch.bfloat16, use_fast_accum=True,
    )  # fmt: skip
    return Unscaled(out, x.scale, layer.scale)
