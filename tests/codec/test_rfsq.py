"""RFSQ codec: tokens alone decode exactly, every prefix decodes, each level helps, nothing overflows."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
import torch

from rsd_policy.codec import RFSQCodec
from rsd_policy.codec.rfsq import GRIPPER, HEADROOM
from rsd_policy.errors import ActionError, CheckpointError

SCALE = torch.tensor([1.0, 0.9, 0.8, 0.3, 0.2, 0.5, 1.0])


def random_actions(*shape: int) -> torch.Tensor:
    torch.manual_seed(0)
    return (2 * torch.rand(*shape, 7) - 1) * SCALE


@pytest.mark.parametrize("bins", [3, 5, 7])
def test_encoding_what_was_decoded_gives_the_same_tokens(bins: int) -> None:
    codec = RFSQCodec(SCALE, levels=4, bins=bins)
    tokens = codec.encode(random_actions(500, 8))
    assert torch.equal(codec.encode(codec.decode(tokens)), tokens)


def test_error_is_at_most_half_a_cell_at_every_prefix() -> None:
    codec = RFSQCodec(SCALE)
    actions = random_actions(1000, 8)
    tokens = codec.encode(actions)
    for used in range(1, codec.levels + 1):
        error = (codec.decode(tokens[:used]) - actions).abs()[..., :GRIPPER]
        half_cell = codec.widths[used - 1, :GRIPPER] / 2
        assert bool((error <= half_cell + 1e-6).all()), f"prefix of {used} levels"


def test_each_level_cuts_the_error_to_about_a_third() -> None:
    codec = RFSQCodec(SCALE)
    actions = random_actions(2000, 8)
    tokens = codec.encode(actions)
    errors = [(codec.decode(tokens[:n]) - actions).abs()[..., :GRIPPER].mean().item() for n in range(1, 9)]
    for coarse, fine in pairwise(errors):
        assert coarse / fine > 1.6


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
    for digit in (0, codec.bins - 1):
        decoded = codec.decode(torch.full((codec.levels, 8, 7), digit))
        assert bool((decoded.abs() <= codec.limit.float()).all())


def test_rest_and_full_speed_are_exact_from_the_second_level_on() -> None:
    codec = RFSQCodec.fit((3 * random_actions(50, 8) / SCALE).clamp(-1, 1))
    for extreme in (torch.zeros(7, dtype=torch.float64), codec.limit, -codec.limit):
        actions = extreme.float().expand(8, 7).clone()
        tokens = codec.encode(actions)
        for used in range(2, codec.levels + 1):
            assert torch.equal(codec.decode(tokens[:used])[:, :GRIPPER], actions[:, :GRIPPER])
        assert bool((tokens[2:] == codec.half).all()), "finer digits carry nothing"


def test_the_grid_ends_at_the_limit_where_nothing_saturates() -> None:
    actions = random_actions(500, 8) / SCALE
    actions[..., 0] = (3 * actions[..., 0]).clamp(-1, 1)
    codec = RFSQCodec.fit(actions)
    assert codec.scale[0] == pytest.approx(9 / 8)
    assert torch.equal(codec.scale[1:GRIPPER], codec.limit[1:GRIPPER])


def test_gripper_takes_one_bit_a_step() -> None:
    codec = RFSQCodec(SCALE)
    tokens = codec.encode(random_actions(1000, 8))
    assert set(tokens[0, ..., GRIPPER].unique().tolist()) == {0, codec.bins - 1}
    assert bool((tokens[1:, ..., GRIPPER] == codec.half).all())
    assert codec.carries.sum() == codec.levels * GRIPPER + 1
    three = torch.log2(torch.tensor(3.0)).item()
    assert codec.bits(8) == pytest.approx([8 * (1 + 6 * three * used) for used in range(1, 9)])


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


def test_manifest_without_a_limit_keeps_its_grid() -> None:
    """Checkpoints written before the limit was kept: the grid ended at the scale."""
    codec = RFSQCodec.from_manifest({"scale": SCALE.tolist(), "levels": 8, "bins": 3})
    assert torch.allclose(codec.widths[0], 2 * SCALE.double() / 3)
    assert torch.equal(codec.limit, codec.scale)
    every_digit = torch.full((8, 1, 7), 2)
    assert torch.allclose(codec.decode(every_digit)[0, :GRIPPER], SCALE[:GRIPPER] * (1 - 3.0**-8))


def test_bad_input_is_refused() -> None:
    codec = RFSQCodec(SCALE)
    with pytest.raises(ActionError, match="NaN"):
        codec.encode(torch.full((8, 7), float("nan")))
    with pytest.raises(ActionError, match=r"\[8, 6\]"):
        codec.encode(torch.zeros(8, 6))
    with pytest.raises(ActionError):
        codec.decode(torch.zeros(9, 8, 7, dtype=torch.int64))
    with pytest.raises(ActionError, match="NaN"):
        RFSQCodec.fit(torch.full((8, 7), float("inf")))
    with pytest.raises(ActionError, match=r"\[0, 8, 7\]"):
        RFSQCodec.fit(torch.zeros(0, 8, 7))
    with pytest.raises(CheckpointError, match="odd"):
        RFSQCodec(SCALE, bins=4)
    with pytest.raises(CheckpointError, match="bins"):
        RFSQCodec(SCALE, levels=9, bins=7)
    with pytest.raises(CheckpointError, match="scale"):
        RFSQCodec(-SCALE)
    with pytest.raises(CheckpointError, match="limit"):
        RFSQCodec(SCALE, limit=2 * SCALE)
    with pytest.raises(CheckpointError, match="codec"):
        RFSQCodec.from_manifest({"levels": 8, "bins": 3})
