"""One replay from its arguments to its report, whoever answers."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rsd_policy.bags.html import write_html
from rsd_policy.bags.playback import Playback, Recorded, read_recorded
from rsd_policy.bags.reader import Bag
from rsd_policy.bags.replay import Answerer, EngineAnswerer, expectation, make_policy, replay
from rsd_policy.bags.results import HTML, JSON, JUNIT, summarise, write_junit
from rsd_policy.bags.table import print_replay
from rsd_policy.checkpoints.digest import policy_digest
from rsd_policy.errors import ArgumentError, BagError
from rsd_policy.exit_status import DONE, OUTSIDE_TOLERANCE
from rsd_policy.robots.contract import Contract, load_contract
from rsd_policy.robots.images import is_video
from rsd_policy.settings import DEFAULT_MODE, MODES


def replay_in_process(arguments: argparse.Namespace) -> int:
    """`rsd replay --no-ros`; returns the exit status."""
    run = recorded_run(arguments)
    policy = make_policy(run, arguments.device)
    answerer = EngineAnswerer(policy, run["mode"], arguments.device, run["alpha"])
    return run_session(arguments, run, lambda contract: answerer, policy)


def run_session(
    arguments: argparse.Namespace, run: dict[str, Any], make: Callable[[Contract], Answerer], policy: Any | None = None
) -> int:
    """Replay, write the report, print the table; returns the exit status.

    Args:
        arguments: of `rsd replay`.
        run: of `recorded_run`.
        make: makes what answers.
        policy: loaded already; otherwise it is loaded when the comparison needs it.
    """
    contract = load_contract(arguments.robot)
    with Bag(arguments.bag) as bag:
        playback = Playback(
            bag,
            contract,
            read_recorded(bag, contract, arguments.namespace),
            instruction=arguments.instruction,
            period_s=arguments.period,
            namespace=arguments.namespace,
        )
        loaded: list[Any] = [policy] if policy is not None else []

        def in_mode(mode: Any) -> Answerer:
            if not loaded:
                loaded.append(make_policy(run, arguments.device))
            return EngineAnswerer(loaded[0], mode, arguments.device, run["alpha"] if mode == "gated" else None)

        against, expected = expectation(arguments.against, playback, in_mode)
        statistics = loaded[0].state_statistics() if loaded and contract.state_check != "off" else None
        answerer = make(contract)
        replayed = replay(playback, answerer, against, expected, statistics=statistics, on_answer=_progress)
        if sys.stderr.isatty():
            print(file=sys.stderr)
        if not replayed.answers:
            raise BagError(f"{bag.path}: no observation could be made of it{playback.why_nothing()}")
        summary = summarise(replayed, playback, run | {"device": arguments.device, "ros": not arguments.no_ros})
        out: Path = arguments.out
        out.mkdir(parents=True, exist_ok=True)
        (out / JSON).write_text(json.dumps(summary, indent=1), encoding="utf-8")
        write_junit(summary, out / JUNIT)
        write_html(summary, replayed, out / HTML)
        print_replay(summary, out)
    return OUTSIDE_TOLERANCE if summary["within_tolerance"] is False else DONE


def _check_wire(bag: Bag, contract: Contract) -> None:
    """Refuse what cannot be shown to a node byte for byte, and one observation at a time.

    Raises:
        ArgumentError: says why, and that --no-ros can.
    """
    video = [camera.topic for camera in contract.cameras if is_video(camera.type)]
    reason = None
    if bag.ros1:
        reason = "a bag of ROS 1 is not what ROS 2 has on the wire"
    elif video:
        reason = f"an image of {', '.join(video)} needs all the images before it"
    elif contract.alignment.stamps == "arrival":
        reason = "times of arrival cannot be repeated"
    if reason is not None:
        raise ArgumentError(f"{bag.path}: {reason}; replay it with --no-ros")


def recorded_run(arguments: argparse.Namespace) -> dict[str, Any]:
    """What answers: as asked for, or as it was when the bag was recorded.

    Raises:
        CheckpointError: the checkpoint is not there.
        ArgumentError: what is in the bag cannot be shown to a node, and it is not replayed in process.
    """
    contract = load_contract(arguments.robot)
    with Bag(arguments.bag) as bag:
        if not arguments.no_ros:
            _check_wire(bag, contract)
        recorded = read_recorded(bag, contract, arguments.namespace)
    then = _then(recorded)
    mode = arguments.mode or then.get("mode") or DEFAULT_MODE
    policy = arguments.policy or then.get("policy") or "mini"
    alpha = (
        arguments.alpha if arguments.alpha is not None else (then.get("alpha") if mode == then.get("mode") else None)
    )
    base = arguments.base or then.get("base")
    return {
        "policy": policy,
        "policy_sha256": policy_digest(policy, base),
        "recorded_policy_sha256": _recorded_digest(recorded) or then.get("policy_sha256"),
        "mode": mode,
        "alpha": alpha if mode == "gated" else None,
        "norm_key": arguments.norm_key or then.get("norm_key"),
        "base": base,
    }


def _then(recorded: Recorded) -> dict[str, Any]:
    then = dict(recorded.provenance.get("run") or {})
    modes = {chunk.mode for chunk in recorded.chunks.values()}
    if len(modes) == 1:
        then["mode"] = modes.pop()
    # the scripted expert has no mode, and no observation can be shown to it
    return then if then.get("mode") in MODES else {}


def _recorded_digest(recorded: Recorded) -> str:
    """Of the policy that answered, as its chunks say; empty when they do not, or not alike."""
    digests = {chunk.policy_sha256 for chunk in recorded.chunks.values()}
    return digests.pop() if len(digests) == 1 else ""


def _progress(answer: Any) -> None:
    if sys.stderr.isatty():
        print(f"\r  observation at {answer.stamp * 1e-9:.3f} s", end="", file=sys.stderr, flush=True)
