"""The JPEG round trip that OpenVLA's training images went through, bit for bit, without coding a file.

LIBERO's RLDS data set stored its frames through `tf.image.encode_jpeg` (quality 95, chroma halved in both directions)
and read them back through `tf.io.decode_image`; evaluations of OpenVLA repeat it. TensorFlow decodes with libjpeg's
fast integer DCT. Pillow and OpenCV decode with the accurate one, and their pixels differ from TensorFlow's by 0.9 to
1.3 of 255 on average on LIBERO frames. Entropy coding loses nothing, so what remains of the round trip is arithmetic:

    RGB -> YCbCr -> halve Cb and Cr -> 8x8 DCT -> quantise -> dequantise -> 8x8 inverse DCT -> double Cb and Cr -> RGB

Each step below rounds where the integer arithmetic of libjpeg rounds (T.81 tables; forward DCT after Loeffler,
Ligtenberg and Moschytz 1989 with 13-bit constants; inverse DCT after Arai, Agui and Nakajima 1988 with 8-bit constants,
products rounded down). The transforms are matrix products in float64, where all these integers are exact, on any
device.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

QUALITY = 95
"""TensorFlow's default."""

BLOCK = 8

LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
"""ITU-T T.81, table K.1."""

CHROMINANCE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *(((99,) * 8,) * 4),
)
"""ITU-T T.81, table K.2."""

FORWARD_BITS = 13
"""Fraction bits of the forward DCT's constants."""

EXTRA_BITS = 2
"""Fraction bits that both transforms keep between their two passes."""

INVERSE_BITS = 8
"""Fraction bits of the inverse DCT's constants."""

COLOUR_BITS = 16
"""Fraction bits of the colour conversion's constants."""


def _fixed(value: float, bits: int) -> int:
    return int(value * (1 << bits) + 0.5)


def quantisation(table: tuple[tuple[int, ...], ...]) -> NDArray[np.float64]:
    """A T.81 table at `QUALITY`, [8, 8], by the Independent JPEG Group's rule for qualities of 50 and more."""
    scaled = (np.array(table) * (200 - 2 * QUALITY) + 50) // 100
    return np.clip(scaled, 1, 255).astype(np.float64)


def forward_matrix() -> NDArray[np.float64]:
    """One pass of the forward DCT, [8, 8] integers: true DCT x sqrt(8) x 2^FORWARD_BITS.

    Made by passing unit vectors through the factorisation, because its entries are sums of rounded constants and not
    rounded cosines.
    """
    x = np.eye(BLOCK)
    sums, differences = x[:4] + x[7:3:-1], x[:4] - x[7:3:-1]
    even_sums, even_differences = sums[:2] + sums[3:1:-1], sums[:2] - sums[3:1:-1]
    out = np.zeros((BLOCK, BLOCK))
    out[0] = (even_sums[0] + even_sums[1]) * (1 << FORWARD_BITS)
    out[4] = (even_sums[0] - even_sums[1]) * (1 << FORWARD_BITS)
    c = functools.partial(_fixed, bits=FORWARD_BITS)
    shared = (even_differences[0] + even_differences[1]) * c(0.541196100)
    out[2] = shared + even_differences[0] * c(0.765366865)
    out[6] = shared - even_differences[1] * c(1.847759065)
    d7, d6, d5, d4 = differences
    z5 = (d4 + d5 + d6 + d7) * c(1.175875602)
    z1, z2 = (d4 + d7) * -c(0.899976223), (d5 + d6) * -c(2.562915447)
    z3, z4 = (d4 + d6) * -c(1.961570560) + z5, (d5 + d7) * -c(0.390180644) + z5
    out[7] = d4 * c(0.298631336) + z1 + z3
    out[5] = d5 * c(2.053119869) + z2 + z4
    out[3] = d6 * c(3.072711026) + z2 + z3
    out[1] = d7 * c(1.501321110) + z1 + z4
    return out


