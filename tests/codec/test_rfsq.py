"""RFSQ codec: tokens alone decode exactly, every prefix decodes, each level helps, nothing overflows."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from rsd_policy.codec import RFSQCodec
from rsd_policy.codec.rfsq import GRIPPER
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
    assert torch.equal(codec.limit.float()[:GRIPPER], actions.abs().amax(dim=(0, 1))[:GRIPPER])
    assert codec.limit[GRIPPER] == 1.0


def test_manifest_round_trip_is_identical() -> None:
    codec = RFSQCodec.fit(random_actions(100))
    again = RFSQCodec.from_manifest(codec.to_manifest())
    assert torch.equal(again.widths, codec.widths)


def test_bad_input_is_refused() -> None:
    codec = RFSQCodec(SCALE)
    with pytest.raises(ActionError, match="NaN"):
        codec.encode(torch.full((8, 7), float("nan")))
    with pytest.raises(ActionError, match=r"\[8, 6\]"):
        codec.encode(torch.zeros(8, 6))
    with pytest.raises(ActionError):
        codec.decode(torch.zeros(9, 8, 7, dtype=torch.int64))
    with pytest.raises(CheckpointError):
        RFSQCodec(SCALE, bins=4)
    with pytest.raises(CheckpointError):
        RFSQCodec(-SCALE)
