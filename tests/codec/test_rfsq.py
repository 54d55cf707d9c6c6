"""RFSQ codec: tokens alone decode exactly, every prefix decodes, each level helps, nothing overflows."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import pytest
import torch

from rsd_policy.codec import RFSQCodec
from rsd_policy.codec.rfsq import BINS, HEADROOM
from rsd_policy.errors import ActionError, CheckpointError
from rsd_policy.observation import GRIPPER

TERNARY, MIXED = (3,) * 8, (5, 7, 3)

SCALE = torch.tensor([1.0, 0.9, 0.8, 0.3, 0.2, 0.5, 1.0])


def random_actions(*shape: int) -> torch.Tensor:
    torch.manual_seed(0)
    return (2 * torch.rand(*shape, 7) - 1) * SCALE


@pytest.mark.parametrize("bins", [BINS, TERNARY, MIXED])
def test_encoding_what_was_decoded_gives_the_same_tokens(bins: tuple[int, ...]) -> None:
    codec = RFSQCodec(SCALE, bins)
    tokens = codec.encode(random_actions(500, 8))
    assert torch.equal(codec.encode(codec.decode(tokens)), tokens)


@pytest.mark.parametrize("bins", [BINS, TERNARY, MIXED])
def test_error_is_at_most_half_a_cell_at_every_prefix(bins: tuple[int, ...]) -> None:
    codec = RFSQCodec(SCALE, bins)
    actions = random_actions(1000, 8)
    tokens = codec.encode(actions)
    for used in range(1, codec.levels + 1):
        error = (codec.decode(tokens[:used]) - actions).abs()[..., :GRIPPER]
        half_cell = codec.widths[used - 1, :GRIPPER] / 2
        assert bool((error <= half_cell + 1e-6).all()), f"prefix of {used} levels"


def test_numbers_of_a_small_codec() -> None:
    """Bins 3 and 5 over [-1, 1]: cells of 2/3, then of 2/15; 0.5 is cell 4 of -7 .. 7, digits 1 and -1."""
    codec = RFSQCodec(torch.ones(7), (3, 5))
    assert codec.cells == (3, 15) and codec.places.tolist() == [5, 1] and codec.half.tolist() == [1, 2]
    torch.testing.assert_close(codec.widths[:, 0], torch.tensor([2 / 3, 2 / 15], dtype=torch.float64))
    tokens = codec.encode(torch.full((1, 7), 0.5))
    assert tokens[:, 0, 0].tolist() == [1 + 1, 2 - 1]
    assert codec.decode(tokens[:1])[0, 0] == pytest.approx(2 / 3)
    assert codec.decode(tokens)[0, 0] == pytest.approx(4 * 2 / 15)


@pytest.mark.parametrize("bins", [BINS, TERNARY, MIXED])
def test_each_level_divides_the_error_by_about_its_bins(bins: tuple[int, ...]) -> None:
    codec = RFSQCodec(SCALE, bins)
    actions = random_actions(2000, 8)
    tokens = codec.encode(actions)
    errors = [(codec.decode(tokens[:n]) - actions).abs()[..., :GRIPPER].mean().item() for n in range(1, len(bins) + 1)]
    for (coarse, fine), count in zip(pairwise(errors), bins[1:], strict=True):
        assert coarse / fine == pytest.approx(count, rel=0.1)


def test_nine_bins_at_first_tell_what_two_levels_of_three_do() -> None:
    actions = random_actions(500, 8)
    nine, three = RFSQCodec(SCALE, BINS), RFSQCodec(SCALE, TERNARY)
    for used in range(1, 8):
        decoded = (codec.decode(codec.encode(actions)[:n]) for codec, n in ((nine, used), (three, used + 1)))
        torch.testing.assert_close(*decoded)


def test_the_sample_has_no_influence_on_how_another_decodes() -> None:
    codec = RFSQCodec(SCALE)
    one, other = random_actions(1, 8), 0.01 * random_actions(1, 8)
    together = codec.encode(torch.cat([one, other]))
    assert torch.equal(together[:, :1], codec.encode(one))
    assert torch.equal(codec.decode(together)[1:], codec.decode(codec.encode(other)))


def test_actions_beyond_the_range_saturate_at_the_outermost_cell() -> None:
    codec = RFSQCodec(SCALE)
    beyond = codec.decode(codec.encode(torch.full((8, 7), 5.0)))
    inside = codec.decode(codec.encode(SCALE.expand(8, 7).clone()))
    assert torch.equal(beyond, inside)
    assert bool((beyond[..., :GRIPPER] <= SCALE[:GRIPPER]).all())


def test_saturation_decodes_to_the_outermost_cell_of_the_fit() -> None:
    codec = RFSQCodec.fit(random_actions(50, 8))
    for used in range(1, codec.levels + 1):
        beyond = codec.decode(codec.encode(torch.full((8, 7), 5.0))[:used])
        at_limit = codec.decode(codec.encode(codec.limit.float().expand(8, 7).clone())[:used])
        assert torch.equal(beyond, at_limit)
        off = (codec.limit.float() - beyond)[:, :GRIPPER]
        assert bool((off >= 0).all() and (off <= codec.widths[used - 1, :GRIPPER] / 2 + 1e-6).all())
    other_end = codec.decode(codec.encode(torch.full((8, 7), -5.0)))
    assert torch.equal(other_end[:, :GRIPPER], -beyond[:, :GRIPPER])


def test_no_tokens_decode_beyond_the_limit() -> None:
    codec = RFSQCodec.fit(random_actions(50, 8))
    lowest = torch.zeros(codec.levels, 8, 7, dtype=torch.int64)
    highest = lowest + torch.tensor(codec.bins)[:, None, None] - 1
    for tokens in (lowest, highest):
        decoded = codec.decode(tokens)
        assert bool((decoded.abs() <= codec.limit.float()).all())


@pytest.mark.parametrize("bins", [BINS, TERNARY, MIXED])
def test_rest_and_full_speed_are_exact_from_the_first_level_on(bins: tuple[int, ...]) -> None:
    codec = RFSQCodec.fit((3 * random_actions(50, 8) / SCALE).clamp(-1, 1), bins)
    assert bool((codec.scale > codec.limit)[:GRIPPER].all()), "the grid whose outermost centres are the limits"
    for extreme in (torch.zeros(7, dtype=torch.float64), codec.limit, -codec.limit):
        actions = extreme.float().expand(8, 7).clone()
        tokens = codec.encode(actions)
        for used in range(1, codec.levels + 1):
            assert torch.equal(codec.decode(tokens[:used])[:, :GRIPPER], actions[:, :GRIPPER])
        assert bool((tokens[1:] == codec.half[1:, None, None]).all()), "finer digits carry nothing"


def test_the_grid_ends_at_the_limit_where_nothing_saturates() -> None:
    actions = random_actions(500, 8) / SCALE
    actions[..., 0] = (3 * actions[..., 0]).clamp(-1, 1)
    codec = RFSQCodec.fit(actions)
    assert codec.scale[0] == pytest.approx(9 / 8)
    assert torch.equal(codec.scale[1:GRIPPER], codec.limit[1:GRIPPER])


def test_gripper_takes_one_bit_a_step() -> None:
    codec = RFSQCodec(SCALE)
    tokens = codec.encode(random_actions(1000, 8))
    assert set(tokens[0, ..., GRIPPER].unique().tolist()) == {0, codec.bins[0] - 1}
    assert bool((tokens[1:, ..., GRIPPER] == codec.half[1:, None, None]).all())
    assert codec.carries.sum() == codec.levels * GRIPPER + 1
    # nine cells say as much as two digits of three
    assert codec.bits(8) == pytest.approx([8 * (1 + 6 * math.log2(3) * used) for used in range(2, 10)])


@pytest.mark.parametrize(("command", "expected"), [(-1.0, -1.0), (1.0, 1.0), (0.2, 1.0), (-0.2, -1.0)])
def test_gripper_decodes_to_its_sign_from_every_prefix(command: float, expected: float) -> None:
    codec = RFSQCodec(SCALE)
    actions = torch.zeros(8, 7)
    actions[:, GRIPPER] = command
    tokens = codec.encode(actions)
    for used in range(1, codec.levels + 1):
        assert bool((codec.decode(tokens[:used])[:, GRIPPER] == expected).all())


def test_zero_motion_is_exact() -> None:
    codec = RFSQCodec(SCALE)
    assert bool((codec.decode(codec.encode(torch.zeros(8, 7)))[:, :GRIPPER] == 0).all())


def test_fit_covers_the_data_and_keeps_the_gripper_at_one() -> None:
    actions = random_actions(50, 8)
    codec = RFSQCodec.fit(actions)
    largest = actions.abs().amax(dim=(0, 1)).double()
    assert torch.equal(codec.limit[:GRIPPER], (HEADROOM * largest).clamp(max=1.0)[:GRIPPER])
    assert codec.limit[GRIPPER] == 1.0


def test_manifest_round_trip_is_identical() -> None:
    codec = RFSQCodec.fit(random_actions(100))
    again = RFSQCodec.from_manifest(json.loads(json.dumps(codec.to_manifest())))
    assert torch.equal(again.widths, codec.widths) and torch.equal(again.limit, codec.limit)
    assert again.bins == codec.bins == BINS


def test_bad_input_is_refused() -> None:
    codec = RFSQCodec(SCALE)
    with pytest.raises(ActionError, match="NaN"):
        codec.encode(torch.full((8, 7), float("nan")))
    with pytest.raises(ActionError, match=r"\[8, 6\]"):
        codec.encode(torch.zeros(8, 6))
    with pytest.raises(ActionError):
        codec.decode(torch.zeros(codec.levels + 1, 8, 7, dtype=torch.int64))
    with pytest.raises(ActionError, match="NaN"):
        RFSQCodec.fit(torch.full((8, 7), float("inf")))
    with pytest.raises(ActionError, match=r"\[0, 8, 7\]"):
        RFSQCodec.fit(torch.zeros(0, 8, 7))
    for bins in ((), (4,), (9, 3, 2), (3, 1), (-3,), (7,) * 9):
        with pytest.raises(CheckpointError, match="one odd number of at least 3 for each level"):
            RFSQCodec(SCALE, bins)
        with pytest.raises(CheckpointError, match="codec bins"):
            RFSQCodec.fit(random_actions(8), bins)
    with pytest.raises(CheckpointError, match="scale"):
        RFSQCodec(-SCALE)
    with pytest.raises(CheckpointError, match="limit"):
        RFSQCodec(SCALE, limit=2 * SCALE)
    constants = {"scale": SCALE.tolist(), "limit": SCALE.tolist()}
    for entry in ({"bins": [3]}, constants, {**constants, "bins": 3}, {**constants, "bins": ["x"]}):
        with pytest.raises(CheckpointError, match="manifest entry 'codec'"):
            RFSQCodec.from_manifest(entry)
