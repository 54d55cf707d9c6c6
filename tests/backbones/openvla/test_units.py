"""Normalised numbers to robot units and back."""

from __future__ import annotations

import numpy as np
import pytest

from rsd_policy.backbones.openvla.units import Quantiles, token_values
from rsd_policy.errors import CheckpointError


def quantiles(mask: list[bool]) -> Quantiles:
    entry = {"q01": [-0.5, 0.0, 1.0], "q99": [0.5, 2.0, 1.0], "mask": mask}
    return Quantiles.from_statistics({"a": {"action": entry}}, "a", "action", 3)


def test_ends_of_the_range_are_the_quantiles() -> None:
    stats = quantiles([True, True, False])
    np.testing.assert_allclose(stats.unnormalise(np.array([-1.0, -1.0, 0.3])), [-0.5, 0.0, 0.3], atol=1e-7)
    np.testing.assert_allclose(stats.unnormalise(np.array([1.0, 1.0, 0.3])), [0.5, 2.0, 0.3], atol=1e-7)


def test_normalising_inverts_and_clips() -> None:
    stats = quantiles([True, True, False])
    np.testing.assert_allclose(stats.normalise(np.array([0.25, 1.0, 0.3])), [0.5, 0.0, 0.3], atol=1e-6)
    np.testing.assert_array_equal(stats.normalise(np.array([9.0, -9.0, -9.0])), [1.0, -1.0, -1.0])


def test_constant_dimension_stays_finite() -> None:
    stats = quantiles([True, True, True])
    assert stats.normalise(np.array([0.0, 0.0, 1.0]))[2] == -1.0
    assert stats.unnormalise(np.array([0.0, 0.0, 0.7]))[2] == pytest.approx(1.0, abs=1e-7)


def test_mask_is_true_where_none_is_given() -> None:
    stats = Quantiles.from_statistics({"a": {"proprio": {"q01": [0.0], "q99": [1.0]}}}, "a", "proprio", 1)
    assert stats.mask.tolist() == [True]


@pytest.mark.parametrize(
    ("entry", "named"),
    [
        ({"q01": [0.0]}, "q99"),
        ({"q01": [0.0], "q99": [float("nan")]}, "finite"),
        ({"q01": [1.0], "q99": [0.0]}, "q01 <= q99"),
        ({"q01": [0.0, 0.0], "q99": [1.0, 1.0]}, r"expected 1 values .* got \[\(2,\)"),
        ({"q01": ["low"], "q99": [1.0]}, "low"),
        ([0.0], "expected lists q01 and q99"),
    ],
)
def test_broken_statistics_are_named(entry: object, named: str) -> None:
    with pytest.raises(CheckpointError, match=named):
        Quantiles.from_statistics({"a": {"action": entry}}, "a", "action", 1)


def test_action_tokens_count_bins_downwards_from_the_end_of_the_vocabulary() -> None:
    edges = np.linspace(-1, 1, 256)
    values = token_values(np.array([31999, 31998, 31745, 31744]), 32000, 256)
    centres = (edges[:-1] + edges[1:]) / 2
    # 255 centres for 256 tokens: the last two share one, as in the original.
    np.testing.assert_allclose(values, [centres[0], centres[1], centres[254], centres[254]], atol=1e-15)


def test_other_tokens_give_the_nearest_bin() -> None:
    assert token_values(np.array([5]), 32000, 256) == token_values(np.array([31744]), 32000, 256)
    assert token_values(np.array([32063]), 32000, 256) == token_values(np.array([31999]), 32000, 256)
