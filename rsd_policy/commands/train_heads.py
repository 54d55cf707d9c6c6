"""`rsd train-heads`: RFSQHead and RFSQDraftModel for a backbone that exists, from demonstrations.

Hidden states are extracted once, episode by episode; then the main head is trained on those of the last layer, then the
draft on those of layer k. Interrupted, the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from rsd_policy import __version__
from rsd_policy.checkpoints.loading import build_policy, load_policy, save_policy
from rsd_policy.checkpoints.manifest import MANIFEST
from rsd_policy.checkpoints.policy import Policy
from rsd_policy.codec import RFSQCodec
from rsd_policy.device import parse_device
from rsd_policy.errors import RSDError
from rsd_policy.training.heads.extract import HiddenStates, Source, episode_key, extract_episode
from rsd_policy.training.heads.fit import HeadConfig, HeadProgress, fit_heads
from rsd_policy.training.mini.dataset import held_out_rows
from rsd_policy.training.mini.validate import HiddenBatch, accuracy, predict_hidden
from sim_bridge.demonstrations import count_demonstrations, read_demonstrations

ORIGINAL_ACCURACY = {"head": 0.929, "draft": 0.943}
"""Token accuracies that the original project names as its targets, over all levels of each."""

SEED_SIZES = {"width": 1024, "num_layers": 8}
"""Of heads for a backbone that has none of ours, as in the original project."""

_COLUMNS = (TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())


def main(argv: list[str]) -> int:
    """Parse arguments, extract, train, validate, write the checkpoint."""
    arguments = _parse(argv)
    device = parse_device(arguments.device)
    console = Console()
    if (arguments.out / MANIFEST).exists():
        raise RSDError(f"{arguments.out}: holds a checkpoint already; choose another --out or remove it first")
    count = count_demonstrations(arguments.data)
    if count < 2:
        raise RSDError(
            f"{arguments.data}: expected at least 2 demonstrations, one to train on and one held out, found {count}; "
            f"record some first: ./rsd collect --out {arguments.data}"
        )
    policy = load_policy(
        arguments.policy, device, norm_key=arguments.norm_key, cameras=arguments.cameras, base=arguments.base
    )
    exit_layer = _exit_layer(policy, arguments.exit_layer)
    work = arguments.work or arguments.out.with_name(f"{arguments.out.name}.work")
    files = _extract(policy, arguments, exit_layer, count, work, device, console)
    held_out = held_out_rows([file.stem for file in files], arguments.held_out)
    training = HiddenStates([file for i, file in enumerate(files) if i not in held_out])
    validation = HiddenStates([files[i] for i in sorted(held_out)])
    console.print(
        f"{len(training)} frames of {len(files) - len(held_out)} episodes to train on, "
        f"{len(validation)} of {len(held_out)} held out"
    )
    torch.manual_seed(arguments.seed)
    trained = _with_new_heads(policy, arguments, exit_layer, training)
    config = HeadConfig(
        steps=arguments.steps, batch_size=arguments.batch_size, distill=arguments.distill, seed=arguments.seed
    )
    with Progress(*_COLUMNS, TextColumn("{task.fields[figures]}"), console=console) as bar:
        report = _Report(bar, config.steps)
        fit_heads(trained, training, config, device, work / "training-state.pt", report)
    tolerance = trained.manifest["acceptance"]["tolerance"]
    figures = accuracy(predict_hidden(trained, _batches(validation, device)), tolerance)
    trained.manifest["accuracy"] = figures
    trained.manifest["provenance"] = {
        "rsd_policy": __version__,
        "torch": torch.__version__,
        "heads_of": str(arguments.policy),
        "data": {
            "training_episodes": len(files) - len(held_out),
            "held_out_episodes": len(held_out),
            "frames": len(training),
            "every": arguments.every,
        },
        "training": asdict(config) | {"device": _name(device)},
    }
    save_policy(arguments.out, trained)
    _print(figures, console)
    size = sum(path.stat().st_size for path in work.rglob("*") if path.is_file())
    console.print(f"wrote {arguments.out}; {work} ({size / 2**20:.0f} MiB) can be removed", soft_wrap=True)
    return 0


def _exit_layer(policy: Policy, wanted: int | None) -> int:
    layers = policy.backbone.num_layers
    own = policy.exit_layer if policy.heads else max(1, layers // 4)
    exit_layer = own if wanted is None else wanted
    if not 0 < exit_layer < layers:
        raise RSDError(
            f"--exit-layer: expected 1 .. {layers - 1}, as the backbone has {layers} layers, got {exit_layer}"
        )
    return exit_layer


def _extract(
    policy: Policy,
    arguments: argparse.Namespace,
    exit_layer: int,
    count: int,
    work: Path,
    device: torch.device,
    console: Console,
) -> list[Path]:
    """Hidden states of every demonstration; returns their files in the order in which episodes are split."""
    source = Source(_digest(policy), exit_layer, arguments.every)
    hidden = work / "hidden"
    source.claim(hidden)
    files: dict[str, Path] = {}
    with Progress(*_COLUMNS, console=console) as bar:
        task = bar.add_task("extract", total=count)
        for episode in read_demonstrations(arguments.data):
            key = episode_key(episode)
            if key in files:
                raise RSDError(
                    f"{arguments.data}: expected each episode once, got {key} twice; remove one of its files"
                )
            files[key] = extract_episode(policy.backbone, episode, source, hidden, device, arguments.extract_batch_size)
            bar.advance(task)
    return [files[key] for key in sorted(files)]


def _with_new_heads(policy: Policy, arguments: argparse.Namespace, exit_layer: int, training: HiddenStates) -> Policy:
    """The policy's backbone with untrained heads; its codec when it has one, else one fitted to the demonstrations."""
    manifest: dict[str, Any] = copy.deepcopy(policy.manifest)
    architecture = manifest["architecture"]
    for part, layers in (("head", arguments.head_layers), ("draft", arguments.draft_layers)):
        sizes = {**architecture.get(part, SEED_SIZES), "choice": "mean"}
        if arguments.head_width is not None:
            sizes["width"] = arguments.head_width
        if layers is not None:
            sizes["num_layers"] = layers
        architecture[part] = sizes
    codec = policy.codec if policy.heads else RFSQCodec.fit(training.all_actions())
    architecture.pop("deviation", None)
    manifest |= {"codec": codec.to_manifest(), "exit_layer": exit_layer, "gate": None, "accuracy": {}}
    manifest.setdefault("proprio", None)  # an external backbone normalises the state itself
    return build_policy(arguments.out.name, manifest, policy.backbone)


