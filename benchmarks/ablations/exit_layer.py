"""After which layer should the draft read? Acceptance and time of a draft at each k, on one frozen backbone.

The checkpoint's backbone and main head stay as they are. For each k a draft of the checkpoint's own architecture, with
the layers that refine the slots for it, is trained anew on the states after layer k-1, with the loss of `rsd train`
(labels, and the main head's probabilities), all of them on the same batches. A draft counts as accepted when its whole
chunk is within the tolerance of the main head's, on held-out episodes. The joint training of `rsd train` also fits
layers 0 .. k-1 to the draft, for the checkpoint's own k alone: the figures of this benchmark compare with each other
only, and its own k has an advantage.

    .venv/bin/python -m benchmarks.ablations.exit_layer --policy mini --data out/demos --json exit_layer.json

Times are those of the CPU it runs on. They can be taken on another machine than the one that trains:

    .venv/bin/python -m benchmarks.ablations.exit_layer --measure acceptance --device cuda --json exit_layer.json
    .venv/bin/python -m benchmarks.ablations.exit_layer --measure times --json exit_layer.json
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import re
import sys
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

from rsd_policy import Observation, Policy, RSDInferenceEngine, load_policy
from rsd_policy.backbones.mini import CAMERAS, MiniInputs
from rsd_policy.checkpoints.loading import build_policy
from rsd_policy.checkpoints.manifest import MANIFEST, resolve_checkpoint, sha256
from rsd_policy.device import parse_device
from rsd_policy.errors import ArgumentError, RSDError
from rsd_policy.evaluation import provenance
from rsd_policy.evaluation.protocol import parse_indices
from rsd_policy.evaluation.statistics import latency_summary
from rsd_policy.exit_status import DONE, WRONG_ARGUMENTS
from rsd_policy.files import write_json
from rsd_policy.reports import markdown
from rsd_policy.reports.runs import shipped_name
from rsd_policy.training.mini.augment import augment_images
from rsd_policy.training.mini.dataset import Demonstrations, load_demonstrations, to_frames
from rsd_policy.training.mini.parameter_vector import parameter_groups
from rsd_policy.training.mini.trainer import (
    LEVEL_WEIGHTS,
    TrainConfig,
    distillation_loss,
    schedule,
    token_loss,
)
from rsd_policy.training.mini.validate import HiddenBatch, accuracy, predict_hidden
from sim_bridge.demonstrations import read_demonstrations

MEASURES = ("acceptance", "times")

WARM_UP = 5
"""Inferences before measuring."""

BLOCK = 64
"""Consecutive held-out frames in a batch."""


def main(argv: list[str]) -> int:
    """Train and judge a draft per layer, take the times, print a table, write JSON and a plot beside it."""
    parser = argparse.ArgumentParser(prog="benchmarks.ablations.exit_layer", description=__doc__)
    parser.add_argument("--policy", default="mini", help="shipped name or checkpoint directory, trained here")
    parser.add_argument("--data", type=Path, default=Path("out/demos"), help="demonstrations (%(default)s)")
    parser.add_argument(
        "--held-out", type=float, default=0.08, help="as in `rsd train`: the same episodes (%(default)s)"
    )
    parser.add_argument("--layers", default="1-6", help="values of k (%(default)s)")
    parser.add_argument("--steps", type=int, default=1000, help="optimiser steps (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=TrainConfig.batch_size)
    parser.add_argument("--held-out-frames", type=int, default=6000, help="of them at most, evenly (%(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=2, help="torch threads of the times (%(default)s)")
    parser.add_argument("--chunks", type=int, default=60, help="timed inferences per k and mode (%(default)s)")
    parser.add_argument(
        "--measure",
        nargs="+",
        default=MEASURES,
        choices=MEASURES,
        help="one of both leaves the other as it is in --json",
    )
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args(argv)
    command = provenance.command("benchmarks.ablations.exit_layer", argv)
    try:
        policy = load_policy(arguments.policy)
        layers = _layers(policy, arguments.layers)
        record = _record(arguments, policy, layers)
        if "acceptance" in arguments.measure:
            record["acceptance"] = measure_acceptance(policy, layers, arguments) | {"command": command}
        if "times" in arguments.measure:
            record["times"] = measure_times(policy, layers, arguments) | {"command": command}
    except RSDError as error:
        print(f"exit_layer: {error}", file=sys.stderr)
        return WRONG_ARGUMENTS
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    write_json(arguments.json, record)
    print(f"wrote {arguments.json}")
    missing = [measure for measure in MEASURES if measure not in record]
    if missing:
        print(f"the table and the plot need --measure {missing[0]} too, with the same --json")
        return DONE
    table = Table(title=f"draft after layer k of {policy.backbone.num_layers}, {record['policy']}")
    for heading in COLUMNS:
        table.add_column(heading)
    for row in rows(record):
        table.add_row(*row)
    Console().print(table)
    plot = arguments.json.with_suffix(".png")
    figure(record).savefig(plot, dpi=110, metadata={"Software": None})
    print(f"wrote {plot}")
    return DONE


def _layers(policy: Policy, text: str) -> list[int]:
    layers, last = parse_indices(text), policy.mini.num_layers - 1
    if not 1 <= layers[0] <= layers[-1] <= last:
        raise ArgumentError(f"--layers: expected 1 .. {last}, as the backbone has {last + 1} layers, got {text}")
    return list(layers)


def _record(arguments: argparse.Namespace, policy: Policy, layers: Sequence[int]) -> dict[str, Any]:
    digest = sha256(resolve_checkpoint(arguments.policy) / MANIFEST)
    record: dict[str, Any] = {
        "benchmark": "exit_layer",
        "policy": policy.name,
        "policy_sha256": digest,
        "layers_of_backbone": policy.mini.num_layers,
        "exit_layer": policy.exit_layer,
        "layers": list(layers),
    }
    if set(arguments.measure) == set(MEASURES) or not arguments.json.is_file():
        return record
    found: dict[str, Any] = json.loads(arguments.json.read_text())
    wrong = [field for field in ("benchmark", "policy_sha256", "layers") if found.get(field) != record[field]]
    if wrong:
        raise ArgumentError(
            f"{arguments.json}: expected {wrong[0]} {record[wrong[0]]}, got {found.get(wrong[0])}; give another --json"
        )
    return found


def candidate(policy: Policy, exit_layer: int, seed: int = 0) -> Policy:
    """A policy with the backbone and main head of another, and an untrained draft after `exit_layer` layers.

    The layers that refine the slots for the draft are untrained too.
    """
    manifest = copy.deepcopy(policy.manifest) | {"exit_layer": exit_layer, "gate": None}
    manifest["architecture"].pop("deviation", None)
    torch.manual_seed(seed)
    fresh = build_policy(policy.name, manifest)
    readers = {key: value for key, value in fresh.mini.state_dict().items() if key.startswith("readers.")}
    fresh.mini.load_state_dict(policy.mini.state_dict() | readers)
    fresh.head.load_state_dict(policy.head.state_dict())
    return fresh


def measure_acceptance(policy: Policy, layers: Sequence[int], arguments: argparse.Namespace) -> dict[str, Any]:
    """Train the drafts on the demonstrations and compare their chunks with the main head's on held-out ones."""
    device = parse_device(arguments.device)
    training, held_out = load_demonstrations(arguments.data, arguments.held_out, policy.mini.config.image_size)
    tokenizer, horizon = policy.mini.tokenizer, policy.horizon
    frames = to_frames(training, tokenizer, horizon).to(device)
    unseen = to_frames(held_out, tokenizer, horizon)
    started = time.monotonic()
    drafts = {k: candidate(policy, k).to(device) for k in layers}
    policy.to(device)
    config = TrainConfig(steps=arguments.steps, batch_size=arguments.batch_size)
    fit(policy, drafts, frames, config, device)
    fitted = time.monotonic()
    per_layer = judge(policy, drafts, unseen, arguments.held_out_frames, device)
    policy.to(torch.device("cpu"))
    return {
        "per_layer": {str(k): figures for k, figures in per_layer.items()},
        "steps": config.steps,
        "batch_size": config.batch_size,
        "frames": len(frames),
        "training_episodes": len(training),
        "held_out_episodes": len(held_out),
        "training_seconds": round(fitted - started, 1),
        "judging_seconds": round(time.monotonic() - fitted, 1),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": provenance.versions(),
        "hardware": provenance.hardware(str(device)),
    }


