"""Result directories read for tables of several runs: the model card's and docs/results.md."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rsd_policy.checkpoints.manifest import names_of, resolve_checkpoint, shipped_names
from rsd_policy.evaluation.protocol import EvalConfig
from rsd_policy.evaluation.results import ERROR, EpisodeResult
from rsd_policy.evaluation.store import ResultStore
from rsd_policy.reports.comparison import compare
from rsd_policy.reports.summary import summarise
from rsd_policy.settings import MODES, SHARED

REFERENCES = ("baseline", "speculative")
"""Modes that others are compared with, the first one that a setting has: they execute the same final chunks."""

MODE_ORDER = (*MODES, None)
"""How runs of one setting are listed: the reference first, the expert (which has no mode) last."""

Setting = tuple[Any, ...]


@dataclass(frozen=True)
class Run:
    """One result directory.

    Attributes:
        summary: as in summary.json, computed from the stored episodes.
        episodes: finished ones only.
        started, finished: ISO 8601 UTC; of the first call and of the last recorded episode (None without any).
        reference: mode of the run that this one is compared with, of the same setting; None when there is none.
        comparison: the paired comparison with it.
    """

    directory: Path
    config: EvalConfig
    summary: dict[str, Any]
    episodes: Sequence[EpisodeResult]
    started: str
    finished: str | None
    reference: str | None = None
    comparison: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        """What tables call it: the mode with its alpha, or the policy where there is none."""
        return self.config.title

    @property
    def command(self) -> str:
        """The command that makes such a run."""
        return self.config.command(self.summary["hardware"]["workers"])

    def setting(self) -> Setting:
        """What has to agree for runs to stand in one table: all but mode, alpha and the checkpoint's calibration."""
        config, hardware = self.config, self.summary["hardware"]
        machine = tuple(hardware[key] for key in ("cpu", "cores", "device", "gpu", "workers"))
        shared = tuple(getattr(config, setting.name) for setting in SHARED)
        policy = (Path(config.policy).name, config.norm_key)
        return (config.suite, *policy, config.trials, config.clock, config.ros, config.seed, *shared, *machine)


def load_runs(directories: Iterable[Path]) -> list[list[Run]]:
    """Read result directories, group them by setting, and compare each run with the reference of its group.

    Raises:
        StoreError: one holds no results.
        ArgumentError: a run has no finished episode in common with its reference.
    """
    groups: dict[Setting, list[Run]] = {}
    for directory in directories:
        run = _load(directory)
        groups.setdefault(run.setting(), []).append(run)
    ordered = [sorted(group, key=_order) for group in groups.values()]
    return [_compared(group) for group in sorted(ordered, key=lambda group: group[0].config.suite)]


def _order(run: Run) -> tuple[int, float]:
    return MODE_ORDER.index(run.config.mode), run.config.alpha or 0.0


def _load(directory: Path) -> Run:
    with ResultStore.open_results(directory) as store:
        episodes = store.episodes()
        summary = summarise(store.config, episodes, *store.provenance())
        started, finished = store.period()
        kept = [episode for episode in episodes if episode.outcome != ERROR]
        return Run(directory, _by_shipped_name(store.config), summary, kept, started, finished)


def _by_shipped_name(config: EvalConfig) -> EvalConfig:
    """The policy called as everybody can call it, where it is a shipped checkpoint that lay elsewhere at the time."""
    return replace(config, policy=shipped_name(config.policy_sha256) or config.policy)


def shipped_name(policy_sha256: str | None) -> str | None:
    """Name of the shipped checkpoint recorded under this digest (see `names_of`); None when none is."""
    return next((n for n in shipped_names() if policy_sha256 in names_of(resolve_checkpoint(n))), None)


def _compared(group: list[Run]) -> list[Run]:
    reference = group[0]
    if reference.config.mode not in REFERENCES:
        return group
    runs = [reference]
    for run in group[1:]:
        if run.config.mode in (reference.config.mode, None):
            runs.append(run)
            continue
        with ResultStore.open_results(reference.directory) as a, ResultStore.open_results(run.directory) as b:
            runs.append(replace(run, reference=reference.config.mode, comparison=compare(a, b)))
    return runs
