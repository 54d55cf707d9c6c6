"""Which episodes the arguments mean, and which arguments are refused."""

from __future__ import annotations

import json

import pytest

from rsd_policy.errors import ArgumentError, CheckpointError
from rsd_policy.evaluation.protocol import EpisodeSpec, EvalConfig, format_indices, parse_indices


@pytest.mark.parametrize(
    ("text", "indices"),
    [("0", (0,)), ("0-2", (0, 1, 2)), ("5,0-2", (0, 1, 2, 5)), ("3,3,2-3", (2, 3)), (" 1 , 4-5 ", (1, 4, 5))],
)
def test_indices_are_sorted_and_unique(text: str, indices: tuple[int, ...]) -> None:
    assert parse_indices(text) == indices
    assert parse_indices(format_indices(indices)) == indices


@pytest.mark.parametrize("text", ["", "a", "1-", "-1", "2-1", "1,,2", "1.5", "0-99999999999"])
def test_malformed_indices_are_refused(text: str) -> None:
    with pytest.raises(ArgumentError):
        parse_indices(text)


def test_episodes_go_task_by_task() -> None:
    config = EvalConfig(suite="libero_goal", tasks=(3, 4), num_trials=2, seed=7)
    assert config.episodes() == [EpisodeSpec("libero_goal", t, i, 7) for t in (3, 4) for i in (0, 1)]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"suite": "libero"}, "libero_spatial"),
        ({"tasks": (10,)}, "0-9"),
        ({"suite": "libero_90", "tasks": (90,)}, "0-89"),
        ({"tasks": ()}, "0-9"),
        ({"num_trials": 0}, "1 to 50"),
        ({"num_trials": 51}, "1 to 50"),
        ({"mode": "fast"}, "baseline"),
        ({"clock": "wall"}, "lockstep"),
        ({"clock": "realtime", "ros": False}, "--no-ros"),
        ({"clock": "realtime", "policy": "expert"}, "lockstep"),
        ({"seed": -1}, "seed"),
    ],
)
def test_refusals_say_what_is_allowed(fields: dict, expected: str) -> None:
    with pytest.raises(ArgumentError, match=expected):
        EvalConfig(**fields)


def test_the_expert_has_neither_mode_nor_device() -> None:
    assert EvalConfig(policy="expert", mode="gated", device="cuda") == EvalConfig(
        policy="expert", mode=None, device=None
    )


def test_config_survives_json_and_names_differences() -> None:
    config = EvalConfig(tasks=(1, 2, 5), num_trials=3, policy="mini", policy_sha256="ab")
    again = EvalConfig.from_json(json.loads(json.dumps(config.to_json())))
    assert again == config
    assert config.differences(EvalConfig(tasks=(1, 2, 5), num_trials=4, policy_sha256="ab")) == ["num_trials: 3 / 4"]


def test_result_names_differ_when_the_arguments_do() -> None:
    variants = [
        EvalConfig(), EvalConfig(suite="libero_goal"), EvalConfig(tasks=(0, 2)), EvalConfig(num_trials=2),
        EvalConfig(mode="baseline"), EvalConfig(ros=False), EvalConfig(clock="realtime"), EvalConfig(seed=1),
        EvalConfig(device="cuda:0"), EvalConfig(policy="expert"), EvalConfig(policy="some/checkpoint"),
    ]  # fmt: skip
    names = [config.name() for config in variants]
    assert len(set(names)) == len(names)
    assert all("/" not in name for name in names)


def test_a_checkpoint_that_is_not_there_is_refused() -> None:
    with pytest.raises(CheckpointError, match="no-such-checkpoint"):
        EvalConfig(policy="no-such-checkpoint").with_checkpoint()
