"""Speed of a policy of OpenVLA-OFT's shape at its true sizes, through this package's backbone, heads and engine.

Weights are random (normal, 0.02; norms 1, biases 0) and drawn on the device itself: time does not depend on them, what
the policy does would. Two camera views of 224 x 224 after preprocessing, the state, one prompt, batch 1. Prompts are
ids of a given number, not a tokeniser's: only the length of the sequence matters here.

Times are the engine's own, with the device synchronised at every stage's end; the modes take turns. `skipped` is mode
`gated` with a gate that lets everything through. What a rate p of skipped chunks would give on average is computed from
the measured medians, and called so:

    mean(p) = p * skipped + (1 - p) * (speculative + gate)

    python3 -m benchmarks.openvla --device cuda --exit-layer 8 --json openvla.json
    python3 -m benchmarks.openvla --tiny                                              # dry run on a CPU
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.openvla.random_policy import HORIZON, Sizes, build, observations, parameters, tiny_sizes
from rsd_policy.backbones.openvla.backbone import OpenVLAInputs
from rsd_policy.backbones.openvla.preprocessing import ImagePreprocessing
from rsd_policy.backbones.openvla.reference import L1Policy
from rsd_policy.checkpoints.manifest import DEFAULT_ACCEPTANCE
from rsd_policy.checkpoints.policy import Policy
from rsd_policy.device import parse_device
from rsd_policy.engine.cuda_graph import GraphedCall
from rsd_policy.engine.gate import Gate
from rsd_policy.engine.inference import RSDInferenceEngine
from rsd_policy.errors import RSDError
from rsd_policy.evaluation import provenance
from rsd_policy.evaluation.statistics import latency_summary
from rsd_policy.observation import ActionChunk, Observation

WARM_UP = 8
"""Inferences before measuring: first calls allocate memory, choose kernels and record graphs."""

ACCEPTANCE_RATES = (0.5, 0.7, 0.9)
NEVER = 10**9
"""Skipped chunks between audits: none is audited here."""

Figures = dict[str, Any]


def main(argv: list[str]) -> int:
    """Measure and print; 0, 1 when a part failed (the others are reported), or 2 when nothing could be measured."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.openvla", description="Speed of a policy of OpenVLA-OFT's shape with random weights."
    )
    parser.add_argument("--device", default="cpu", help="torch device (%(default)s)")
    parser.add_argument("--exit-layer", type=int, help="layer that the draft reads (8; with --tiny 1)")
    parser.add_argument("--prompt-tokens", type=int, default=35, help="after the start token (%(default)s)")
    parser.add_argument("--calls", type=int, default=30, help="measured inferences per mode (%(default)s)")
    parser.add_argument("--tiny", action="store_true", help="two small layers, to see that it runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    arguments = parser.parse_args(argv)
    exit_layer = arguments.exit_layer
    if exit_layer is None:
        exit_layer = 1 if arguments.tiny else 8
    sizes = tiny_sizes(exit_layer) if arguments.tiny else Sizes(exit_layer)
    if not 1 <= exit_layer < sizes.llama.num_hidden_layers or min(arguments.calls, arguments.prompt_tokens) < 1:
        parser.error(f"expected --exit-layer 1 .. {sizes.llama.num_hidden_layers - 1}, the others at least 1")
    try:
        device = parse_device(arguments.device)
    except RSDError as error:
        print(f"benchmarks.openvla: {error}", file=sys.stderr)
        return 2
    result = measure(sizes, device, arguments.prompt_tokens, arguments.calls, lambda r: _write(r, arguments.json))
    print("\n".join(report(result)))
    return 1 if result["failed"] else 0


def _write(result: Figures, path: Path | None) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def measure(
    sizes: Sizes, device: torch.device, prompt_tokens: int, calls: int, keep: Callable[[Figures], None]
) -> Figures:
    """All figures; a part that fails is under `failed` with its error, and `keep` gets the result after every part."""
    started = time.perf_counter()
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    policy, reference = build(sizes, device, dtype, prompt_tokens)
    backbone = reference.backbone
    frames = observations(4)
    with torch.inference_mode():
        sequence = backbone.embed(backbone.preprocess(frames[:1])).shape[1]
    result: Figures = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "hardware": provenance.hardware(str(device)),
        "versions": provenance.versions() | {"torch": torch.__version__, "cuda": torch.version.cuda},
        "dtype": str(dtype).removeprefix("torch."),
        "weights": "random",
        "sizes": {
            "layers": backbone.num_layers,
            "exit_layer": sizes.exit_layer,
            "hidden_size": backbone.hidden_size,
            "views": len(backbone.images.cameras),
            "prompt_tokens": prompt_tokens,
            "sequence": sequence,
            "head_width": sizes.head_width,
            "head_layers": sizes.head_layers,
        },
        "parameters": parameters(policy, reference),
        "calls": calls,
        "build_s": time.perf_counter() - started,
        "failed": {},
    }
    parts: dict[str, Callable[[], object]] = {"eager": lambda: modes(policy, reference, device, frames, calls, False)}
    if device.type == "cuda":
        parts["cuda_graphs"] = lambda: modes(policy, None, device, frames, calls, True)
    parts["identical"] = lambda: identical(policy, device, frames)
    parts["pixels"] = lambda: pixels(backbone.images, device, frames)
    if device.type == "cuda":
        # Last: a recording that fails may leave the device unusable.
        parts["recorded"] = lambda: recorded(reference, device, frames[0], calls)
    for name, part in parts.items():
        try:
            result[name] = part()
        except (RSDError, RuntimeError) as error:
            result["failed"][name] = f"{type(error).__name__}: {error}"
        result["wall_s"] = time.perf_counter() - started
        keep(result)
    return result


