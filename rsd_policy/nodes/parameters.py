"""Declaring parameters with their unit, range and choices, for `ros2 param describe`; refusing others."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Collection, Sequence
from difflib import get_close_matches
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
        ArgumentError: a parameter is out of its range or of another type, is meant for another namespace or name, or
            is in a file under the node's name and is none of its parameters.
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
    names = (node.get_name(), Path(sys.argv[0]).stem)  # files for a node that was given another name have the old one
    for option, path in pairwise(given):
        rule = _FOR_ONE_NODE.match(path) if option in ("-p", "--param") else None
        if rule is not None and unheard([rule[1]], full, *names):
            raise ArgumentError(
                f"{option} {path}: does not reach the node {full}; leave out '{rule[1]}:', or give a --params-file"
            )
        if option in ("-p", "--param") and rule is None:
            # not refused: SetParameter of a launch file says such things to every node
            parameter = path.partition(":=")[0]
            if not node.has_parameter(parameter):
                node.get_logger().warning(f"{full} has no parameter '{parameter}'{_similar(node, parameter)}")
        if option != "--params-file":
            continue
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        entries = entries_of(content if isinstance(content, dict) else {})
        for entry in unheard(entries, full, *names):
            raise ArgumentError(
                f"{path}: the parameters of '{entry}' do not reach the node {full}; write '{full}:', or "
                f"'/**/{node.get_name()}:' for every namespace"
            )
        own = [values for entry, values in entries.items() if _of_node(entry, full, node.get_name())]
        for parameter in (parameter for values in own for parameter in values):
            if not node.has_parameter(parameter):
                raise ArgumentError(f"{path}: {full} has no parameter '{parameter}'{_similar(node, parameter)}")


def unheard(entries: Collection[str], full: str, *names: str) -> list[str]:
    """Entries for a node of another namespace or name, when none is for this one.

    Args:
        entries: node names of a parameter file.
        full: the node's name with its namespace.
        names: the node's name, and others that it may be known by.
    """
    if any(_of_node(entry, full, names[0]) for entry in entries):
        return []
    return [entry for entry in entries if entry.rpartition("/")[2] in names]


def _of_node(entry: str, full: str, name: str) -> bool:
    """Whether an entry of a parameter file is for a node by its name, and not for every node."""
    return _matches(entry, full) and entry.rpartition("/")[2] == name


def _similar(node: Node, parameter: str) -> str:
    close = get_close_matches(parameter, list(node.get_parameters_by_prefix("")), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def entries_of(content: dict[str, Any], above: str = "") -> dict[str, dict[str, Any]]:
    """Node name -> parameters of a parameter file, where namespaces may be written as keys above one another."""
    found: dict[str, dict[str, Any]] = {}
    for key, value in content.items():
        name = f"{above.rstrip('/')}/{key}" if above else key
        if not isinstance(value, dict):
            continue
        if "ros__parameters" in value:
            found[name] = _parameters(value["ros__parameters"] or {})
        else:
            found |= entries_of(value, name)
    return found


def _parameters(values: dict[str, Any], above: str = "") -> dict[str, Any]:
    """Parameters by their names with dots, as ROS reads nested ones."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _parameters(value, f"{above}{key}.") if isinstance(value, dict) else {f"{above}{key}": value}
    return found


def _matches(entry: str, full: str) -> bool:
    """Whether an entry of a parameter file is for a node, as rcl reads it: * is one token, ** any number."""
    pattern = re.escape("/" + entry.lstrip("/"))
    pattern = pattern.replace(r"/\*\*", "(/[^/]+)*").replace(r"\*", "[^/]+")
    return re.fullmatch(pattern, full) is not None
