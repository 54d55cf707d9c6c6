"""Declaring parameters with their unit, range and choices, for `ros2 param describe`; refusing others."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import yaml
from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.node import Node

from rsd_policy.errors import ArgumentError
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


_FOR_ONE_NODE = re.compile(r"([^:=]+):[^:=]+:=")
"""A parameter rule NODE:NAME:=VALUE."""

NodeT = TypeVar("NodeT", bound=Node)


def make_node(make: Callable[[], NodeT], args: Sequence[str] | None) -> NodeT:
    """Make a node, and refuse parameters that it cannot take or would never hear of.

    Raises:
        ArgumentError: a parameter is out of its range or of another type, or is meant for another namespace.
    """
    try:
        node = make()
    except (InvalidParameterValueException, InvalidParameterTypeException, ValueError) as error:
        raise ArgumentError(" ".join(str(error).split())) from error
    try:
        _refuse_unheard_parameters(node, args)
    except ArgumentError:
        node.destroy_node()
        raise
    return node


def _refuse_unheard_parameters(node: Node, args: Sequence[str] | None) -> None:
    """Refuse parameters that mean this node and miss its namespace: ROS drops them in silence.

    Raises:
        ArgumentError: names the entry, the file or argument, and how to write it.
    """
    given = list(sys.argv[1:] if args is None else args)
    full = node.get_fully_qualified_name()
    for option, path in pairwise(given):
        rule = _FOR_ONE_NODE.match(path) if option in ("-p", "--param") else None
        if rule is not None and unheard({rule[1]: {"ros__parameters": {}}}, full, node.get_name()):
            raise ArgumentError(
                f"{option} {path}: does not reach the node {full}; leave out '{rule[1]}:', or give a --params-file"
            )
        if option != "--params-file":
            continue
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        for entry in unheard(content if isinstance(content, dict) else {}, full, node.get_name()):
            raise ArgumentError(
                f"{path}: the parameters of '{entry}' do not reach the node {full}; write '{full}:', or "
                f"'/**/{node.get_name()}:' for every namespace"
            )


def unheard(content: dict[str, Any], full: str, name: str) -> list[str]:
    """Entries with the node's name that are for another namespace, when none is for this one."""
    entries = [_flatten(key, value) for key, value in content.items()]
    names = [entry for group in entries for entry in group]
    if any(_matches(entry, full) and entry.rpartition("/")[2] == name for entry in names):
        return []
    return [entry for entry in names if entry.rpartition("/")[2] == name]


def _flatten(key: str, value: object) -> list[str]:
    """Node names of a parameter file: namespaces may be written as keys above one another."""
    if not isinstance(value, dict) or "ros__parameters" in value:
        return [key]
    return [f"{key.rstrip('/')}/{inner}" for below, rest in value.items() for inner in _flatten(below, rest)]


def _matches(entry: str, full: str) -> bool:
    """Whether an entry of a parameter file is for a node, as rcl reads it: * is one token, ** any number."""
    pattern = re.escape("/" + entry.lstrip("/"))
    pattern = pattern.replace(r"/\*\*", "(/[^/]+)*").replace(r"\*", "[^/]+")
    return re.fullmatch(pattern, full) is not None
