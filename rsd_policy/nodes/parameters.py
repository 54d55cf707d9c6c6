"""Declaring parameters with their unit, range and choices, so that `ros2 param describe` tells them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.node import Node

from rsd_policy.settings import Setting


def declare_choice(node: Node, name: str, choices: Sequence[str], description: str, default: str | None = None) -> str:
    """A string out of `choices`.

    Raises:
        ValueError: another string was given.
    """
    descriptor = ParameterDescriptor(
        description=description, additional_constraints=f"one of {', '.join(choices)}", read_only=True
    )
    value: str = node.declare_parameter(name, choices[0] if default is None else default, descriptor).value
    if value not in choices:
        raise ValueError(f"parameter {name}: expected one of {', '.join(choices)}, got '{value}'")
    return value


def declare_text(node: Node, name: str, default: str, description: str) -> str:
    descriptor = ParameterDescriptor(description=description, read_only=True)
    value: str = node.declare_parameter(name, default, descriptor).value
    return value


def declare_bool(node: Node, name: str, default: bool, description: str) -> bool:
    descriptor = ParameterDescriptor(description=description, read_only=True)
    value: bool = node.declare_parameter(name, default, descriptor).value
    return value


def declare_int(node: Node, name: str, default: int, low: int, high: int, description: str) -> int:
    """An integer in low..high; rclpy refuses others."""
    span = [IntegerRange(from_value=low, to_value=high, step=1)]
    descriptor = ParameterDescriptor(description=description, integer_range=span, read_only=True)
    value: int = node.declare_parameter(name, default, descriptor).value
    return value


def declare_setting(node: Node, setting: Setting) -> Any:
    """A number that several nodes share."""
    declare: Any = declare_int if isinstance(setting.default, int) else declare_float
    return declare(node, setting.name, setting.default, setting.low, setting.high, setting.description)


def declare_float(node: Node, name: str, default: float, low: float, high: float, description: str) -> float:
    """A number in low..high; rclpy refuses others."""
    span = [FloatingPointRange(from_value=low, to_value=high)]
    descriptor = ParameterDescriptor(description=description, floating_point_range=span, read_only=True)
    value: float = node.declare_parameter(name, default, descriptor).value
    return value


def declare_policy_options(node: Node) -> tuple[float | None, str | None, str | None]:
    """`alpha`, `norm_key` and `base` of a policy, None where the checkpoint decides (a parameter cannot be None)."""
    alpha = declare_float(node, "alpha", 0.0, 0.0, 1.0, "Mode gated: bound on deviations; 0: the checkpoint's own")
    norm_key = declare_text(node, "norm_key", "", "OpenVLA: whose action statistics; empty: the checkpoint has one")
    base = declare_text(node, "base", "", "Weights below an adapter or heads; empty: where the checkpoint says")
    return alpha or None, norm_key or None, base or None
