"""Heads: each level depends on the levels before it and on nothing after it."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from rsd_policy.errors import CheckpointError
from rsd_policy.heads import DeviationPredictor, RFSQDraftModel, RFSQHead


def random_head(**sizes: Any) -> RFSQHead:
    torch.manual_seed(0)
    head = RFSQHead(hidden_size=32, width=64, num_layers=1, **sizes).eval()
    torch.nn.init.normal_(head.digit_embedding, std=1.0)
    return head


@torch.inference_mode()
@pytest.mark.parametrize("slots", [8, 56])
def test_greedy_tokens_are_the_arg_max_of_teacher_forcing_on_themselves(slots: int) -> None:
    head = random_head(slots=slots, choice="mode")
    hidden = torch.randn(2, slots, 32)
    tokens, margins = head(hidden)
    assert tokens.shape == margins.shape == (8, 2, 8, 7)
    logits = head.teacher_forced_logits(hidden, tokens)
    assert torch.equal(logits.argmax(-1), tokens)
    top = logits.log_softmax(-1).topk(2).values
    assert torch.allclose(top[..., 0] - top[..., 1], margins, atol=1e-5)


@torch.inference_mode()
def test_a_level_sees_the_levels_before_it_only() -> None:
    head = random_head(slots=8)
    hidden = torch.randn(1, 8, 32)
    tokens, _ = head(hidden)
    changed = tokens.clone()
    changed[3] = (changed[3] + 1) % 3
    before, after = head.teacher_forced_logits(hidden, tokens), head.teacher_forced_logits(hidden, changed)
    assert torch.equal(before[:4], after[:4])
    for level in range(4, 8):
        assert not torch.allclose(before[level], after[level])


@torch.inference_mode()
def test_coarse_digits_can_be_those_of_the_cell_that_holds_the_mean() -> None:
    bins = (9, 3, 3, 5)
    head = random_head(levels=4, bins=bins, choice="mean")
    for mlp in head.level_mlp:  # undecided at each level, so that the mean is often in no likely cell
        torch.nn.init.normal_(mlp[-1].weight, std=0.5)
    hidden = torch.randn(3, 56, 32)
    tokens, margins = head(hidden)

    mean, square, probability_of_best = torch.zeros(3, 3, 8, 7)
    best = torch.zeros(3, 8, 7, dtype=torch.long)
    for number, digits in enumerate(itertools.product(*(range(count) for count in bins[:3]))):
        forced = torch.tensor([*digits, 0]).view(4, 1, 1, 1).expand(4, 3, 8, 7)
        logits = head.teacher_forced_logits(hidden, forced)
        probability = torch.ones(3, 8, 7)
        for level, digit in enumerate(digits):
            probability = probability * logits[level, ..., : bins[level]].softmax(-1)[..., digit]
        mean = mean + number * probability
        square = square + number**2 * probability
        best = torch.where(probability > probability_of_best, number, best)
        probability_of_best = torch.maximum(probability, probability_of_best)
    chosen = (tokens[0] * 3 + tokens[1]) * 3 + tokens[2]
    arm, gripper = slice(0, 6), 6
    assert (chosen[..., arm] - mean[..., arm]).abs().max() <= 0.5 + 1e-3
    assert torch.equal(chosen[..., gripper], best[..., gripper])
    assert (chosen != best).any(), "the mean should differ from the likeliest cell somewhere"

    logits = head.teacher_forced_logits(hidden, tokens)
    assert torch.equal(logits[3].argmax(-1), tokens[3]), "finer digits are the arg max, given the coarse ones"
    top = logits.topk(2).values
    assert torch.allclose((top[..., 0] - top[..., 1])[3], margins[3], atol=1e-5)
    spread = (square - mean**2).sqrt()
    for level, cells in enumerate((9, 3, 1)):  # of L2 in one cell of the level
        assert torch.allclose(margins[level].neg().exp(), spread / cells, rtol=2e-3)


def test_the_choice_is_the_mean_or_the_mode() -> None:
    with pytest.raises(CheckpointError, match="mean or mode, got 'median'"):
        RFSQHead(hidden_size=32, width=64, num_layers=0, choice="median")


def test_seed_dimensions_are_the_default() -> None:
    with torch.device("meta"):
        head, draft = RFSQHead(), RFSQDraftModel()
    assert (head.levels, draft.levels, head.width, len(head.layers)) == (8, 3, 1024, 8)
    assert head.norm.normalized_shape == (4096,)


@torch.inference_mode()
def test_levels_may_have_different_numbers_of_bins() -> None:
    bins = (9, 5, 3)
    head = random_head(levels=3, bins=bins, choice="mode")
    hidden = torch.randn(4, 56, 32)
    tokens, margins = head(hidden)
    logits = head.teacher_forced_logits(hidden, tokens)
    assert logits.shape == (3, 4, 8, 7, 9)
    assert torch.equal(logits.argmax(-1), tokens)
    assert torch.isfinite(margins).all() and (margins >= 0).all()
    for level, count in enumerate(bins):
        assert tokens[level].max() < count
        assert (logits[level, ..., count:] == float("-inf")).all()


@torch.inference_mode()
def test_a_batch_gives_what_its_members_give() -> None:
    head = random_head()
    hidden = torch.randn(3, 56, 32)
    tokens, margins = head(hidden)
    for i in range(3):
        alone, margin = head(hidden[i : i + 1])
        assert torch.equal(alone[:, 0], tokens[:, i])
        assert torch.allclose(margin[:, 0], margins[:, i], atol=1e-4)


@pytest.mark.parametrize("bins", [(3, 3), 1, (3,) * 7 + (1,)])
def test_bins_must_fit_the_levels(bins: Any) -> None:
    with pytest.raises(CheckpointError, match="bins for each of 8 levels"):
        RFSQHead(hidden_size=32, width=64, num_layers=0, bins=bins)


def test_slots_must_fit_the_chunk() -> None:
    with pytest.raises(CheckpointError, match="8 or 56"):
        RFSQHead(slots=7)


@torch.inference_mode()
def test_a_means_largest_doubt_of_the_arm_and_the_grippers_count() -> None:
    """Untrained: p falls with the largest spread of a step, whatever the smaller ones are, and with the gripper's."""
    torch.manual_seed(0)
    predictor = DeviationPredictor(hidden_size=32, horizon=8, slots=8, levels=3).eval()
    margins = torch.full((3, 1, 8, 7), 2.0)
    margins[:, :, 4, 2] = 0.0
    hidden, actions, last, first = torch.randn(1, 8, 32), torch.zeros(1, 8, 7), torch.zeros(1, 7), torch.tensor([False])

    def after(changes: dict[tuple[int, int], float]) -> torch.Tensor:
        changed = margins.clone()
        for (step, dof), value in changes.items():
            changed[:, :, step, dof] = value
        return predictor(hidden, changed, actions, last, first)[0]

    known = after({})
    assert torch.equal(after({(4, 3): 1.0}), known), "smaller than the step's largest"
    for worse in (after({(4, 2): -1.0}), after({(4, 0): -1.0}), after({(4, 6): 1.0})):
        assert torch.equal(worse[:4], known[:4]) and (worse[4:] < known[4:]).all()
