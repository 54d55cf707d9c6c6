"""Figures of held-out demonstrations: what is counted."""

from __future__ import annotations

import numpy as np
import torch

from rsd_policy.codec import RFSQCodec
from rsd_policy.observation import GRIPPER
from rsd_policy.training.mini.validate import Predictions, accuracy


def test_constant_digits_of_the_gripper_do_not_count_as_agreement() -> None:
    """From L1 on they are the same for every action: a draft equal to the head in nothing else had 1 of 7 right."""
    codec = RFSQCodec(torch.ones(7))
    shape = (2, 8, 7)
    main, draft = np.ones((8, *shape), np.int64), np.ones((3, *shape), np.int64)
    draft[..., :GRIPPER] = 0
    draft[:, 0, 0, :GRIPPER] = 1  # one of the twelve valid steps agrees
    mask = np.ones(shape[:2], dtype=bool)
    mask[1, 4:] = False
    actions = np.zeros(shape, np.float32)
    predictions = Predictions(
        main_tokens=main,
        draft_tokens=draft,
        true_tokens=main,
        main_actions=actions,
        draft_actions=actions,
        true_actions=actions,
        margins=np.zeros((3, *shape), np.float32),
        mask=mask,
        teacher_forced=np.ones(8),
        draft_teacher_forced=np.ones(3),
        carries=codec.carries.numpy(),
    )
    equal = accuracy(predictions, [0.1] * 6)["draft_equals_head_per_level"]
    assert equal == [round((6 + 12) / 84, 4), round(6 / 72, 4), round(6 / 72, 4)]