def fit(
    policy: Policy, drafts: dict[int, Policy], frames: Demonstrations, config: TrainConfig, device: torch.device
) -> None:
    """Train each draft, and its readers, in place; the backbone runs once for all of them."""
    parts = [nn.ModuleList([p.draft, p.mini.readers]).train().requires_grad_(True) for p in drafts.values()]
    groups = [group for part in parts for group in parameter_groups(part, config.weight_decay)]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95))
    weights = torch.tensor(LEVEL_WEIGHTS, device=device)
    generator = torch.Generator(device).manual_seed(config.seed)
    for step in track(range(config.steps), description="drafts", console=Console(stderr=True)):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * schedule(step, config.warmup_steps, step / config.steps)
        batch = frames.rows(frames.draw(config.batch_size, generator))
        tokens = policy.codec.encode(batch.actions)
        losses = []
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
            with torch.no_grad():
                pixels = augment_images(batch.images, config.max_shift, config.colour)
                x = policy.mini.embed_pixels(pixels, batch.proprio, batch.reworded(generator))
                states, late = _after(policy, x, list(drafts))
                main = policy.head.teacher_forced_logits(late, tokens).float()
            for k, draft in drafts.items():
                hidden = draft.mini.exit_hidden(states[k])
                logits = draft.draft.teacher_forced_logits(hidden, tokens).float()
                taught = distillation_loss(logits, main, weights)
                labelled, _ = token_loss(logits, tokens, batch.mask, weights)
                losses.append((1.0 - config.distillation) * labelled + config.distillation * taught)
        optimizer.zero_grad(set_to_none=True)
        torch.stack(losses).sum().backward()  # they share no parameter: each draft gets its own gradient
        for part in parts:
            nn.utils.clip_grad_norm_(part.parameters(), 1.0)
        optimizer.step()
    for part in parts:
        part.eval().requires_grad_(False)


