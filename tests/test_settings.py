"""Settings that several parts share: one file states them, wrong ones are refused with their range."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from rsd_policy.errors import ArgumentError
from rsd_policy.evaluation.protocol import EvalConfig
from rsd_policy.settings import EVAL_CONFIG, SHARED, shared_settings

ROOT = Path(__file__).resolve().parent.parent
GOOD = {setting.name: setting.default for setting in SHARED}


def write(path: Path, values: object) -> Path:
    path.write_text(yaml.safe_dump({"/**": {"ros__parameters": values}}))
    return path


def test_the_file_states_every_shared_setting_once_and_as_the_protocol_has_it() -> None:
    content = yaml.safe_load((ROOT / EVAL_CONFIG).read_text())
    assert content.pop("/**")["ros__parameters"].keys() == GOOD.keys()
    for node, section in content.items():
        assert not section["ros__parameters"].keys() & GOOD.keys(), node
    assert shared_settings() == GOOD, "published LIBERO evaluations"
    assert EvalConfig(**shared_settings()) == EvalConfig()


def test_values_come_from_the_file(tmp_path: Path) -> None:
    values = {"execute_steps": 4, "limit": 0.5, "image_size": 128}
    assert shared_settings(write(tmp_path / "eval.yaml", values)) == values


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("execute_steps", 0),
        ("execute_steps", 4.0),
        ("execute_steps", True),
        ("limit", 1),
        ("limit", 0.0),
        ("limit", float("nan")),
        ("limit", "1.0"),
        ("image_size", 4096),
    ],
)
def test_a_value_of_another_type_or_range_is_refused(tmp_path: Path, name: str, value: object) -> None:
    with pytest.raises(ArgumentError, match=f"{name}: expected .* got {value!r}"):
        shared_settings(write(tmp_path / "eval.yaml", GOOD | {name: value}))
    with pytest.raises(ArgumentError, match=name):
        EvalConfig(**GOOD | {name: value})


def test_a_file_without_them_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="expected limit, image_size under"):
        shared_settings(write(tmp_path / "eval.yaml", {"execute_steps": 8}))
    for text in ("", "- a", "a: [", "eval_node: {}"):
        (tmp_path / "eval.yaml").write_text(text)
        with pytest.raises(ArgumentError, match="expected a ROS parameter file"):
            shared_settings(tmp_path / "eval.yaml")
    with pytest.raises(ArgumentError, match=r"nothing\.yaml"):
        shared_settings(tmp_path / "nothing.yaml")


def test_a_run_names_what_differs_from_the_one_that_it_would_continue() -> None:
    assert EvalConfig().differences(EvalConfig(execute_steps=4, image_size=128)) == [
        "execute_steps: 8 / 4",
        "image_size: 256 / 128",
    ]
