"""Latency of the two heads at the sizes of a 7B OpenVLA policy: eager, and replayed as a CUDA graph.

Random weights: time does not depend on them. Hidden states [1, 56, 4096] in, tokens (the coarse digits by the mean) and
margins out. On a GPU the weights are bfloat16, as the policy's are there, and the device is synchronised before each
clock reading.

    python3 -m benchmarks.latency.heads --device cuda --json heads.json
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rsd_policy.engine.cuda_graph import GraphedCall
from rsd_policy.engine.inference import parse_device
from rsd_policy.errors import RSDError
from rsd_policy.evaluation import provenance
from rsd_policy.heads import RFSQDraftModel, RFSQHead

BAR_MS = 1.0
"""Most that the main head may take on an H100 under a CUDA graph."""


@dataclass(frozen=True)
class Latency:
    """Wall time of one call in ms, device-synchronised."""

    median_ms: float
    p95_ms: float
    calls: int


def main(argv: list[str]) -> int:
    """Measure and print; returns 0, or 2 when the device is not there."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.latency.heads", description="Latency of RFSQHead and RFSQDraftModel."
    )
    parser.add_argument("--device", default="cpu", help="torch device (%(default)s)")
    parser.add_argument("--calls", type=int, help="measured calls (200 on a GPU, 10 on a CPU)")
    parser.add_argument("--width", type=int, default=1024, help="width of the heads (%(default)s)")
    parser.add_argument("--layers", type=int, default=8, help="transformer layers of the heads (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    arguments = parser.parse_args(argv)
    try:
        device = parse_device(arguments.device)
        calls = arguments.calls or (200 if device.type == "cuda" else 10)
        result = measure(device, calls, arguments.width, arguments.layers)
    except RSDError as error:
        print(f"benchmarks.latency.heads: {error}", file=sys.stderr)
        return 2
    place = result["hardware"]["gpu"] or result["hardware"]["cpu"]
    print(f"{place}, {result['dtype']}, {arguments.layers} layers of width {arguments.width}, batch 1")
    for name, row in result["heads"].items():
        for how in ("eager", "cuda_graph"):
            if how in row:
                figures = row[how]
                print(f"{name:>6} {how:<10}: median {figures['median_ms']:.3f} ms, p95 {figures['p95_ms']:.3f} ms")
        if "not_recorded" in row:
            print(f"{name:>6} not recorded as a CUDA graph: {row['not_recorded']}")
        if "equal_tokens" in row:
            print(f"{name:>6} tokens of the graph equal to the eager call's: {row['equal_tokens']:.4f}")
    graphed = result["heads"]["head"].get("cuda_graph")
    if graphed:
        verdict = "met" if graphed["median_ms"] <= BAR_MS else "missed"
        print(f"bar of {BAR_MS} ms for the head under a CUDA graph (on an H100): {verdict}")
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0


@torch.inference_mode()
def measure(device: torch.device, calls: int, width: int, num_layers: int) -> dict[str, Any]:
    """Figures of both heads; `cuda_graph` only where there is a GPU."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    torch.manual_seed(0)
    hidden = torch.randn(1, 56, 4096, device=device, dtype=dtype)
    heads: dict[str, Any] = {}
    for name, kind in (("head", RFSQHead), ("draft", RFSQDraftModel)):
        with device:
            head = kind(width=width, num_layers=num_layers).to(dtype).eval()
        row: dict[str, Any] = {
            "levels": head.levels,
            "parameters": sum(p.numel() for p in head.parameters()),
            "eager": asdict(_latency(head, hidden, device, calls)),
        }
        if device.type == "cuda":
            row |= _graphed(head, hidden, device, calls)
        heads[name] = row
    return {
        "heads": heads,
        "dtype": str(dtype).removeprefix("torch."),
        "versions": provenance.versions(),
        "hardware": provenance.hardware(str(device)),
    }


def _graphed(head: RFSQHead, hidden: Tensor, device: torch.device, calls: int) -> dict[str, Any]:
    """Latency of the replay and how it differs from the eager call; or `not_recorded` with the reason."""
    try:
        graph = GraphedCall(head, (hidden,))
    except RuntimeError as error:
        return {"not_recorded": str(error)}
    (tokens, margins), (expected, eager_margins) = graph(hidden), head(hidden)
    return {
        "cuda_graph": asdict(_latency(graph, hidden, device, calls)),
        "equal_tokens": float((tokens == expected).double().mean()),
        "largest_margin_difference": float((margins - eager_margins).abs().max()),
    }


def _latency(call: Callable[[Tensor], object], hidden: Tensor, device: torch.device, calls: int) -> Latency:
    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    for _ in range(max(2, calls // 10)):  # first calls allocate memory and choose kernels
        call(hidden)
    times = []
    for _ in range(calls):
        start = now()
        call(hidden)
        times.append((now() - start) * 1e3)
    milliseconds = torch.tensor(times, dtype=torch.float64)
    return Latency(float(milliseconds.quantile(0.5)), float(milliseconds.quantile(0.95)), calls)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