def engines(policy: Policy, device: torch.device, graphs: bool) -> dict[str, RSDInferenceEngine]:
    """One per mode; the gate of `skipped` lets every draft through."""
    gate = Gate(threshold=0.0, alpha=0.5, steps=HORIZON, gripper_rule=False)
    return {
        "baseline": RSDInferenceEngine(policy, "baseline", device, cuda_graphs=graphs),
        "speculative": RSDInferenceEngine(policy, "speculative", device, cuda_graphs=graphs),
        "skipped": RSDInferenceEngine(policy, "gated", device, gate=gate, audit_every=NEVER, cuda_graphs=graphs),
    }


def modes(
    policy: Policy,
    reference: L1Policy | None,
    device: torch.device,
    frames: list[Observation],
    calls: int,
    graphs: bool,
) -> Figures:
    """Latency per mode and, with `reference`, of the published policy with its own head; and what follows from them.

    Raises:
        RSDError: a chunk of the mode `skipped` was not skipped.
    """
    running = engines(policy, device, graphs)
    if reference is not None:
        manifest = {"architecture": {"backbone": "openvla"}, "acceptance": DEFAULT_ACCEPTANCE, "gate": None}
        published = Policy("random", reference.backbone, manifest, reference=reference)
        running["l1_head"] = RSDInferenceEngine(published, "baseline", device)
    chunks: dict[str, list[ActionChunk]] = {name: [] for name in running}
    for index in range(WARM_UP + calls):
        for name, engine in running.items():
            chunk = engine.infer(frames[index % len(frames)])
            if index >= WARM_UP:
                chunks[name].append(chunk)
    if not all(chunk.skipped for chunk in chunks["skipped"]):
        raise RSDError("mode 'gated': expected every chunk to be skipped by a gate with threshold 0")
    result: Figures = {name: summary(measured) for name, measured in chunks.items()}
    result["expected_mean_ms"] = expected_means(result)
    return result


def summary(chunks: list[ActionChunk]) -> Figures:
    """Mean, p50, p95 and p99 in ms: total, until the first usable action, and per stage."""
    stages = chunks[0].stats.stage_ms
    return {
        "total_ms": latency_summary([c.stats.total_ms for c in chunks]),
        "first_action_ms": latency_summary([c.stats.first_action_ms for c in chunks]),
        "stage_ms": {stage: latency_summary([c.stats.stage_ms[stage] for c in chunks]) for stage in stages},
    }


def expected_means(row: Figures) -> Figures:
    """The formula of the module's docstring on measured medians; not measured itself."""
    skipped, speculative = (row[name]["total_ms"]["p50"] for name in ("skipped", "speculative"))
    verified = speculative + row["skipped"]["stage_ms"]["gate"]["p50"]
    means = {f"{p:g}": p * skipped + (1 - p) * verified for p in ACCEPTANCE_RATES}
    return {"computed": "p * skipped + (1 - p) * (speculative + gate), of medians", **means}


def identical(policy: Policy, device: torch.device, frames: list[Observation]) -> Figures:
    """Whether the final chunk of `speculative` is that of `baseline` bit for bit, eager and with graphs."""
    result: Figures = {"observations": len(frames)}
    finals: dict[str, list[ActionChunk]] = {}
    for graphs in (False, True) if device.type == "cuda" else (False,):
        how = "cuda_graphs" if graphs else "eager"
        running = engines(policy, device, graphs)
        for name in ("baseline", "speculative"):
            finals[f"{how} {name}"] = [running[name].infer(frame) for frame in frames]
        result[how] = _same(finals[f"{how} baseline"], finals[f"{how} speculative"])
        # Equal chunks of equal inputs would prove nothing.
        result[f"{how}_distinct"] = len({chunk.actions.tobytes() for chunk in finals[f"{how} baseline"]})
    if device.type == "cuda":
        result["graphs_as_eager"] = _same(finals["eager baseline"], finals["cuda_graphs baseline"])
    return result