def inverse_matrices() -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """One pass of the inverse DCT as `direct @ x + rounded @ floor(products @ x / 2^INVERSE_BITS)`.

    Returns:
        direct [8, 8], rounded [8, 5], products [5, 8]: the five products of a pass are rounded down before they are
        added up, which is why one matrix is not enough.
    """
    symbols = np.eye(BLOCK + 5)  # 8 inputs, then the 5 rounded products
    x, p = symbols[:BLOCK], symbols[BLOCK:]
    c = functools.partial(_fixed, bits=INVERSE_BITS)
    z13, z10, z11, z12 = x[5] + x[3], x[5] - x[3], x[1] + x[7], x[1] - x[7]
    products = np.stack(
        [
            (x[2] - x[6]) * c(1.414213562),
            (z11 - z13) * c(1.414213562),
            (z10 + z12) * c(1.847759065),
            z12 * c(1.082392200),
            z10 * -c(2.613125930),
        ]
    )
    sums, crossed = x[2] + x[6], p[0] - (x[2] + x[6])
    even = [x[0] + x[4] + sums, x[0] - x[4] + crossed, x[0] - x[4] - crossed, x[0] + x[4] - sums]
    odd7 = z11 + z13
    odd6 = p[4] + p[2] - odd7
    odd5 = p[1] - odd6
    odd4 = p[3] - p[2] + odd5
    pairs = list(zip(even, [odd7, odd6, odd5, -odd4], strict=True))
    out = np.stack([e + o for e, o in pairs] + [e - o for e, o in reversed(pairs)])
    return out[:, :BLOCK], out[:, BLOCK:], products[:, :BLOCK]


def inverse_scale(steps: NDArray[np.float64]) -> NDArray[np.float64]:
    """Dequantisation factors [8, 8]: step x (s_i s_j), s_0 = 1, s_k = sqrt(2) cos(k pi / 16), with EXTRA_BITS bits."""
    s = np.sqrt(2.0) * np.cos(np.arange(BLOCK) * np.pi / 16)
    s[0] = 1.0
    scale = np.floor(np.outer(s, s) * (1 << 14) + 0.5)
    return np.floor(steps * scale / (1 << (14 - EXTRA_BITS)) + 0.5)


@functools.cache
def _constants(device: torch.device) -> dict[str, Tensor]:
    direct, rounded, products = inverse_matrices()
    arrays = {"forward": forward_matrix(), "direct": direct, "rounded": rounded, "products": products}
    for name, table in (("luminance", LUMINANCE), ("chrominance", CHROMINANCE)):
        steps = quantisation(table)
        arrays[name] = steps
        arrays[name + "_inverse"] = inverse_scale(steps)
    return {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}


@functools.cache
def fused_constants(device: torch.device) -> tuple[Tensor, ...]:
    """`kernels.pixels.JpegConstants`: forward, direct, rounded and products [8, 8], steps and inverse [2, 8, 8]."""
    direct, rounded, products = inverse_matrices()
    missing = BLOCK - rounded.shape[1]
    steps = np.stack([quantisation(table) for table in (LUMINANCE, CHROMINANCE)])
    arrays = (
        forward_matrix(),
        direct,
        np.pad(rounded, ((0, 0), (0, missing))),
        np.pad(products, ((0, missing), (0, 0))),
        steps,
        np.stack([inverse_scale(table) for table in steps]),
    )
    return tuple(torch.from_numpy(np.ascontiguousarray(array)).to(device) for array in arrays)


