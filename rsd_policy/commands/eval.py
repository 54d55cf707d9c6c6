"""`rsd eval`: run episodes of a policy in closed loop on LIBERO, and say how it did."""

from __future__ import annotations

import argparse
import signal
from pathlib import Path
from typing import Any

from rsd_policy.errors import ArgumentError, EpisodeError, SetupError
from rsd_policy.evaluation.protocol import DEFAULT_SUITE, DEFAULT_TASKS, EXPERT, EvalConfig, first_trials, parse_indices
from rsd_policy.exit_status import DONE, NOT_RUN, NOT_SET_UP, WRONG_ARGUMENTS
from rsd_policy.settings import CLOCKS, DEFAULT_MODE, MODES, shared_settings


def main(argv: list[str]) -> int:
    """Run `rsd eval` with these arguments. Returns the exit status."""
    arguments = _parser().parse_args(argv)
    config = _config(arguments)
    out = arguments.out or Path("out") / f"eval-{config.name()}"
    _check_workers(arguments.workers, config)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return _evaluate(config, out, arguments)
    except EpisodeError as error:
        raise EpisodeError(f"{error}\nfinished episodes are kept; the same command runs the others") from error
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt("finished episodes are kept, the same command resumes") from interrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rsd eval",
        description="Evaluate a policy in closed loop on LIBERO. Without arguments: "
        f"{DEFAULT_SUITE} tasks {DEFAULT_TASKS}, one trial each, mode speculative, over ROS.",
        epilog="The same command resumes an interrupted run. "
        "Exit status: 0 done, 2 wrong arguments, 3 not set up or checkpoint invalid, 4 episodes could not be run.",
    )
    parser.add_argument("--task-suite", default=DEFAULT_SUITE, metavar="SUITE", help="LIBERO(-PRO) suite (%(default)s)")
    parser.add_argument("--tasks", default=DEFAULT_TASKS, metavar="LIST", help="tasks, e.g. 0-9 or 0,3 (%(default)s)")
    trials = parser.add_mutually_exclusive_group()
    trials.add_argument(
        "--trials", default="0", metavar="LIST", help="canonical initial states of each task, e.g. 20-49 (%(default)s)"
    )
    trials.add_argument("--num-trials", type=int, metavar="N", help="short for --trials 0-(N-1): the first N states")
    parser.add_argument("--mode", default=DEFAULT_MODE, metavar="MODE", help=f"{', '.join(MODES)} (%(default)s)")
    parser.add_argument(
        "--policy", default="mini", metavar="POLICY", help=f"mini, {EXPERT}, or a checkpoint directory (%(default)s)"
    )
    parser.add_argument(
        "--alpha", type=float, metavar="P", help="mode gated: bound on the deviations of skipped chunks (the policy's)"
    )
    parser.add_argument("--norm-key", metavar="KEY", help="OpenVLA: whose action statistics to use (if it has several)")
    parser.add_argument("--base", metavar="BASE", help="weights below an adapter or heads (where the checkpoint says)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="results (out/eval-<name made from the arguments>)")
    parser.add_argument("--no-ros", action="store_true", help="the same loop in process, without ROS")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes, with --no-ros (1)")
    parser.add_argument("--clock", default=CLOCKS[0], metavar="CLOCK", help=f"{', '.join(CLOCKS)} (%(default)s)")
    parser.add_argument("--video", action="store_true", help="also write a video of each episode")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="places the fixtures (protocol: 0)")
    parser.add_argument("--device", default="cpu", help="torch device of the policy (%(default)s)")
    return parser


def _config(arguments: argparse.Namespace) -> EvalConfig:
    count = arguments.num_trials
    config = EvalConfig(
        suite=arguments.task_suite,
        tasks=parse_indices(arguments.tasks),
        trials=parse_indices(arguments.trials) if count is None else first_trials(count),
        policy=arguments.policy,
        mode=arguments.mode,
        alpha=arguments.alpha,
        norm_key=arguments.norm_key,
        base=arguments.base,
        clock=arguments.clock,
        ros=not arguments.no_ros,
        seed=arguments.seed,
        device=arguments.device,
        **shared_settings(),
    )
    return config.with_checkpoint()


def _check_workers(workers: int, config: EvalConfig) -> None:
    if workers < 1:
        raise ArgumentError(f"workers: expected at least 1, got {workers}")
    if workers > 1 and config.ros:
        raise ArgumentError(f"--workers {workers} needs --no-ros: the ROS graph runs one robot at a time")


def _evaluate(config: EvalConfig, out: Path, arguments: argparse.Namespace) -> int:
    # Imported here, so that wrong arguments are refused before anything heavy is loaded.
    from rsd_policy.evaluation.recorder import open_run
    from rsd_policy.evaluation.store import ResultStore
    from rsd_policy.reports.report import write_outputs
    from rsd_policy.reports.tables import print_summary

    with open_run(out, config, workers=arguments.workers) as store:
        pending = store.pending()
    if not pending:
        print(f"{out}: all {len(config.episodes())} episodes are finished; for a new run give another --out")
    try:
        if pending and config.ros:
            _run_over_ros(config, out)
        _run_in_process(config, out, arguments.workers, video=arguments.video)
    finally:
        with ResultStore.open_results(out) as results:
            summary = write_outputs(results)
    print_summary(summary, out)
    return NOT_RUN if summary["errors"] or not summary["complete"] else DONE


def _run_over_ros(config: EvalConfig, out: Path) -> None:
    from rsd_policy.graph.supervisor import run_eval

    status = run_eval(config, out)
    if status == NOT_SET_UP:
        raise SetupError("the evaluation over ROS could not begin; eval_node has printed why")
    if status == WRONG_ARGUMENTS:
        raise ArgumentError("the evaluation over ROS could not begin; eval_node has printed why")
    if status not in (DONE, NOT_RUN):  # NOT_RUN: episodes are recorded as errors, which the summary counts
        raise EpisodeError(f"eval_node ended with exit status {status}; it has printed why")


def _run_in_process(config: EvalConfig, out: Path, workers: int, *, video: bool) -> None:
    """What is to be run without ROS: pending episodes of an in-process run, and missing videos of any run."""
    from rsd_policy.evaluation.in_process.pool import run_in_workers
    from rsd_policy.evaluation.in_process.video import video_path
    from rsd_policy.evaluation.in_process.worker import Job
    from rsd_policy.evaluation.recorder import Recorder
    from rsd_policy.evaluation.results import ERROR

    with Recorder(out, config, workers=workers) as recorder:
        jobs = [] if config.ros else [Job(spec) for spec in recorder.pending()]
        if video:
            finished = [result for result in recorder.store.episodes() if result.outcome != ERROR]
            jobs += [Job(r.spec, replay=r) for r in finished if not video_path(out, r.spec).exists()]
        if jobs:
            run_in_workers(config, recorder, jobs, workers=workers, video=video)


def _interrupt(*_: Any) -> None:
    """SIGTERM ends a run as Ctrl-C does: workers and nodes are ended, results stay whole."""
    raise KeyboardInterrupt
