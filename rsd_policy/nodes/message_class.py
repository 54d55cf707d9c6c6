"""The Python class of a message type that is known by name."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from rsd_policy.errors import SetupError


def message_class(kind: str) -> Any:
    """The class of e.g. "sensor_msgs/msg/Image".

    Raises:
        SetupError: its package is not installed.
    """
    package, _, name = kind.split("/")
    try:
        return getattr(import_module(f"{package}.msg"), name)
    except (ImportError, AttributeError) as error:
        raise SetupError(f"{kind}: expected an installed ROS package '{package}' with it: {error}") from error
