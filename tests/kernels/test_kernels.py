"""Every fused kernel against its plain PyTorch form, at sizes that are no multiple of a tile."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from rsd_policy.backbones.openvla.llama import RMSNorm, Rope, rotate
from rsd_policy.codec.rfsq import BINS, RFSQCodec
from rsd_policy.heads import DeviationPredictor, RFSQHead
from rsd_policy.kernels import fused
from tests.kernels.conftest import INTERPRETED

pytest.importorskip("triton")

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1e-2}


def error(given: Tensor, expected: Tensor) -> float:
    """|given - expected| / |expected|; infinite for NaN."""
    difference = (given.double() - expected.double()).norm() / expected.double().norm()
    return float(difference) if bool(torch.isfinite(difference)) else float("inf")


def draw(device: torch.device, dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(shape, device=device).to(dtype)


def layer_norm(width: int, device: torch.device, dtype: torch.dtype) -> nn.LayerNorm:
    norm = nn.LayerNorm(width).to(device)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm.to(dtype).requires_grad_(False)


bfloat16 = pytest.param(
    torch.bfloat16, marks=pytest.mark.skipif(INTERPRETED, reason="Triton's interpreter multiplies no bfloat16")
)


@pytest.mark.parametrize("dtype", [torch.float32, bfloat16])
@pytest.mark.parametrize("rows, inputs, outputs", [(93, 320, 960), (8, 72, 5), (600, 40, 70)])
def test_linear_with_norm_gelu_and_residual(
    device: torch.device, dtype: torch.dtype, rows: int, inputs: int, outputs: int
) -> None:
    from rsd_policy.kernels import transformer as kernels

    x, residual = draw(device, dtype, 1, rows, inputs) + 0.5, draw(device, dtype, 1, rows, outputs)
    layer = kernels.Affine(draw(device, dtype, outputs, inputs), draw(device, dtype, outputs))
    norm = layer_norm(inputs, device, dtype)
    wide, weight, bias = x.double(), layer.weight.double(), layer.bias.double()
    normed = functional.layer_norm(wide, (inputs,), norm.weight.double(), norm.bias.double(), norm.eps)
    expected = functional.linear(wide, weight, bias)
    assert error(kernels.linear(x, layer), expected) < TOLERANCE[dtype]
    assert error(kernels.linear(x, layer, residual=residual), expected + residual.double()) < TOLERANCE[dtype]
    expected = functional.gelu(functional.linear(normed, weight, bias))
    assert error(kernels.linear(x, layer, norm=norm, gelu=True), expected) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, bfloat16])
def test_attention_to_keys_that_fill_no_tile(device: torch.device, dtype: torch.dtype) -> None:
    from rsd_policy.kernels import transformer as kernels

    qkv = draw(device, dtype, 2, 93, 3, 5, 64)
    q, k, v = qkv.unbind(2)
    wide = [part.double().transpose(1, 2) for part in (q[:, -9:], k, v)]
    expected = functional.scaled_dot_product_attention(*wide).transpose(1, 2).reshape(2, 9, 320)
    assert error(kernels.attention(q[:, -9:], k, v), expected) < TOLERANCE[dtype]


def test_mean_digits_and_likeliest_digits_are_those_of_the_head(device: torch.device) -> None:
    torch.manual_seed(0)
    for choice, layers in (("mean", 0), ("mode", 1)):
        head = RFSQHead(hidden_size=32, slots=8, width=64, num_layers=layers, choice=choice).to(device).eval()
        for parameter in head.parameters():
            nn.init.normal_(parameter, std=0.4)
        hidden = draw(device, torch.float32, 2, 8, 32)
        with torch.inference_mode():
            tokens, margins = head(hidden)
            with fused():
                fused_tokens, fused_margins = head(hidden)
        same = tokens == fused_tokens
        assert float(same.double().mean()) > 0.98, choice  # products that round otherwise turn what is all but a tie
        assert error(fused_margins[same], margins[same]) < 1e-3
        assert len(tokens.unique()) > 3


def test_nan_in_the_hidden_states_reaches_the_margins(device: torch.device) -> None:
    for choice in ("mean", "mode"):
        head = RFSQHead(hidden_size=16, slots=8, width=16, num_layers=0, choice=choice).to(device).eval()
        hidden = draw(device, torch.float32, 1, 8, 16)
        hidden[0, 3, 5] = float("nan")
        with torch.inference_mode(), fused():
            margins = head(hidden)[1]
        assert not bool(torch.isfinite(margins[:, 0, 3]).any())
        assert bool(torch.isfinite(margins[:, 0, 4]).all())


def test_decoded_actions_equal_the_codecs_in_every_bit(device: torch.device) -> None:
    from rsd_policy.kernels.levels import decode

    codec = RFSQCodec(torch.rand(7) * 0.7 + 0.3, BINS, None)
    for levels in (1, 3, 8):
        tokens = torch.stack([torch.randint(0, count, (3, 8, 7)) for count in BINS[:levels]]).to(device)
        assert torch.equal(decode(codec, tokens), codec.decode(tokens))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_llama_kernels(device: torch.device, dtype: torch.dtype) -> None:
    from rsd_policy.kernels import llama

    x = draw(device, dtype, 37, 96)
    norm = RMSNorm(96, 1e-6).to(device, dtype)
    nn.init.normal_(norm.weight)
    assert error(llama.rms_norm(x, norm.weight, norm.eps), norm(x)) < TOLERANCE[dtype]
    gate, up = x.chunk(2, dim=1)
    expected = functional.silu(gate.double()) * up.double()
    assert error(llama.silu_times(x), expected) < TOLERANCE[dtype]
    qkv = draw(device, dtype, 2, 5, 3 * 4 * 16)
    rope = Rope.table(16, 10000.0, qkv)
    q, k, v = qkv.view(2, 5, 3, 4, 16).permute(2, 0, 3, 1, 4)
    expected = torch.stack([rotate(q, rope.at(0, 5)), rotate(k, rope.at(0, 5)), v]).permute(1, 3, 0, 2, 4).clone()
    llama.rotate(qkv, rope.cos, rope.sin, 4)
    assert error(qkv, expected.reshape(qkv.shape)) < TOLERANCE[dtype]


@pytest.mark.skipif(INTERPRETED, reason="Triton's interpreter cuts fp8 off instead of rounding")
def test_rows_in_fp8_come_back_within_half_a_step(device: torch.device) -> None:
    from rsd_policy.kernels import llama

    x = draw(device, torch.float32, 37, 96) * torch.logspace(-3, 3, 37, device=device)[:, None]
    x[5] = 0
    norm = RMSNorm(96, 1e-6).to(device)
    for given, expected in (
        (llama.quantise(x), x),
        (llama.rms_norm(x, norm.weight, 1e-6, quantised=True), norm(x)),
        (llama.silu_times(x, quantised=True), functional.silu(x[:, :48]) * x[:, 48:]),
    ):
        back = given.values.float() * given.scale
        # Three bits of mantissa: half a step is 1/16 of the value; below the least normal number 2^-10 of the scale.
        assert bool(((back - expected).abs() <= expected.abs() / 16 * 1.001 + given.scale * 2**-10).all())


def test_residual_layer_scale_and_norm(device: torch.device) -> None:
    from rsd_policy.kernels.vision import add_norm

    for dtype in (torch.float32, torch.bfloat16):
        x, branch, factor = draw(device, dtype, 2, 7, 72), draw(device, dtype, 2, 7, 72), draw(device, dtype, 72)
        norm = layer_norm(72, device, dtype)
        for scale in (factor, None):
            out, normed = add_norm(x, branch, scale, norm)
            expected = x.double() + branch.double() * (1 if scale is None else scale.double())
            assert error(out, expected) < TOLERANCE[dtype]
            expected = functional.layer_norm(out.double(), (72,), norm.weight.double(), norm.bias.double(), norm.eps)
            assert error(normed, expected) < TOLERANCE[dtype]


def test_group_norm_and_gelu(device: torch.device) -> None:
    from rsd_policy.kernels.stems import gelu_of_group_norm

    norm = nn.GroupNorm(8, 48).to(device)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = draw(device, torch.float32, 2, 48, 7, 9) + 2
    for layout in (torch.contiguous_format, torch.channels_last):
        expected = functional.gelu(norm(x).double())
        assert error(gelu_of_group_norm(x.contiguous(memory_format=layout), norm), expected) < 1e-5


def test_attention_passes_over_masked_keys(device: torch.device) -> None:
    from rsd_policy.kernels.transformer import attention

    qkv = draw(device, torch.float32, 2, 36, 3, 3, 64)
    keep = torch.rand(2, 36, device=device) < 0.5
    keep[:, -4:] = True
    q, k, v = qkv.unbind(2)
    wide = [part.double().transpose(1, 2) for part in (q, k, v)]
    expected = functional.scaled_dot_product_attention(*wide, attn_mask=keep[:, None, None])
    assert error(attention(q, k, v, keep), expected.transpose(1, 2).reshape(2, 36, 192)) < 2e-6


@pytest.mark.skipif(INTERPRETED, reason="fp8 products need a GPU")
def test_an_fp8_product_added_with_its_scales(device: torch.device) -> None:
    from rsd_policy.backbones.openvla.fp8 import Fp8Linear, product, unscaled_product
    from rsd_policy.kernels import llama

    layer = Fp8Linear(draw(device, torch.bfloat16, 96, 64))
    x = llama.quantise(draw(device, torch.bfloat16, 40, 64))
    exact = (x.values.double() * x.scale.double()) @ (layer.weight.double() * layer.scale.double()).t()
    assert error(product(x, layer), exact) < 1e-2
    residual = draw(device, torch.bfloat16, 40, 96)
    expected = residual.double() + exact
    llama.add_scaled(residual, unscaled_product(x, layer))
    assert error(residual, expected) < 1e-2


@torch.inference_mode()
@pytest.mark.parametrize("choice, slots", [("mean", 8), ("mode", 8), ("mean", 56)])
def test_probability_of_the_deviation(device: torch.device, choice: str, slots: int) -> None:
    torch.manual_seed(1)
    predictor = DeviationPredictor(40, 8, slots, 3, choice=choice).to(device).eval()
    for parameter in predictor.parameters():
        nn.init.normal_(parameter, std=0.2)
    hidden, margins = draw(device, torch.float32, 2, slots, 40), draw(device, torch.float32, 3, 2, 8, 7) * 4
    actions, last = draw(device, torch.float32, 2, 8, 7), draw(device, torch.float32, 2, 7)
    for first in ([True, False], [False, True]):
        told = (hidden, margins, actions, last, torch.tensor(first, device=device))
        expected = predictor(*told)
        with fused():
            given = predictor(*told)
        assert torch.allclose(given, expected, rtol=1e-4, atol=1e-7)
        assert 1e-6 < float(expected[:, 0].min()) < 0.999


def test_halved_frames_equal_in_every_bit(device: torch.device) -> None:
    from rsd_policy.backbones.mini import halved

    images = torch.randint(0, 256, (2, 3, 34, 50, 3), dtype=torch.uint8)
    expected = halved(images)
    with fused():
        assert torch.equal(halved(images.to(device)).cpu(), expected)
