"""Properties of the codec over many constants, and over real chunks of LIBERO demonstrations."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from benchmarks.codec_sample import load_sample
from rsd_policy.codec import RFSQCodec
from rsd_policy.codec.measure import chunk_error, errors_per_level
from rsd_policy.codec.rfsq import FINEST, GRIPPER
from rsd_policy.training.fit_codec_data import valid_chunks

SHAPES = [(levels, bins) for bins in (3, 5, 7, 9) for levels in (1, 2, 3, 4, 8) if bins**levels <= FINEST]


def random_codec(seed: int, levels: int, bins: int) -> tuple[RFSQCodec, torch.Tensor]:
    """A codec fitted to actions of random ranges, and actions of which some lie beyond them."""
    generator = torch.Generator().manual_seed(seed)
    spread = 10 ** (-2 * torch.rand(7, generator=generator))
    data = ((2 * torch.rand(64, 8, 7, generator=generator) - 1) * spread).clamp(-1, 1)
    fresh = (2 * torch.rand(300, 8, 7, generator=generator) - 1) * spread * 1.2
    return RFSQCodec.fit(data, levels, bins), fresh


@pytest.mark.parametrize(("levels", "bins"), SHAPES)
@pytest.mark.parametrize("seed", range(5))
def test_round_trip_is_exact_and_stays(seed: int, levels: int, bins: int) -> None:
    codec, actions = random_codec(seed, levels, bins)
    tokens = codec.encode(actions)
    decoded = codec.decode(tokens)
    assert tokens.dtype == torch.int64 and tokens.min() >= 0 and tokens.max() < bins
    assert decoded.dtype == torch.float32 and decoded.shape == actions.shape
    again = codec.encode(decoded)
    assert torch.equal(again, tokens)
    assert torch.equal(codec.decode(again), decoded)


@pytest.mark.parametrize(("levels", "bins"), SHAPES)
def test_a_prefix_decodes_to_within_half_its_cell(levels: int, bins: int) -> None:
    codec, actions = random_codec(1, levels, bins)
    limit = codec.limit.float()
    clipped = torch.minimum(torch.maximum(actions, -limit), limit)
    tokens = codec.encode(actions)
    for used in range(1, levels + 1):
        error = (codec.decode(tokens[:used]) - clipped).abs()[..., :GRIPPER]
        assert bool((error <= codec.widths[used - 1, :GRIPPER] * 0.5 + 1e-6).all()), f"{used} levels"


def test_every_token_string_of_the_fitted_range_is_its_own_code() -> None:
    """Tokens -> action -> tokens is the identity wherever the cell lies within the limit."""
    codec, _ = random_codec(2, 5, 3)
    number = torch.arange(3**5)
    digits = torch.stack([number // 3 ** (4 - level) % 3 for level in range(5)])
    tokens = digits[:, :, None].expand(5, -1, 7).clone()
    tokens[0, :, GRIPPER], tokens[1:, :, GRIPPER] = 2, codec.half
    centre = (number - 121).double()[:, None] * codec.widths[-1]
    within = centre.abs() <= codec.limit
    assert torch.equal(codec.encode(codec.decode(tokens))[:, within], tokens[:, within])
    assert within[:, :GRIPPER].float().mean() > 0.85


def test_order_of_actions_is_kept() -> None:
    codec, _ = random_codec(3, 8, 3)
    ramp = torch.linspace(-1.2, 1.2, 4001)[:, None] * codec.limit.float()
    for used in range(1, 9):
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
