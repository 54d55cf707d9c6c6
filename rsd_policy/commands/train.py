"""`rsd train`: train `mini` on demonstrations and write a checkpoint directory.

On several GPUs: see `rsd_policy.training.team`.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from rsd_policy import __version__
from rsd_policy.backbones.mini import MiniConfig, WordTokenizer
from rsd_policy.checkpoints.loading import Policy, build_policy, load_policy, save_policy
from rsd_policy.checkpoints.manifest import DEFAULT_ACCEPTANCE, MANIFEST, read_manifest, resolve_checkpoint
from rsd_policy.codec import RFSQCodec
from rsd_policy.engine.inference import parse_device
from rsd_policy.errors import RSDError
from rsd_policy.files import write_json
from rsd_policy.libero import SUITES
from rsd_policy.observation import STATES
from rsd_policy.training.mini.batch_size import FULL, default_batch_size
from rsd_policy.training.mini.corpus import Corpus
from rsd_policy.training.mini.dataset import WORDINGS, load_demonstrations, to_frames
from rsd_policy.training.mini.log import TrainingLog
from rsd_policy.training.mini.paraphrase import wordings
from rsd_policy.training.mini.plots import plot_training
from rsd_policy.training.mini.trainer import Progress as TrainProgress
from rsd_policy.training.mini.trainer import TrainConfig, Validation, train
from rsd_policy.training.mini.validate import accuracy, predict
from rsd_policy.training.team import Team
from sim_bridge.libero_assets import num_tasks, task_spec

STARTED = "training-started.json"
"""What a training begins with, in its output directory."""

STATE = "training-state.pt"
"""What a training is continued from, in its output directory."""

INIT_SHARE = 0.3
"""Of the learning rate, where a training starts from another's weights: at half of it the first 200 steps undid part of
what was there (the main head's coarsest level right in 86 % of the digits instead of 93)."""


def main(argv: list[str]) -> int:
    """Parse arguments, train, validate, write the checkpoint."""
    arguments = _parser().parse_args(argv)
    team, device = Team.join(parse_device(arguments.device))
    # Frames take tens of GB: each process holds its own part of them, and the first one's held-out episodes judge.
    training, held_out = load_demonstrations(
        arguments.data, arguments.held_out, MiniConfig.image_size, (team.rank, team.size)
    )
    state = _state(arguments)
    corpus = Corpus.of(team, training, state)
    if team.leads:
        print(f"{len(corpus.keys)} training and {len(held_out)} held-out episodes from {arguments.data}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    policy, runs = _policy(arguments, corpus, team, device)
    config = TrainConfig(
        steps=arguments.steps,
        seconds=arguments.seconds,
        batch_size=runs[-1]["batch_size"],
        seed=arguments.seed,
        snapshot_every=arguments.snapshot_every,
    )
    if arguments.init:
        config = replace(config, learning_rate=INIT_SHARE * config.learning_rate)
    tokenizer = policy.mini.tokenizer
    task_weights = dict.fromkeys(arguments.oversample, 2.0)
    frames = to_frames(training, tokenizer, policy.horizon, task_weights, state)
    del training
    # A run that goes on with another's weights has seen its data as well.
    before = {"name": arguments.init.name} | policy.manifest["provenance"] if arguments.init else {}
    policy.manifest["provenance"] = {
        "rsd_policy": __version__,
        "torch": torch.__version__,
        "data": {
            **corpus.summary(),
            "held_out_episodes": len(held_out),
            "oversampled_tasks": [f"{suite}:{task}" for suite, task in arguments.oversample],
            "runs": runs,
        },
        **({"started_from": before} if before else {}),
    }
    log = TrainingLog(arguments.out / "training-log.jsonl")
    columns = (
        TextColumn("[bold]train"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}  main L0-L2 {task.fields[main]}  draft {task.fields[draft]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, disable=not team.leads) as bar:
        task = bar.add_task("train", total=round(config.seconds) or config.steps, loss=float("nan"), main="", draft="")

        def report(p: TrainProgress | Validation) -> None:
            log.append(p)
            if isinstance(p, Validation):
                bar.console.print(f"step {p.step}  held-out {p.figures}")
                return
            main, draft = _levels(p.main_accuracy[:3]), _levels(p.draft_accuracy)
            completed = round(p.seconds) if config.seconds else p.step
            bar.update(task, completed=completed, loss=p.loss, main=main, draft=draft)
            if not bar.console.is_terminal and (p.step % 200 < 20 or p.step == config.steps):
                print(f"step {p.step}  {p.seconds:.0f} s  loss {p.loss:.3f}  main {main}  draft {draft}")

        held_out_frames = to_frames(held_out, tokenizer, policy.horizon, state=state)
        state = arguments.out / STATE

        def snapshot(step: int, averaged: Policy) -> None:
            directory = arguments.out / f"step-{step:06d}"
            # There already when a run was ended after it and before the next saved state.
            if not (directory / MANIFEST).exists():
                save_policy(directory, averaged)

        policy = train(policy, frames, held_out_frames, config, device, state, report, team, snapshot)
    team.leave()
    if not team.leads:
        return 0
    predictions = predict(policy, held_out_frames, device)
    policy.manifest["accuracy"] = accuracy(predictions, DEFAULT_ACCEPTANCE["tolerance"])
    save_policy(arguments.out, policy)
    plot_training(log, arguments.out / "training.png")
    for key, value in policy.manifest["accuracy"].items():
        print(f"{key}: {value}")
    print(f"wrote {arguments.out}; mode 'gated' needs: rsd calibrate --policy {arguments.out}")
    return 0


def _state(arguments: argparse.Namespace) -> str:
    """The form of the robot's state: that of the weights that the training starts from, or the one asked for."""
    if not arguments.init:
        return str(arguments.state)
    manifest = read_manifest(resolve_checkpoint(arguments.init))
    return MiniConfig.from_manifest(manifest["architecture"]["mini"]).state


def _policy(
    arguments: argparse.Namespace, corpus: Corpus, team: Team, device: torch.device
) -> tuple[Policy, list[dict[str, Any]]]:
    """The policy to train, and what the runs so far were given.

    What depends on the demonstrations (vocabulary, codec, scales) is that of the first run: a resumed one may be given
    more of them, and its weights have been trained with these.
    """
    path = arguments.out / STARTED
    # Without a saved state there is nothing to go on with: weights would be drawn anew, and not alike in all processes.
    begun = json.loads(path.read_text()) if (arguments.out / STATE).is_file() and path.is_file() else None
    runs = begun["runs"] if begun else []
    if begun:
        policy = build_policy(arguments.out.name, begun["manifest"])
        if not arguments.init:
            _check_sizes(arguments, policy)
    elif arguments.init:
        policy = load_policy(arguments.init)
        policy.name = arguments.out.name
        policy.drop_gate()
    else:
        policy = _new_policy(arguments, corpus)
    length = {"seconds": arguments.seconds} if arguments.seconds else {"steps": arguments.steps}
    # a training that goes on keeps its batch, whatever is free today; one begun before batches were noted had the full
    batch_size = arguments.batch_size or (runs[-1].get("batch_size", FULL) if runs else None)
    if batch_size is None:
        batch_size = int(team.agree(default_batch_size(device.type, team.size)))
        if team.leads and batch_size < FULL:
            print(f"{batch_size} frames per step, for which the free memory suffices ({FULL} on a GPU; --batch-size)")
    runs.append({"training_episodes": len(corpus.keys), "batch_size": batch_size} | length)
    team.wait()  # until all have read what the first is about to write
    if team.leads:
        write_json(path, {"manifest": policy.manifest, "runs": runs})
    return policy, runs


def _check_sizes(arguments: argparse.Namespace, policy: Policy) -> None:
    config = policy.mini.config
    begun = {
        "--layers": config.num_layers,
        "--wrist-grid": config.grids[1],
        "--exit-readers": config.exit_readers,
        "--exit-layer": policy.exit_layer,
        "--state": config.state,
    }
    asked = {name: getattr(arguments, name[2:].replace("-", "_")) for name in begun}
    if asked != begun:
        raise RSDError(
            f"{arguments.out}: holds a training begun with {begun}, asked for {asked}; give the same sizes to go on "
            "with it, or another --out"
        )


def _new_policy(arguments: argparse.Namespace, corpus: Corpus) -> Policy:
    # Of every task of LIBERO, also of those without demonstrations: a later run may bring some.
    instructions = {task_spec(suite, task).instruction for suite in SUITES for task in range(num_tasks(suite))}
    instructions |= corpus.instructions
    sentences = [text for instruction in sorted(instructions) for text in wordings(instruction, WORDINGS, 0)]
    vocabulary = sorted({word for text in sentences for word in WordTokenizer.split(text)})
    sizes = MiniConfig(
        num_layers=arguments.layers,
        grids=(8, arguments.wrist_grid),
        exit_readers=arguments.exit_readers,
        state=arguments.state,
        vocabulary=tuple(vocabulary),
    )
    torch.manual_seed(arguments.seed)
    return build_policy(
        arguments.out.name,
        {
            "architecture": {
                "backbone": "mini",
                "mini": sizes.to_manifest(),
                "head": {"width": 64, "num_layers": 0, "choice": "mean"},
                "draft": {"width": 64, "num_layers": 0, "choice": "mean"},
            },
            "codec": RFSQCodec.fit(torch.from_numpy(corpus.actions)).to_manifest(),
            "proprio": {"mean": corpus.proprio.mean(0).tolist(), "std": (corpus.proprio.std(0) + 1e-3).tolist()},
            "exit_layer": arguments.exit_layer,
            "acceptance": DEFAULT_ACCEPTANCE,
            "gate": None,
            "accuracy": {},
            "provenance": {},
        },
    )


def _levels(values: tuple[float, ...]) -> str:
    return "/".join(f"{value:.3f}" for value in values)


def _task(text: str) -> tuple[str, int]:
    suite, _, task = text.partition(":")
    if suite not in SUITES or not task.isdigit():
        raise argparse.ArgumentTypeError(f"expected SUITE:TASK such as libero_spatial:9, got '{text}'")
    return suite, int(task)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="rsd train", description="Train `mini` on demonstrations of `rsd collect`.")
    parser.add_argument("--data", type=Path, default=Path("out/demos"), help="directory of demonstrations")
    parser.add_argument("--out", type=Path, default=Path("out/mini"), help="checkpoint directory to write")
    parser.add_argument("--init", type=Path, help=f"start from this checkpoint, at {INIT_SHARE:g} of the rate")
    parser.add_argument("--steps", type=int, default=4000, help="optimiser steps")
    parser.add_argument("--seconds", type=float, default=0.0, help="train for so long instead, all runs together")
    parser.add_argument("--snapshot-every", type=int, default=0, help="steps between copies OUT/step-N (default none)")
    parser.add_argument(
        "--batch-size", type=int, metavar="N", help="frames per step, of all processes (what the memory allows, <= 512)"
    )
    parser.add_argument("--layers", type=int, default=12, help="transformer layers of the backbone")
    parser.add_argument("--wrist-grid", type=int, default=4, choices=(4, 8), help="tokens along the wrist image's edge")
    parser.add_argument("--exit-layer", type=int, default=3, help="layer k after which the draft reads")
    parser.add_argument("--exit-readers", type=int, default=2, help="light layers between the exit and the draft")
    parser.add_argument("--state", default="axis_angle", choices=list(STATES), help="form of the robot's state")
    parser.add_argument("--held-out", type=float, default=0.08, help="fraction of episodes for validation")
    parser.add_argument(
        "--oversample", type=_task, nargs="*", default=[], metavar="SUITE:TASK", help="tasks drawn twice as often"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