def _batches(data: HiddenStates, device: torch.device, size: int = 64) -> Iterator[HiddenBatch]:
    for start in range(0, len(data), size):
        yield data.batch(torch.arange(start, min(start + size, len(data))), device)


class _Report:
    """Shows the progress of both phases."""

    def __init__(self, bar: Progress, steps: int) -> None:
        self._bar = bar
        self._steps = steps
        self._tasks = {phase: bar.add_task(phase, total=steps, figures="") for phase in ("head", "draft")}

    def __call__(self, progress: HeadProgress) -> None:
        levels = "/".join(f"{value:.3f}" for value in progress.accuracy[:3])
        figures = f"loss {progress.loss:.3f}  L0-L2 {levels}"
        self._bar.update(self._tasks[progress.phase], completed=progress.step, figures=figures)
        if not self._bar.console.is_terminal and progress.step % max(1, self._steps // 10) == 0:
            print(f"{progress.phase}: step {progress.step} of {self._steps}  {figures}", flush=True)  # a log has no bar


def _print(figures: dict[str, Any], console: Console) -> None:
    table = Table(title=f"token accuracy, {figures['frames']} held-out frames", caption="given the true digits before")
    columns = {
        "head": figures["head_teacher_forced_per_level"],
        "draft": figures["draft_teacher_forced_per_level"],
        "draft = head": figures["draft_equals_head_per_level"],
    }
    table.add_column("level")
    for name in columns:
        table.add_column(name, justify="right")
    for level in range(len(columns["head"])):
        table.add_row(
            f"L{level}", *(f"{values[level]:.3f}" if level < len(values) else "" for values in columns.values())
        )
    table.add_section()
    table.add_row("mean", *(f"{sum(values) / len(values):.3f}" for values in columns.values()))
    targets = (f"{ORIGINAL_ACCURACY[name]:.3f}" if name in ORIGINAL_ACCURACY else "" for name in columns)
    table.add_row("original project's target", *targets)
    console.print(table)


def _digest(policy: Policy) -> str:
    """What tells this backbone from another: the manifest's digest, or the identity of the external checkpoint."""
    if policy.kind == "mini":
        return str(policy.manifest["manifest_sha256"])
    return str(policy.manifest["architecture"][policy.kind]["identity"])


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="rsd train-heads", description=__doc__)
    parser.add_argument(
        "--policy", default="mini", help="shipped name, checkpoint directory, OpenVLA directory or hub id"
    )
    parser.add_argument(
        "--data", type=Path, default=Path("out/demos"), help="directory of demonstrations (%(default)s)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("out/heads"), help="checkpoint directory to write (%(default)s)"
    )
    parser.add_argument("--work", type=Path, help="hidden states and resumable state (OUT.work)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="torch device")
    parser.add_argument("--exit-layer", type=int, help="layer k that the draft reads (the policy's, or a quarter)")
    parser.add_argument(
        "--steps", type=int, default=HeadConfig.steps, help="optimiser steps of each head (%(default)s)"
    )
    parser.add_argument("--batch-size", type=int, default=HeadConfig.batch_size, help="frames per step (%(default)s)")
    parser.add_argument(
        "--distill", type=float, default=HeadConfig.distill, help="share of the head's tokens in the draft's loss"
    )
    parser.add_argument("--head-width", type=int, help="width of both heads (the policy's, or 1024)")
    parser.add_argument("--head-layers", type=int, help="transformer layers of the head (the policy's, or 8)")
    parser.add_argument("--draft-layers", type=int, help="transformer layers of the draft (the policy's, or 8)")
    parser.add_argument("--every", type=int, default=1, help="use every n-th recorded frame (%(default)s)")
    parser.add_argument("--extract-batch-size", type=int, default=16, help="frames per extraction batch (%(default)s)")
    parser.add_argument("--held-out", type=float, default=0.2, help="fraction of episodes for validation (%(default)s)")
    parser.add_argument("--norm-key", help="OpenVLA: whose action statistics to use")
    parser.add_argument("--base", help="weights below an unmerged adapter or heads (where the checkpoint says)")
    parser.add_argument("--cameras", nargs="+", help="OpenVLA: images that it reads, in its order")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    for name in ("steps", "batch_size", "every", "extract_batch_size"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name.replace('_', '-')}: expected at least 1, got {getattr(arguments, name)}")
    for name in ("held_out", "distill"):
        if not 0.0 < getattr(arguments, name) < 1.0:
            parser.error(
                f"--{name.replace('_', '-')}: expected a fraction between 0 and 1, got {getattr(arguments, name)}"
            )
    return arguments