def _same(some: list[ActionChunk], others: list[ActionChunk]) -> bool:
    return all(
        a.tokens is not None
        and b.tokens is not None
        and np.array_equal(a.tokens, b.tokens)
        and a.actions.tobytes() == b.actions.tobytes()
        for a, b in zip(some, others, strict=True)
    )


def pixels(images: ImagePreprocessing, device: torch.device, frames: list[Observation]) -> Figures:
    """How far the pixels computed on the device are from those of the CPU, normalised units."""
    here, there = images(frames, torch.device("cpu")), images(frames, device).cpu()
    return {
        "max_abs_difference": float((here - there).abs().max()),
        "different": int((here != there).sum()),
        "of": here.numel(),
    }


@torch.inference_mode()
def recorded(reference: L1Policy, device: torch.device, frame: Observation, calls: int) -> Figures:
    """Single calls, plain and as CUDA graphs, without the engine; `not_recorded` says why where there is no graph."""
    backbone = reference.backbone
    inputs = backbone.preprocess([frame])
    views = torch.from_numpy(np.stack(backbone.images.frames(frame))).to(device)
    x = backbone.embed(inputs)
    hidden = backbone.action_hidden(backbone.forward_layers(x, 0, backbone.num_layers))
    assert inputs.proprio is not None
    jobs: dict[str, tuple[Callable[..., torch.Tensor], tuple[torch.Tensor, ...]]] = {
        "vision": (lambda *t: backbone.embed(OpenVLAInputs(*t)), (inputs.pixels, inputs.prompt, inputs.proprio)),
        "layers": (lambda x: backbone.forward_layers(x, 0, backbone.num_layers), (x,)),
        "l1_head": (reference.action_head, (hidden,)),
        "pixels": (backbone.images.pixels, (views,)),
    }
    result: Figures = {}
    for name, (call, example) in jobs.items():
        row = result[name] = {"eager": _latency(call, example, device, calls)}
        try:
            graph = GraphedCall(call, example)
        except RuntimeError as error:
            row["not_recorded"] = str(error)
            continue
        row["same_result"] = bool(torch.equal(call(*example), graph(*example)))
        row["cuda_graph"] = _latency(graph, example, device, calls)
    return result


def _latency(
    call: Callable[..., object], inputs: tuple[torch.Tensor, ...], device: torch.device, calls: int
) -> dict[str, float] | None:
    times = []
    for index in range(WARM_UP + calls):
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        call(*inputs)
        torch.cuda.synchronize(device)
        if index >= WARM_UP:
            times.append((time.perf_counter() - start) * 1e3)
    return latency_summary(times)


def report(result: Figures) -> list[str]:
    """Lines for the terminal."""
    sizes, hardware = result["sizes"], result["hardware"]
    total = sum(result["parameters"].values())
    lines = [
        f"{hardware['gpu'] or hardware['cpu']}, torch {result['versions']['torch']}, {result['dtype']}, random weights",
        f"{total / 1e9:.3f} B parameters, {sizes['layers']} layers, draft after {sizes['exit_layer']}, "
        f"sequence {sizes['sequence']}, {result['calls']} calls each; ms, median (p95)",
    ]
    for how in ("eager", "cuda_graphs"):
        rows = result.get(how, {})
        for mode in ("l1_head", "baseline", "speculative", "skipped"):
            if mode in rows:
                lines += _mode_lines(how, mode, rows[mode])
        if rows:
            means = ", ".join(f"p = {p:g}: {rows['expected_mean_ms'][f'{p:g}']:.2f}" for p in ACCEPTANCE_RATES)
            lines.append(f"{how}: computed, not measured: mean at acceptance {means} (p of chunks skipped)")
    for name, row in result.get("recorded", {}).items():
        graph = f"not recorded: {row['not_recorded']}" if "not_recorded" in row else f"{_pair(row['cuda_graph'])}"
        lines.append(f"{name} alone: eager {_pair(row['eager'])}, graph {graph}, same {row.get('same_result')}")
    for name in ("identical", "pixels"):
        if name in result:
            lines.append(f"{name}: " + ", ".join(f"{key} {value}" for key, value in result[name].items()))
    lines += [f"FAILED {name}: {error}" for name, error in result["failed"].items()]
    return [*lines, f"built in {result['build_s']:.1f} s, all in {result['wall_s']:.1f} s"]


def _mode_lines(how: str, mode: str, row: Figures) -> list[str]:
    stages = ", ".join(f"{stage} {figures['p50']:.2f}" for stage, figures in row["stage_ms"].items())
    first = f", first action {_pair(row['first_action_ms'])}" if mode == "speculative" else ""
    return [f"{how:>11} {mode:<11}: total {_pair(row['total_ms'])}{first}", f"{'':>11} {'':<11}  {stages}"]


def _pair(figures: dict[str, float]) -> str:
    return f"{figures['p50']:.2f} ({figures['p95']:.2f})"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
