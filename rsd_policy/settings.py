"""What can be chosen for a run, each thing once: modes, clocks, and the numbers that several parts must agree on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from rsd_policy.errors import ArgumentError
from rsd_policy.share import shared_path

Mode = Literal["baseline", "speculative", "gated"]
MODES: tuple[Mode, ...] = get_args(Mode)
DEFAULT_MODE: Mode = "speculative"

CLOCKS = ("lockstep", "realtime")
"""lockstep: the simulation waits for the policy; realtime: 20 Hz, whatever the policy does."""

EVAL_CONFIG = Path("config") / "eval.yaml"
"""Parameters of the evaluation graph that are not arguments; relative to the repository or the share folder."""


@dataclass(frozen=True)
class Setting:
    """A number in a range: a parameter of nodes, a field of `EvalConfig` and an entry of config/eval.yaml.

    Attributes:
        default: its type is that of the setting.
        description: with the unit.
    """

    name: str
    default: int | float
    low: int | float
    high: int | float
    description: str

    def check(self, value: object) -> None:
        """Raise ArgumentError unless the value has the type of the default and is in the range."""
        kind = type(self.default)
        if type(value) is not kind or not math.isfinite(value) or not self.low <= value <= self.high:
            what = "an integer" if kind is int else "a number with a decimal point"
            raise ArgumentError(f"{self.name}: expected {what} {self.low}..{self.high}, got {value!r} ({EVAL_CONFIG})")


EXECUTE_STEPS = Setting("execute_steps", 8, 1, 255, "Steps executed of each chunk before the next observation")
LIMIT = Setting("limit", 1.0, 0.01, 1.0, "Largest command of any axis, action units (1 is 0.05 m or 0.5 rad per step)")
IMAGE_SIZE = Setting("image_size", 256, 16, 2048, "Height and width of the images, px; LIBERO: 256")
SHARED = (EXECUTE_STEPS, LIMIT, IMAGE_SIZE)
"""They decide the outcome of an episode: recorded with a run, and the same over ROS and in process."""


def shared_settings(path: Path | None = None) -> dict[str, Any]:
    """The shared settings as config/eval.yaml gives them to all nodes.

    Args:
        path: of the file; by default the one that comes with the package.

    Returns:
        name -> value, for every entry of `SHARED`; checked.

    Raises:
        ArgumentError: the file cannot be read, or a value is missing or outside its range.
    """
    import yaml  # not needed by those who only want the names

    path = path or shared_path(str(EVAL_CONFIG))
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        found: Mapping[str, Any] = content["/**"]["ros__parameters"]
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise ArgumentError(f"{path}: expected a ROS parameter file with '/**: ros__parameters:': {error}") from error
    missing = [setting.name for setting in SHARED if setting.name not in found]
    if missing:
        raise ArgumentError(f"{path}: expected {', '.join(missing)} under '/**: ros__parameters:'")
    values = {setting.name: found[setting.name] for setting in SHARED}
    for setting in SHARED:
        setting.check(values[setting.name])
    return values
