"""Which episodes the arguments mean, and which arguments are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from rsd_policy.checkpoints.loading import save_policy
from rsd_policy.errors import ArgumentError, CheckpointError
from rsd_policy.evaluation.in_process.drivers import EngineDriver, make_driver
from rsd_policy.evaluation.protocol import EpisodeSpec, EvalConfig, first_trials, format_indices, parse_indices
from rsd_policy.graph.bringup import eval_nodes
from tests.policies import small_policy


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
    config = EvalConfig(suite="libero_goal", tasks=(3, 4), trials=(0, 1), seed=7)
    assert config.episodes() == [EpisodeSpec("libero_goal", t, i, 7) for t in (3, 4) for i in (0, 1)]


def test_perturbed_suites_have_the_limits_of_those_that_they_perturb() -> None:
    steps = [EvalConfig(suite=suite).max_steps for suite in ("libero_spatial_swap", "libero_10_object", "libero_10")]
    assert steps == [220, 520, 520]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"suite": "libero"}, "libero_spatial"),
        ({"suite": "libero_90_swap"}, "one of the first four with _swap, _object, _task, _lan"),
        ({"suite": "libero_goal_lan", "tasks": (10,)}, "0-9"),
        ({"suite": "libero_goal_lan", "trials": (50,)}, "0-49; got 50"),
        ({"tasks": (10,)}, "0-9"),
        ({"suite": "libero_90", "tasks": (90,)}, "0-89"),
        ({"tasks": ()}, "0-9"),
        ({"trials": ()}, "0-49; got none"),
        ({"trials": (20, 50)}, "0-49; got 50"),
        ({"mode": "fast"}, "baseline"),
        ({"clock": "wall"}, "lockstep"),
        ({"clock": "realtime", "ros": False}, "--no-ros"),
        ({"clock": "realtime", "policy": "expert"}, "lockstep"),
        ({"seed": -1}, "seed"),
        ({"mode": "gated", "alpha": 1.0}, "between 0 and 1"),
        ({"mode": "gated", "alpha": float("nan")}, "between 0 and 1"),
        ({"mode": "speculative", "alpha": 0.1}, "mode 'gated'; got mode 'speculative'"),
        ({"policy": "expert", "mode": "gated", "alpha": 0.1}, "has no modes"),
    ],
)
def test_refusals_say_what_is_allowed(fields: dict, expected: str) -> None:
    with pytest.raises(ArgumentError, match=expected):
        EvalConfig(**fields)


def test_trials_are_a_range_and_num_trials_its_short_form() -> None:
    """Figures of the first states alone flatter where these have been looked at: the others have to be reachable."""
    held_out = EvalConfig(suite="libero_goal", tasks=(3,), trials=parse_indices("20-22"))
    assert held_out.episodes() == [EpisodeSpec("libero_goal", 3, i) for i in (20, 21, 22)]
    assert "--trials 20-22" in held_out.command()
    assert "--num-trials 3" in replace(held_out, trials=first_trials(3)).command()
    for count in (0, 51):
        with pytest.raises(ArgumentError, match="1 to 50"):
            first_trials(count)


def test_a_run_of_version_0_1_goes_on_with_its_number_of_trials() -> None:
    config = EvalConfig(trials=(0, 1, 2))
    old = config.to_json()
    del old["trials"]
    assert EvalConfig.from_json(old | {"num_trials": 3}) == config


def test_the_expert_has_neither_mode_nor_device() -> None:
    assert EvalConfig(policy="expert", mode="gated", device="cuda") == EvalConfig(
        policy="expert", mode=None, device=None
    )


def test_config_survives_json_and_names_differences() -> None:
    config = EvalConfig(tasks=(1, 2, 5), trials=tuple(range(3)), policy="mini", policy_sha256="ab")
    again = EvalConfig.from_json(json.loads(json.dumps(config.to_json())))
    assert again == config
    other = EvalConfig(tasks=(1, 2, 5), trials=(0, 3), policy_sha256="ab")
    assert config.differences(other) == ["trials: [0, 1, 2] / [0, 3]"]


def test_result_names_differ_when_the_arguments_do() -> None:
    variants = [
        EvalConfig(), EvalConfig(suite="libero_goal"), EvalConfig(tasks=(0, 2)), EvalConfig(trials=(0, 1)),
        EvalConfig(trials=(20, 21)), EvalConfig(trials=(0, 2)),
        EvalConfig(mode="baseline"), EvalConfig(ros=False), EvalConfig(clock="realtime"), EvalConfig(seed=1),
        EvalConfig(mode="gated"), EvalConfig(mode="gated", alpha=0.1), EvalConfig(mode="gated", alpha=0.2),
        EvalConfig(norm_key="libero_goal_no_noops"), EvalConfig(device="cuda:0"), EvalConfig(policy="expert"),
        EvalConfig(policy="some/checkpoint"),
    ]  # fmt: skip
    names = [config.name() for config in variants]
    assert len(set(names)) == len(names)
    assert all("/" not in name for name in names)


def test_the_result_of_a_policy_with_a_long_path_has_a_name_that_a_file_system_takes(tmp_path: Path) -> None:
    """Training tools name checkpoints by all their options: OSError 36, "File name too long", with 202 characters."""
    long = "openvla-7b+libero_spatial_no_noops+b8+lr-0.0005+lora-r32+" + "shf0--image_aug--" * 9
    odd = tuple(range(1, 90, 2))
    configs = [
        EvalConfig("libero_90", odd, tuple(range(0, 50, 2)), f"/data/{long}-{end}", mode="gated", alpha=0.123,
                   norm_key="libero_spatial_no_noops" * 9, ros=False, seed=2**32 - 1, device="cuda:7")
        for end in ("a", "b")
    ]  # fmt: skip
    names = [config.name() for config in configs]
    assert names[0] != names[1]
    for name in names:
        assert len(name.encode()) < 240, "eval- and endings come to it"
        (tmp_path / f"eval-{name}").mkdir()
    assert EvalConfig(policy="out/heads").name().startswith("libero_spatial-out-heads-"), "short ones are as given"


def test_a_checkpoint_that_is_not_there_is_refused() -> None:
    with pytest.raises(CheckpointError, match="no-such-checkpoint"):
        EvalConfig(policy="no-such-checkpoint").with_checkpoint()


def test_a_gated_run_records_the_alpha_that_it_keeps(tmp_path: Path) -> None:
    checkpoint = tmp_path / "calibrated"
    save_policy(checkpoint, small_policy())
    config = EvalConfig(policy=str(checkpoint), mode="gated", ros=False)
    assert config.with_checkpoint().alpha == 0.1, "the checkpoint's own"
    chosen = replace(config, alpha=0.06).with_checkpoint()
    assert chosen.alpha == 0.06 and chosen.with_checkpoint() == chosen
    assert "--mode gated --alpha 0.06 --no-ros" in chosen.command()
    assert replace(config, mode="speculative").with_checkpoint().alpha is None
    with pytest.raises(ArgumentError, match=r"alpha 0\.04: .* can keep alphas from 0\.050 on"):
        replace(config, alpha=0.04).with_checkpoint()


def test_the_engine_of_a_run_keeps_its_alpha(tmp_path: Path) -> None:
    checkpoint = tmp_path / "calibrated"
    save_policy(checkpoint, small_policy())
    driver = make_driver(EvalConfig(policy=str(checkpoint), mode="gated", alpha=0.06, ros=False))
    assert isinstance(driver, EngineDriver) and driver.gate is not None
    assert driver.gate.alpha == 0.06


def test_a_norm_key_is_for_checkpoints_that_have_several() -> None:
    with pytest.raises(ArgumentError, match=r"norm key 'bridge_orig'.*got policy 'mini'"):
        EvalConfig(policy="mini", norm_key="bridge_orig").with_checkpoint()


@pytest.mark.parametrize("policy", ["mini", "expert"])
def test_a_base_is_for_checkpoints_that_stand_on_other_weights(policy: str) -> None:
    with pytest.raises(ArgumentError, match=f"base 'openvla/openvla-7b': expected none.*'{policy}'"):
        EvalConfig(policy=policy, base="openvla/openvla-7b").with_checkpoint()


def test_every_node_of_the_graph_gets_the_policy_options() -> None:
    arguments = {"task_suite": "libero_goal", "tasks": "0", "trials": "0", "policy": "mini", "mode": "gated"}
    arguments |= {"clock": "lockstep", "device": "cpu", "seed": 0, "out": "", "report": False}
    for given, expected in (({}, (0.0, "", "")), ({"alpha": 0.2, "norm_key": "k", "base": "b"}, (0.2, "k", "b"))):
        specs = {spec.name: spec.parameters for spec in eval_nodes(**arguments, **given)}
        for name in ("policy_node", "eval_node"):
            assert tuple(specs[name][option] for option in ("alpha", "norm_key", "base")) == expected
