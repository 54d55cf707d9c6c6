"""Which episodes an evaluation consists of: suites, tasks, canonical initial states, seed, policy and mode.

The protocol is the one that published LIBERO numbers use: canonical initial state `trial` of each task, ten wait steps,
then at most `MAX_STEPS[suite]` control steps; an episode is a success when the environment says `done`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rsd_policy.checkpoints.digest import policy_digest
from rsd_policy.checkpoints.manifest import external_source, read_manifest, resolve_checkpoint, verify_files
from rsd_policy.errors import ArgumentError, CheckpointError
from rsd_policy.libero import EVALUATED_SUITES, INIT_STATES_PER_TASK, MAX_STEPS, SUITES_IN_WORDS, TASKS_PER_SUITE
from rsd_policy.settings import CLOCKS, DEFAULT_MODE, EXECUTE_STEPS, IMAGE_SIZE, LIMIT, MODES, SHARED

EXPERT = "expert"
"""Name of the scripted expert: it acts from privileged simulation state and has no modes."""

DEFAULT_SUITE = "libero_spatial"
DEFAULT_TASKS = "0-2"

_RANGE = re.compile(r"(\d+)(?:-(\d+))?")


@dataclass(frozen=True, order=True)
class EpisodeSpec:
    """One episode: canonical initial state `trial` of a task; `seed` places the fixtures at reset (protocol: 0)."""

    suite: str
    task: int
    trial: int
    seed: int = 0

    def __str__(self) -> str:
        return f"{self.suite} task {self.task} trial {self.trial}"


def parse_indices(text: str) -> tuple[int, ...]:
    """Read a list of indices such as "0-9,12": the indices in ascending order, each once.

    Raises:
        ArgumentError: anything else than numbers and ascending ranges separated by commas.
    """
    indices: set[int] = set()
    for part in text.split(","):
        match = _RANGE.fullmatch(part.strip())
        if match is None:
            raise ArgumentError(f"expected numbers and ranges such as '0-9,12', got '{text}'")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise ArgumentError(f"expected an ascending range, got '{part.strip()}' in '{text}'")
        if last > 10_000:
            raise ArgumentError(f"no index is that large: '{part.strip()}' in '{text}'")
        indices.update(range(first, last + 1))
    return tuple(sorted(indices))


def parse_tasks(text: str, suite: str) -> tuple[int, ...]:
    """Read a list of tasks of a suite, such as "0-9".

    Raises:
        ArgumentError: as `parse_indices`, or an index that the suite does not have.
    """
    tasks, count = parse_indices(text), TASKS_PER_SUITE[suite]
    if tasks[-1] >= count:
        raise ArgumentError(f"{suite}: expected tasks 0-{count - 1}, got '{text}'")
    return tasks


def first_trials(count: int) -> tuple[int, ...]:
    """Canonical initial states 0 .. count - 1: what `--num-trials count` is short for.

    Raises:
        ArgumentError: not 1 to 50 of them.
    """
    if not 1 <= count <= INIT_STATES_PER_TASK:
        raise ArgumentError(
            f"number of trials: expected 1 to {INIT_STATES_PER_TASK} (canonical initial states of a task), got {count}"
        )
    return tuple(range(count))


def format_indices(indices: tuple[int, ...]) -> str:
    """The inverse of `parse_indices`: (0, 1, 2, 5) -> "0-2,5"."""
    parts: list[list[int]] = []
    for index in sorted(indices):
        if parts and index == parts[-1][-1] + 1:
            parts[-1].append(index)
        else:
            parts.append([index])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in parts)


def _short(text: str, most: int) -> str:
    """Text as a part of a directory's name, in at most so many characters: file systems take 255 of the whole name.

    What is longer keeps its end, behind a digest of all of it.
    """
    plain = re.sub(r"[^A-Za-z0-9.+]+", "-", text.replace(",", "+")).strip("-")
    if len(plain) <= most:
        return plain
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{digest}-{plain[len(digest) + 1 - most :].strip('-')}"


@dataclass(frozen=True)
class EvalConfig:
    """Everything that decides the outcome of an evaluation; two calls with equal configs continue the same run.

    Attributes:
        suite: one of `EVALUATED_SUITES`.
        tasks: task indices within the suite.
        trials: which canonical initial states of each task are run.
        policy: "mini", "expert", or the directory of a checkpoint.
        policy_sha256: digest of the checkpoint's manifest; None for the expert.
        mode: inference mode; None for the expert.
        alpha: in mode gated, bound on P(deviation > tolerance | skipped); None: the checkpoint's own, which
            `with_checkpoint` fills in.
        norm_key: which of an OpenVLA checkpoint's action statistics to use; None: it has one.
        base: directory or hub id of the weights that the checkpoint stands on, where they are not where it says.
        clock: "lockstep" (simulation waits for the policy) or "realtime" (20 Hz whatever the policy does).
        ros: over the ROS graph, or in process.
        seed: protocol 0.
        device: torch device of the policy; None for the expert.
        execute_steps, limit, image_size: see `rsd_policy.settings`; config/eval.yaml sets them.

    Raises:
        ArgumentError: a value outside what is allowed.
    """

    suite: str = DEFAULT_SUITE
    tasks: tuple[int, ...] = (0, 1, 2)
    trials: tuple[int, ...] = (0,)
    policy: str = "mini"
    policy_sha256: str | None = None
    mode: str | None = DEFAULT_MODE
    alpha: float | None = None
    norm_key: str | None = None
    base: str | None = None
    clock: str = CLOCKS[0]
    ros: bool = True
    seed: int = 0
    device: str | None = "cpu"
    execute_steps: int = int(EXECUTE_STEPS.default)
    limit: float = LIMIT.default
    image_size: int = int(IMAGE_SIZE.default)

    def __post_init__(self) -> None:
        if self.suite not in EVALUATED_SUITES:
            raise ArgumentError(f"unknown task suite '{self.suite}': expected one of {SUITES_IN_WORDS}")
        count = TASKS_PER_SUITE[self.suite]
        wrong = [task for task in self.tasks if not 0 <= task < count]
        if wrong or not self.tasks:
            raise ArgumentError(f"{self.suite} has tasks 0-{count - 1}; got {format_indices(tuple(wrong)) or 'none'}")
        wrong = [trial for trial in self.trials if not 0 <= trial < INIT_STATES_PER_TASK]
        if wrong or not self.trials:
            raise ArgumentError(
                f"a task has canonical initial states 0-{INIT_STATES_PER_TASK - 1}; "
                f"got {format_indices(tuple(wrong)) or 'none'}"
            )
        if self.clock not in CLOCKS:
            raise ArgumentError(f"unknown clock '{self.clock}': expected one of {', '.join(CLOCKS)}")
        if self.clock == "realtime" and not self.ros:
            raise ArgumentError("clock 'realtime' needs the ROS graph; leave out --no-ros or use --clock lockstep")
        if self.clock == "realtime" and self.policy == EXPERT:
            raise ArgumentError(
                "policy 'expert' needs --clock lockstep: it answers each state with one action, too late in real time"
            )
        if not 0 <= self.seed < 2**32:
            raise ArgumentError(f"seed: expected 0 to {2**32 - 1}, got {self.seed}")
        for setting in SHARED:
            setting.check(getattr(self, setting.name))
        if self.policy == EXPERT:
            object.__setattr__(self, "mode", None)
            object.__setattr__(self, "device", None)
        self._check_alpha()
        if self.policy == EXPERT:
            return
        if self.mode not in MODES:
            raise ArgumentError(f"unknown mode '{self.mode}': expected one of {', '.join(MODES)}")
        if self.device is None or not re.fullmatch(r"cpu|cuda(:\d+)?", self.device):
            raise ArgumentError(f"unknown device '{self.device}': expected cpu, cuda or cuda:N")

    def _check_alpha(self) -> None:
        if self.alpha is not None and not 0.0 < self.alpha < 1.0:
            raise ArgumentError(f"alpha: expected a probability between 0 and 1, got {self.alpha:g}")
        if self.alpha is not None and self.mode != "gated":
            raise ArgumentError(
                f"alpha {self.alpha:g} is the promise of mode 'gated'; got "
                + (f"mode '{self.mode}'" if self.mode else f"policy '{self.policy}', which has no modes")
            )

    def with_checkpoint(self) -> EvalConfig:
        """This config with the digest and the alpha of its checkpoint, every file of which was compared with its own.

        Also makes sure that the device is there.

        Raises:
            ArgumentError: the checkpoint's gate cannot keep this alpha (names those that it can), or a norm key was
                given for one that has none.
            CheckpointError: the checkpoint is missing, incomplete, altered, not calibrated for mode 'gated', or one of
                another project, which has mode 'baseline' only.
            SetupError: there is no such GPU.
        """
        if self.norm_key is not None and (self.policy == EXPERT or external_source(self.policy) is None):
            raise ArgumentError(
                f"norm key '{self.norm_key}': only a checkpoint of OpenVLA has several statistics to choose from, "
                f"got policy '{self.policy}'"
            )
        if self.policy == EXPERT:
            if self.base is not None:
                raise ArgumentError(f"base '{self.base}': expected none with policy 'expert', which has no weights")
            return self
        if self.device is not None and self.device.startswith("cuda"):
            from rsd_policy.engine.inference import parse_device  # imports torch

            parse_device(self.device)
        digest, alpha = self._verified()
        return replace(self, policy_sha256=digest, alpha=alpha)

    def _verified(self) -> tuple[str, float | None]:
        """Digest of the checkpoint, and the alpha that its gate is to keep."""
        source = external_source(self.policy)
        if source is not None:
            if self.mode != "baseline":
                raise CheckpointError(
                    f"policy '{self.policy}' has no RFSQ heads: use --mode baseline, got '{self.mode}'; or train heads "
                    f"for it with `./rsd train-heads --policy {self.policy}`"
                )
            return policy_digest(self.policy, self.base), None
        directory = resolve_checkpoint(self.policy)
        manifest = read_manifest(directory)
        if self.base is not None and manifest["architecture"].get("backbone") == "mini":
            raise ArgumentError(f"base '{self.base}': expected none, as the checkpoint of '{self.policy}' is whole")
        verify_files(directory, manifest)
        alpha = self._kept_alpha(manifest["gate"]) if self.mode == "gated" else None
        return policy_digest(self.policy), alpha

    def _kept_alpha(self, gate: dict[str, Any] | None) -> float:
        from rsd_policy.engine.calibration import Curve  # imports torch
        from rsd_policy.engine.gate import Gate

        if self.alpha is not None and gate and "curve" in gate:
            least = Curve.from_manifest(gate["curve"]).bound[0]
            if self.alpha < least:
                raise ArgumentError(
                    f"alpha {self.alpha:g}: the gate of policy '{self.policy}' can keep alphas from {least:.3f} on; "
                    "give such a one, or calibrate with more episodes (`./rsd calibrate`)"
                )
        return Gate.from_manifest(gate, self.alpha).alpha

    @property
    def title(self) -> str:
        """What tables call runs of this config: the mode with its alpha, or the policy where there is none."""
        mode = self.mode or self.policy
        return mode if self.alpha is None else f"{mode} (alpha {self.alpha:g})"

    @property
    def max_steps(self) -> int:
        """Control steps after which an episode counts as a failure."""
        return int(MAX_STEPS[self.suite])

    def episodes(self) -> list[EpisodeSpec]:
        """All episodes, task by task (an environment is created once per task)."""
        return [EpisodeSpec(self.suite, task, trial, self.seed) for task in self.tasks for trial in self.trials]

    @property
    def _first_trials(self) -> bool:
        return self.trials == tuple(range(len(self.trials)))

    def name(self) -> str:
        """A name for the result directory: equal configs (checkpoint content aside) have equal names."""
        parts = [self.suite, _short(self.policy, 60)] + ([self.mode] if self.mode else [])
        parts += [f"alpha{self.alpha:g}"] if self.alpha is not None else []
        parts += [_short(self.norm_key, 30)] if self.norm_key else []
        parts += [
            f"t{_short(format_indices(self.tasks), 30)}",
            f"x{len(self.trials)}" if self._first_trials else f"i{_short(format_indices(self.trials), 30)}",
        ]
        if not self.ros:
            parts.append("no-ros")
        if self.clock != "lockstep":
            parts.append(self.clock)
        if self.seed:
            parts.append(f"seed{self.seed}")
        if self.device not in (None, "cpu"):
            parts.append(str(self.device).replace(":", ""))
        return "-".join(parts)

    def command(self, workers: int = 1) -> str:
        """The `./rsd eval` call of this config, options at their defaults left out.

        Of a checkpoint's absolute path only the last part is named: the rest is of one machine.
        """
        policy = Path(self.policy).name if Path(self.policy).is_absolute() else self.policy
        parts = ["./rsd eval --task-suite", self.suite, "--tasks", format_indices(self.tasks)]
        if self._first_trials:
            parts += ["--num-trials", str(len(self.trials))]
        else:
            parts += ["--trials", format_indices(self.trials)]
        parts += ["--policy", policy]
        if self.mode:
            parts += ["--mode", self.mode]
        if self.alpha is not None:
            parts += ["--alpha", f"{self.alpha:g}"]
        if self.norm_key is not None:
            parts += ["--norm-key", self.norm_key]
        if self.base is not None:
            parts += ["--base", Path(self.base).name if Path(self.base).is_absolute() else self.base]
        if not self.ros:
            parts.append("--no-ros")
        if workers > 1:
            parts += ["--workers", str(workers)]
        for option, value, default in (("clock", self.clock, CLOCKS[0]), ("seed", self.seed, 0)):
            if value != default:
                parts += [f"--{option}", str(value)]
        if self.device not in (None, "cpu"):
            parts += ["--device", str(self.device)]
        return " ".join(parts)

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"tasks": list(self.tasks), "trials": list(self.trials)}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> EvalConfig:
        """The inverse of `to_json`; runs of version 0.1 hold the number of trials only."""
        values = dict(fields)
        if (count := values.pop("num_trials", None)) is not None:
            values["trials"] = range(count)
        return cls(**values | {"tasks": tuple(values["tasks"]), "trials": tuple(values["trials"])})

    def differences(self, other: EvalConfig) -> list[str]:
        """Fields in which two configs differ, as "field: this, other" lines."""
        mine, theirs = self.to_json(), other.to_json()
        return [f"{key}: {mine[key]!r} / {theirs[key]!r}" for key in mine if mine[key] != theirs[key]]