def jpeg_round_trip(frames: Tensor) -> Tensor:
    """What `tf.io.decode_image(tf.image.encode_jpeg(frame))` returns.

    Args:
        frames: uint8 [N, H, W, 3] RGB, H and W at least 8.

    Returns:
        uint8 [N, H, W, 3] on the same device, equal to TensorFlow's in every value (libjpeg-turbo; checked on rendered
        frames, noise and sizes that are no multiple of 16).
    """
    height, width = frames.shape[1:3]
    constants = _constants(frames.device)
    luma, cb, cr = _rgb_to_ycc(frames.to(torch.float64))
    luma = _code_plane(_pad_to_blocks(luma), constants, "luminance")[:, :height, :width]
    chroma = _pad_to_blocks(_halve(torch.cat([cb, cr])))
    chroma = _code_plane(chroma, constants, "chrominance")[:, : (height + 1) // 2, : (width + 1) // 2]
    cb, cr = _double(chroma)[:, :height, :width].chunk(2)
    return _ycc_to_rgb(luma, cb, cr)


def _rgb_to_ycc(rgb: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[N, H, W, 3] -> luma, Cb, Cr, each [N, H, W], integers 0 .. 255."""
    red, green, blue = rgb.unbind(-1)
    c = functools.partial(_fixed, bits=COLOUR_BITS)
    half = 1 << (COLOUR_BITS - 1)
    offset = (128 << COLOUR_BITS) + half - 1  # one less than half, so that the largest value stays at 255
    luma = red * c(0.29900) + green * c(0.58700) + blue * c(0.11400) + half
    cb = blue * c(0.5) - red * c(0.16874) - green * c(0.33126) + offset
    cr = red * c(0.5) - green * c(0.41869) - blue * c(0.08131) + offset
    luma, cb, cr = (torch.floor(plane / (1 << COLOUR_BITS)) for plane in (luma, cb, cr))
    return luma, cb, cr


def _ycc_to_rgb(luma: Tensor, cb: Tensor, cr: Tensor) -> Tensor:
    """Three planes [N, H, W] -> uint8 [N, H, W, 3]."""
    c = functools.partial(_fixed, bits=COLOUR_BITS)
    half, one = 1 << (COLOUR_BITS - 1), 1 << COLOUR_BITS
    cb, cr = cb - 128, cr - 128
    red = luma + torch.floor((cr * c(1.40200) + half) / one)
    green = luma + torch.floor((half - cb * c(0.34414) - cr * c(0.71414)) / one)
    blue = luma + torch.floor((cb * c(1.77200) + half) / one)
    return torch.stack([red, green, blue], dim=-1).clamp(0, 255).to(torch.uint8)


def _halve(planes: Tensor) -> Tensor:
    """Mean of 2x2 pixels, [N, H, W] -> [N, ceil(H/2), W'], W' in whole blocks; ties go down in even columns, up in odd.

    Edges are repeated to the right before halving, downwards (by the caller) after it, as the encoder does.
    """
    height, width = planes.shape[1:]
    planes = functional.pad(planes[:, None], (0, -width % (2 * BLOCK), 0, height % 2), mode="replicate")[:, 0]
    sums = planes[:, 0::2, 0::2] + planes[:, 0::2, 1::2] + planes[:, 1::2, 0::2] + planes[:, 1::2, 1::2]
    bias = torch.arange(sums.shape[-1], device=planes.device) % 2 + 1
    return torch.floor((sums + bias) / 4)


def _double(planes: Tensor) -> Tensor:
    """[N, h, w] -> [N, 2h, 2w] by the triangle filter (3/4 near, 1/4 far, in both directions); ties alternate."""
    padded = functional.pad(planes[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    middle = 3 * padded[:, 1:-1]
    rows = torch.stack([middle + padded[:, :-2], middle + padded[:, 2:]], dim=2).flatten(1, 2)
    middle = 3 * rows[:, :, 1:-1]
    pairs = torch.stack([middle + rows[:, :, :-2] + 8, middle + rows[:, :, 2:] + 7], dim=3)
    return torch.floor(pairs.flatten(2, 3) / 16)


def _pad_to_blocks(planes: Tensor) -> Tensor:
    height, width = planes.shape[1:]
    return functional.pad(planes[:, None], (0, -width % BLOCK, 0, -height % BLOCK), mode="replicate")[:, 0]


def _code_plane(planes: Tensor, constants: dict[str, Tensor], table: str) -> Tensor:
    """Forward DCT, quantisation and inverse DCT of planes [N, H, W] with H and W multiples of 8."""
    count, height, width = planes.shape
    blocks = planes.view(count, height // BLOCK, BLOCK, width // BLOCK, BLOCK).transpose(2, 3) - 128
    forward = constants["forward"]
    x = _round_shift(blocks @ forward.T, FORWARD_BITS - EXTRA_BITS)
    x = _round_shift(forward @ x, FORWARD_BITS + EXTRA_BITS)
    divisor = 8 * constants[table]
    x = x.sign() * torch.floor((x.abs() + torch.floor(divisor / 2)) / divisor) * constants[table + "_inverse"]
    direct, rounded, products = constants["direct"], constants["rounded"], constants["products"]
    x = direct @ x + rounded @ torch.floor(products @ x / (1 << INVERSE_BITS))
    x = x @ direct.T + torch.floor(x @ products.T / (1 << INVERSE_BITS)) @ rounded.T
    x = (torch.floor(x / (1 << (EXTRA_BITS + 3))) + 128).clamp(0, 255)
    return x.transpose(2, 3).reshape(count, height, width)


def _round_shift(x: Tensor, bits: int) -> Tensor:
    return torch.floor((x + (1 << (bits - 1))) / (1 << bits))