def _after(policy: Policy, x: Tensor, layers: Sequence[int]) -> tuple[dict[int, Tensor], Tensor]:
    """The sequence after each of some layers, and the slots after the last one."""
    states = {}
    bounds = [0, *sorted(layers), policy.mini.num_layers]
    for start, stop in itertools.pairwise(bounds):
        x = policy.mini.forward_layers(x, start, stop)
        states[stop] = x
    return states, policy.mini.action_hidden(x)


@torch.inference_mode()
def judge(
    policy: Policy, drafts: dict[int, Policy], unseen: Demonstrations, frames: int, device: torch.device
) -> dict[int, dict[str, Any]]:
    """Figures of `training.validate.accuracy` for each draft on held-out frames, `frames` or a few more of them."""
    batches: dict[int, list[HiddenBatch]] = {k: [] for k in drafts}
    apart = max(1, len(unseen) // frames) * BLOCK  # blocks from all held-out episodes, which are sorted by task
    for start in range(0, len(unseen), apart):
        batch = unseen.part(start, start + BLOCK).to(device)
        x = policy.mini.embed(MiniInputs(batch.images, batch.proprio, batch.words()))
        states, late = _after(policy, x, list(drafts))
        for k, draft in drafts.items():
            early = draft.mini.exit_hidden(states[k])
            batches[k].append(HiddenBatch(early, late, batch.actions, batch.mask))
    tolerance = policy.manifest["acceptance"]["tolerance"]
    return {k: accuracy(predict_hidden(draft, batches[k]), tolerance) for k, draft in drafts.items()}


def measure_times(policy: Policy, layers: Sequence[int], arguments: argparse.Namespace) -> dict[str, Any]:
    """Times on the CPU, all in turns on the same frames: of a whole chunk, and until the draft's after each layer.

    A skipped chunk takes the latter and the gate's own time, which is the same for every k.
    """
    torch.set_num_threads(arguments.threads)
    observations = _observations(arguments.data, 8)
    engines = {0: RSDInferenceEngine(candidate(policy, policy.exit_layer), "baseline")}
    engines |= {k: RSDInferenceEngine(candidate(policy, k), "speculative") for k in layers}
    taken: dict[int, list[float]] = {k: [] for k in engines}
    for index in range(WARM_UP + arguments.chunks):
        for k, engine in engines.items():
            stats = engine.infer(observations[index % len(observations)]).stats
            if index >= WARM_UP:
                taken[k].append(stats.first_action_ms)
    whole = latency_summary(taken.pop(0))
    return {
        "whole_chunk_ms": whole,
        "draft_chunk_ms": {str(k): latency_summary(values) for k, values in taken.items()},
        "threads": arguments.threads,
        "chunks": arguments.chunks,
        "versions": provenance.versions(),
        "hardware": provenance.hardware("cpu"),
    }


def _observations(directory: Path, count: int) -> list[Observation]:
    """Frames of the first demonstration."""
    episode = next(iter(read_demonstrations(directory)), None)
    if episode is None:
        raise ArgumentError(f"{directory}: expected demonstrations written by `rsd collect`, found none")
    return [
        Observation(dict(zip(CAMERAS, images, strict=True)), proprio, episode.instruction)
        for images, proprio in itertools.islice(zip(episode.images, episode.proprio, strict=True), count)
    ]


COLUMNS = ("k", "chunks within tolerance", "tokens as the main head's: L0", "L1", "L2", "draft's chunk, ms", "speed-up")
"""The last one: of a whole chunk's time over the draft's, medians."""


def rows(record: dict[str, Any]) -> list[list[str]]:
    """One per k, in the order of `COLUMNS`, the checkpoint's own k marked."""
    whole = record["times"]["whole_chunk_ms"]["p50"]
    found = []
    for k, figures in record["acceptance"]["per_layer"].items():
        took = record["times"]["draft_chunk_ms"][k]["p50"]
        found.append(
            [
                f"{k} (the checkpoint's)" if int(k) == record["exit_layer"] else k,
                f"{100 * figures['draft_chunks_within_tolerance']:.1f} %",
                *(f"{100 * level:.1f} %" for level in figures["draft_equals_head_per_level"]),
                f"{took:.1f}",
                f"{whole / took:.2f} x",
            ]
        )
    return found


def section(path: Path, plots: Path) -> str:
    """The Markdown section of a JSON file; its plot is written into the folder `plots`, beside which the page lies.

    Raises:
        ArgumentError: it is another file.
    """
    record = json.loads(path.read_text())
    if record.get("benchmark") != "exit_layer":
        raise ArgumentError(f"{path}: expected a file of benchmarks.ablations.exit_layer")
    missing = [measure for measure in MEASURES if measure not in record]
    if missing:
        raise ArgumentError(f"{path}: expected {' and '.join(MEASURES)}; run with --measure {missing[0]} too")
    name = shipped_name(record["policy_sha256"]) or record["policy"]
    plot = plots / "exit_layer.png"
    figure(record).savefig(plot, dpi=110, metadata={"Software": None})
    trained, times = record["acceptance"], record["times"]
    machine, timed = trained["hardware"], times["hardware"]
    commands = dict.fromkeys(re.sub(r"--policy \S+", f"--policy {name}", part["command"]) for part in (trained, times))
    return "\n\n".join(
        [
            f"## Where the draft reads, policy {name}",
            f"`benchmarks.ablations.exit_layer`: the backbone ({record['layers_of_backbone']} layers) and the main "
            "head are frozen, and a draft of the checkpoint's architecture is trained anew after layer k, for "
            f"{trained['steps']} steps of {trained['batch_size']} frames ({machine['gpu'] or machine['cpu']}). Chunks "
            f"of {trained['held_out_episodes']} held-out episodes; a chunk counts when all of its steps are within the "
            "tolerance of the main head's. The figures compare with each other alone: the checkpoint's own draft was "
            "trained together with the layers that it reads after, which is better for it, and gives its own k an "
            f"advantage here. Times: {timed['cpu']}, {times['threads']} threads, "
            f"a whole chunk {times['whole_chunk_ms']['p50']:.1f} ms (p50); the gate's own time comes on top of a "
            f"draft's. sha256 of the checkpoint's manifest {record['policy_sha256'][:12]}.",
            "\n".join(["```", *(f".venv/bin/{command}" for command in commands), "```"]),
            markdown.table(COLUMNS, rows(record)),
            f"![acceptance against time]({plots.name}/{plot.name})",
        ]
    )


def figure(record: dict[str, Any]) -> Figure:
    """Share of accepted chunks against the time of a draft's chunk, one point per k."""
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    per_layer, times = record["acceptance"]["per_layer"], record["times"]
    x = [times["draft_chunk_ms"][k]["p50"] for k in per_layer]
    y = [100 * figures["draft_chunks_within_tolerance"] for figures in per_layer.values()]
    axes.plot(x, y, "o-", color="#2f6fdb", ms=5)
    for k, at, share in zip(per_layer, x, y, strict=True):
        own = " (checkpoint)" if int(k) == record["exit_layer"] else ""
        axes.annotate(f"k = {k}{own}", (at, share), textcoords="offset points", xytext=(6, -11), fontsize=9)
    whole = times["whole_chunk_ms"]["p50"]
    axes.axvline(whole, color="#98a2b3", ls="--", lw=1.2, label=f"whole chunk: {whole:.1f} ms")
    axes.set_xlim(0, 1.12 * whole)
    axes.set_ylim(0, 100)
    axes.set_xlabel("until the draft's chunk, ms (p50, CPU)")
    axes.set_ylabel("chunks within tolerance of the main head's, %")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e8ebf0")
    axes.legend(frameon=False, loc="lower right")
    return figure


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
