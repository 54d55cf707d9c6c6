"""What each part of the policy is worth in closed loop, in process, over canonical initial states.

Every variant runs the same episodes. Of the engine: the gate at several alphas, without its gripper rule, and letting
every draft through; each skipped chunk is verified after the fact, so that the rate of deviations is measured and not
sampled. Of the chunk: the main head's coarse levels alone, half of the steps, coarse digits by arg max. Of the
instruction: other words for the same task, and the words of another task of the suite (which should fail: the policy
listens).

Every finished episode is in the JSON file at once. The same command goes on where it was stopped, and more variants,
suites or tasks can be added to the same file; `benchmarks.results_page` reads several files as one.

    .venv/bin/python -m benchmarks.ablations --num-trials 2 --workers 2 --json ablations.json
    .venv/bin/python -m benchmarks.ablations --variants baseline gated:0.1 gated:0.3 --tasks 0,4-6 --json ablations.json
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from benchmarks.ablations.pool import Outcome, Spec, run
from benchmarks.ablations.tables import COLUMNS, Ablations, cells, plot_all, rows
from benchmarks.ablations.variants import VARIANTS, gate_of, order, variant
from rsd_policy.checkpoints.manifest import MANIFEST, read_manifest, resolve_checkpoint, sha256, verify_files
from rsd_policy.errors import ArgumentError, CheckpointError, RSDError
from rsd_policy.evaluation import provenance
from rsd_policy.evaluation.protocol import first_trials, parse_indices
from rsd_policy.exit_status import DONE, INTERRUPTED, NOT_RUN, WRONG_ARGUMENTS
from rsd_policy.files import write_json
from rsd_policy.libero import INIT_STATES_PER_TASK, SUITES


def main(argv: list[str]) -> int:
    """Run what is missing, print a table, write plots beside the JSON file."""
    try:
        arguments = _parse(argv)
        record = _open(arguments, argv)
        wanted = _wanted(arguments, record)
    except ArgumentError as error:
        print(f"ablations: {error}", file=sys.stderr)
        return WRONG_ARGUMENTS
    signal.signal(signal.SIGTERM, _interrupt)
    status = DONE
    try:
        _run(wanted, arguments, record)
    except KeyboardInterrupt:
        print("\nablations: interrupted; finished episodes are kept, the same command resumes", file=sys.stderr)
        status = INTERRUPTED
    except RSDError as error:
        print(f"ablations: {error}", file=sys.stderr)
        status = NOT_RUN
    if record["episodes"]:
        _show(arguments.json)
    errors = [episode for episode in record["episodes"] if episode["error"]]
    for episode in errors:
        print(f"not run: {Outcome(**episode).spec}: {episode['error']}", file=sys.stderr)
    return NOT_RUN if errors and status == DONE else status


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.ablations", description=__doc__)
    parser.add_argument("--policy", default="mini")
    parser.add_argument("--task-suite", nargs="+", default=["libero_spatial"], choices=SUITES)
    parser.add_argument("--tasks", default="0-9")
    trials = parser.add_mutually_exclusive_group()
    trials.add_argument("--trials", default="0-1", help="states of each task, e.g. 20-49 (%(default)s)")
    trials.add_argument("--num-trials", type=int, help="short for --trials 0-(N-1): the first N states")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), metavar="VARIANT")
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 1))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args(argv)
    arguments.variants = sorted({variant(text) for text in arguments.variants}, key=order)
    arguments.tasks = parse_indices(arguments.tasks)
    count = arguments.num_trials
    arguments.trials = parse_indices(arguments.trials) if count is None else first_trials(count)
    if arguments.trials[-1] >= INIT_STATES_PER_TASK:
        raise ArgumentError(f"--trials: expected states 0-{INIT_STATES_PER_TASK - 1}, got {arguments.trials[-1]}")
    if arguments.workers < 1:
        raise ArgumentError(f"--workers: expected at least 1, got {arguments.workers}")
    return arguments


def _open(arguments: argparse.Namespace, argv: Sequence[str]) -> dict[str, Any]:
    """The record to go on with: the file's, when it is of this policy and device, or a new one."""
    directory = resolve_checkpoint(arguments.policy)
    verify_files(directory, read_manifest(directory))
    fresh = {
        "benchmark": "ablations",
        "policy": directory.name,
        "policy_sha256": sha256(directory / MANIFEST),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": provenance.versions(),
        "hardware": provenance.hardware(arguments.device, arguments.workers),
        "commands": [],
        "not_available": {},
        "episodes": [],
    }
    record: dict[str, Any] = fresh
    if arguments.json.is_file():
        record = json.loads(arguments.json.read_text())
        for field in ("benchmark", "policy_sha256", "hardware"):
            if record.get(field) != fresh[field]:
                raise ArgumentError(
                    f"{arguments.json}: expected results of {field} {fresh[field]}, got {record.get(field)}; "
                    "give another --json"
                )
    command = provenance.command("benchmarks.ablations", argv)
    if command not in record["commands"]:
        record["commands"].append(command)
    return record


def _wanted(arguments: argparse.Namespace, record: dict[str, Any]) -> list[Spec]:
    """Episodes that have no outcome yet. Gates that cannot be kept are recorded with the reason."""
    manifest = read_manifest(resolve_checkpoint(arguments.policy))
    available = []
    for text in arguments.variants:
        if text.startswith("gated"):
            try:
                gate_of(manifest, text)
            except CheckpointError as error:
                record["not_available"][text] = str(error)
                continue
        available.append(text)
    record["episodes"] = [episode for episode in record["episodes"] if not episode["error"]]
    finished = {Outcome(**episode).spec for episode in record["episodes"]}
    wanted = [
        Spec(suite, task, text, trial)
        for suite in arguments.task_suite
        for task in arguments.tasks
        for text in available
        for trial in arguments.trials
    ]
    return [spec for spec in wanted if spec not in finished]


def _run(wanted: Sequence[Spec], arguments: argparse.Namespace, record: dict[str, Any]) -> None:
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    columns = (TextColumn("ablations"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    outcomes = run(wanted, arguments.policy, arguments.device, arguments.workers)
    try:
        with Progress(*columns, console=Console(stderr=True)) as bar, closing(outcomes):
            for outcome in bar.track(outcomes, total=len(wanted)):
                record["episodes"].append(asdict(outcome))
                write_json(arguments.json, record, indent=None)
    finally:
        write_json(arguments.json, record, indent=None)


def _show(path: Path) -> None:
    ablations = Ablations.load([path])
    table = Table(title=f"{ablations.policy}, canonical initial states")
    for heading in COLUMNS:
        table.add_column(heading, no_wrap=True)
    for row in rows(ablations):
        table.add_row(*cells(row))
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    for text, reason in ablations.not_available.items():
        print(f"{text}: not available: {reason}")
    for plot in plot_all(ablations, path.parent, path.stem):
        print(f"wrote {plot}")


def _interrupt(*_: Any) -> None:
    """SIGTERM ends a run as Ctrl-C does."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
