"""README.md of a checkpoint: what its manifest and recorded results say, and nothing else."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rsd_policy.checkpoints.manifest import names_of
from rsd_policy.reports.markdown import results_table, setting, successes, table, tasks_table
from rsd_policy.reports.runs import Run

LONGEST_LIST = 16
"""Longer lists (curves, vocabularies) stay in the manifest."""


def model_card(directory: Path, manifest: dict[str, Any], groups: Sequence[Sequence[Run]]) -> str:
    """The card as Markdown.

    Args:
        directory: of the checkpoint; its files are there and verified.
        manifest: of the checkpoint.
        groups: evaluations of it, from `load_runs`.
    """
    sections = [
        _front_matter(),
        f"# {directory.name}\n\n{_description(directory, manifest)}",
        _section("Data", manifest["provenance"].get("data", {}), _corrections(manifest)),
        *(_section(_title(key), value) for key, value in _trainings(manifest)),
        _plot(directory, "training.png", "losses and held-out accuracies over the training"),
        _section("Accuracy on held-out demonstrations", manifest["accuracy"]),
        _gate(manifest["gate"]),
        _plot(directory, "calibration.png", "skipped and deviating chunks over the gate's threshold"),
        _results(groups, names_of(directory)),
        _other(manifest),
        _files(directory, manifest),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def parameters(path: Path) -> int:
    """Number of values in a safetensors file, from its header (8 bytes of length, little-endian, then JSON)."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    total = 0
    for name, tensor in header.items():
        if name != "__metadata__":
            count = 1
            for size in tensor["shape"]:
                count *= size
            total += count
    return total


def _front_matter() -> str:
    return "---\nlicense: apache-2.0\npipeline_tag: robotics\ntags: [vision-language-action, libero, ros2]\n---"


def _description(directory: Path, manifest: dict[str, Any]) -> str:
    files = [directory / name for name in manifest["files"]]
    size = sum(path.stat().st_size for path in files) / 2**20
    architecture = manifest["architecture"]
    backbone = architecture["backbone"]
    own = architecture.get(backbone)
    layers = f" with {own['num_layers']} layers" if isinstance(own, dict) and "num_layers" in own else ""
    gate = "calibrated" if manifest["gate"] else "not calibrated (mode gated is refused)"
    return (
        f"A policy of rsd_policy: backbone {backbone}{layers}, {sum(map(parameters, files)) / 1e6:.1f} million "
        f"parameters in {len(files)} file{'s'[: len(files) > 1]} of {size:.1f} MiB, draft after layer "
        f"{manifest['exit_layer']}, {len(manifest['codec']['bins'])} residual levels, gate {gate}.\n\n"
        f"Use it with `./rsd eval --policy {directory.name}`, or in Python with `load_policy`. "
        "This page is written by `./rsd export` from the manifest and from recorded results."
    )


def _trainings(manifest: dict[str, Any]) -> list[tuple[str, Any]]:
    """The parts of the provenance that tell how it was trained: settings, seed, hardware, time."""
    provenance = manifest["provenance"]
    return [(key, value) for key, value in provenance.items() if key != "data" and isinstance(value, dict)]


def _corrections(manifest: dict[str, Any]) -> str:
    """Who drove the demonstrations, where it was not the expert alone."""
    data = manifest["provenance"].get("data", {})
    if not data.get("dagger_episodes"):
        return ""
    pilots = f" ({', '.join(data['dagger_pilots'])})" if data.get("dagger_pilots") else ""
    return (
        f"In {data['dagger_episodes']} of the {data['training_episodes']} training episodes a policy{pilots} drove the "
        "arm for a first part, so that the frames show states which a policy gets into. The labels are the expert's "
        "throughout (DAgger, Ross et al., 2011)."
    )


def _plot(directory: Path, name: str, what: str) -> str:
    return f"![{what}]({name})" if (directory / name).is_file() else ""


def _other(manifest: dict[str, Any]) -> str:
    rest = {key: value for key, value in manifest["provenance"].items() if not isinstance(value, dict)}
    return _section("Versions and origin", rest | {"acceptance": manifest["acceptance"]})


def _gate(gate: dict[str, Any] | None) -> str:
    if gate is None:
        return ""
    plain = {key: value for key, value in gate.items() if key not in ("thresholds", "curve")}
    points = gate.get("thresholds", [])
    section = _section("Calibration of the gate", plain)
    if not isinstance(points, list) or not points:
        return section
    columns = list(dict.fromkeys(key for point in points for key in point))
    return section + "\n\n" + table(columns, [[_cell(point.get(key)) for key in columns] for point in points])


def _results(groups: Sequence[Sequence[Run]], digests: Sequence[str]) -> str:
    parts = [_overview(groups)]
    for group in groups:
        run = group[0]
        dates = sorted({str(run.finished or run.started)[:10] for run in group})
        parts.append(f"### {run.config.suite}\n\n{setting(run)}; {', '.join(dates)}.\n\n{results_table(group)}")
        others = {run.name: run.config.policy_sha256 for run in group if run.config.policy_sha256 not in digests}
        if others:
            names = ", ".join(f"{name} (manifest {str(other)[:12]})" for name, other in others.items())
            parts.append(f"Run with another manifest than this one ({digests[0][:12]}): {names}.")
        parts.append("\n".join(["```", *(run.command for run in group), "```"]))
        parts.append(tasks_table(group))
    return "\n\n".join(["## Results in closed loop", *parts]) if groups else ""


def _overview(groups: Sequence[Sequence[Run]]) -> str:
    """Successes of every run, with 95 % intervals in percent."""
    rows = [
        [
            run.config.suite,
            run.summary["hardware"]["gpu"] or run.summary["hardware"]["cpu"],
            run.name,
            successes(run.summary),
        ]
        for group in groups
        for run in group
    ]
    return table(["suite", "hardware", "mode", "success (95 %)"], rows)


def _files(directory: Path, manifest: dict[str, Any]) -> str:
    rows = [
        [name, f"{(directory / name).stat().st_size / 2**20:.1f}", f"`{digest}`"]
        for name, digest in manifest["files"].items()
    ]
    return "## Files\n\n" + table(["file", "MiB", "sha256"], rows)


def _section(title: str, values: dict[str, Any], text: str = "") -> str:
    rows = _rows(values)
    return "\n\n".join([f"## {title}", *filter(None, [text]), table(["", "value"], rows)]) if rows else ""


def _rows(values: dict[str, Any], prefix: str = "") -> list[list[str]]:
    rows: list[list[str]] = []
    for key, value in values.items():
        name = f"{prefix}{key.replace('_', ' ')}"
        if isinstance(value, dict):
            rows += _rows(value, f"{name}: ")
        elif value is not None and not (isinstance(value, list) and _too_long(value)):
            rows.append([name, _range(value) if key == "seeds" or prefix.endswith("seeds: ") else _cell(value)])
    return rows


def _range(seeds: Any) -> str:
    """First and last seed of the placements."""
    return f"{seeds[0]} to {seeds[1]}" if isinstance(seeds, list) and len(seeds) == 2 else _cell(seeds)


def _too_long(values: list[Any]) -> bool:
    return len(values) > LONGEST_LIST or any(isinstance(value, (dict, list)) for value in values)


def _cell(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(map(_cell, value)) or "none"
    return str(value)


def _title(key: str) -> str:
    return key.replace("_", " ").capitalize()
