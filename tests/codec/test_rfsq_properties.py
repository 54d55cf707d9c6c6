"""Properties of the codec over many constants, and over real chunks of LIBERO demonstrations."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from benchmarks.codec.sample import load_sample
from rsd_policy.codec import RFSQCodec
from rsd_policy.codec.measure import chunk_error, errors_per_level
from rsd_policy.codec.rfsq import BINS, FINEST
from rsd_policy.observation import GRIPPER
from rsd_policy.training.codec_data import valid_chunks

UNIFORM = [(count,) * levels for count in (3, 5, 7, 9) for levels in (1, 2, 3, 4, 8) if count**levels <= FINEST]
MIXED = [BINS, (5, 7, 3), (3, 5, 7, 9), (27, 3, 3), (3, 9), (3, 3, 3, 11, 3)]


def random_codec(seed: int, bins: tuple[int, ...]) -> tuple[RFSQCodec, torch.Tensor]:
    """A codec fitted to actions of random ranges, and actions of which some lie beyond them."""
    generator = torch.Generator().manual_seed(seed)
    spread = 10 ** (-2 * torch.rand(7, generator=generator))
    data = ((2 * torch.rand(64, 8, 7, generator=generator) - 1) * spread).clamp(-1, 1)
    fresh = (2 * torch.rand(300, 8, 7, generator=generator) - 1) * spread * 1.2
    return RFSQCodec.fit(data, bins), fresh


@pytest.mark.parametrize("bins", UNIFORM + MIXED)
@pytest.mark.parametrize("seed", range(5))
def test_round_trip_is_exact_and_stays(seed: int, bins: tuple[int, ...]) -> None:
    codec, actions = random_codec(seed, bins)
    tokens = codec.encode(actions)
    decoded = codec.decode(tokens)
    assert tokens.dtype == torch.int64 and tokens.shape == (len(bins), *actions.shape) and tokens.min() >= 0
    assert all(digits.max() < count for digits, count in zip(tokens, bins, strict=True))
    assert decoded.dtype == torch.float32 and decoded.shape == actions.shape
    again = codec.encode(decoded)
    assert torch.equal(again, tokens)
    assert torch.equal(codec.decode(again), decoded)


@pytest.mark.parametrize("bins", UNIFORM + MIXED)
def test_a_prefix_decodes_to_within_half_its_cell(bins: tuple[int, ...]) -> None:
    codec, actions = random_codec(1, bins)
    limit = codec.limit.float()
    clipped = torch.minimum(torch.maximum(actions, -limit), limit)
    tokens = codec.encode(actions)
    for used in range(1, codec.levels + 1):
        error = (codec.decode(tokens[:used]) - clipped).abs()[..., :GRIPPER]
        assert bool((error <= codec.widths[used - 1, :GRIPPER] * 0.5 + 1e-6).all()), f"{used} levels"


@pytest.mark.parametrize("bins", [(3,) * 5, BINS[:4], (5, 7, 3), (3, 9)])
def test_every_token_string_of_the_fitted_range_is_its_own_code(bins: tuple[int, ...]) -> None:
    """Tokens -> action -> tokens is the identity wherever the cell lies within the limit."""
    codec, _ = random_codec(2, bins)
    digits = torch.cartesian_prod(*(torch.arange(count) for count in bins)).T
    number = torch.arange(math.prod(bins))  # in that order: the first digit counts most
    tokens = digits[:, :, None].expand(-1, -1, 7).clone()
    tokens[0, :, GRIPPER], tokens[1:, :, GRIPPER] = bins[0] - 1, codec.half[1:, None]
    centre = (number - (len(number) - 1) // 2).double()[:, None] * codec.widths[-1]
    within = centre.abs() <= codec.limit
    assert torch.equal(codec.encode(codec.decode(tokens))[:, within], tokens[:, within])
    # of the grid whose outermost centres are the limits, a share of 1 / B_0 lies beyond them
    assert within[:, :GRIPPER].float().mean() >= 1 - 1 / bins[0] - 2 / len(number)


@pytest.mark.parametrize("bins", [BINS, (3,) * 8, (5, 7, 3)])
def test_order_of_actions_is_kept(bins: tuple[int, ...]) -> None:
    codec, _ = random_codec(3, bins)
    ramp = torch.linspace(-1.2, 1.2, 4001)[:, None] * codec.limit.float()
    for used in range(1, codec.levels + 1):
        decoded = codec.decode(codec.encode(ramp)[:used])
        assert bool((decoded.diff(dim=0) >= 0).all())


def test_real_chunks_round_trip_and_meet_the_bar_on_episodes_they_were_not_fitted_to() -> None:
    """Each level makes the error at least 1.6 times smaller; L0-L2 are within 5 mm and 0.05 rad a step at p95."""
    episodes = load_sample()
    codec = RFSQCodec.fit(torch.from_numpy(valid_chunks(episodes[0::2], 8)))
    chunks = valid_chunks(episodes[1::2], 8)
    tokens = codec.encode(torch.from_numpy(chunks))
    decoded = codec.decode(tokens)
    assert torch.equal(codec.encode(decoded), tokens)
    assert torch.equal(decoded[..., GRIPPER], torch.from_numpy(chunks)[..., GRIPPER])
    still = chunk_error(torch.zeros_like(decoded).numpy(), chunks)
    errors = [still, *errors_per_level(codec, chunks)]
    for level, (before, after) in enumerate(pairwise(errors)):
        assert before.rms_mm / after.rms_mm >= 1.6, f"L{level}, translation"
        assert before.rms_rad / after.rms_rad >= 1.6, f"L{level}, rotation"
    assert errors[3].p95_mm <= 5.0 and errors[3].p95_rad <= 0.05
