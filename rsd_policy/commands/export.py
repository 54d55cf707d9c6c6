"""`rsd export`: copy a checkpoint, verified, with a model card: the form in which it is shipped."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rsd_policy.checkpoints.manifest import (
    COPY_OF,
    MANIFEST,
    manifest_digest,
    read_manifest,
    resolve_checkpoint,
    sha256,
    verify_files,
)
from rsd_policy.errors import CheckpointError
from rsd_policy.files import write_json
from rsd_policy.reports.model_card import model_card
from rsd_policy.reports.runs import Run, load_runs

MAX_MB = 50
"""Largest checkpoint by default, 10^6 bytes: it has to travel with the repository."""

CARD = "README.md"
ONE_FILE = "weights.safetensors"
PLOTS = "*.png"
"""Plots of the training and of the calibration, which those commands leave beside the weights."""


def main(argv: list[str]) -> int:
    """Run `rsd export` with these arguments. Returns 0; errors are raised."""
    parser = argparse.ArgumentParser(
        prog="rsd export",
        description="Copy a checkpoint, verified by its sha256, and write its model card (README.md) from its manifest "
        "and from results of `rsd eval`.",
    )
    parser.add_argument("--policy", default="mini", help="shipped name or checkpoint directory (%(default)s)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="directory of the copy")
    parser.add_argument("--replace", action="store_true", help="replace the checkpoint that is in DIR")
    parser.add_argument(
        "--alpha", type=float, metavar="P", help="the copy's gate promises this by default, from its curve"
    )
    parser.add_argument("--one-file", action="store_true", help=f"all weights in one file, {ONE_FILE}")
    parser.add_argument(
        "--results", type=Path, nargs="+", default=[], metavar="RESULT", help="result directories for the card"
    )
    parser.add_argument(
        "--max-mb", type=float, default=MAX_MB, metavar="MB", help="refuse a larger one, in 10^6 bytes (%(default)s)"
    )
    arguments = parser.parse_args(argv)
    groups = load_runs(arguments.results)
    out = export(
        resolve_checkpoint(arguments.policy),
        arguments.out,
        groups,
        alpha=arguments.alpha,
        one_file=arguments.one_file,
        replace=arguments.replace,
        max_bytes=int(arguments.max_mb * 1e6),
    )
    size = sum(path.stat().st_size for path in out.iterdir())
    print(f"wrote {out}: {len(list(out.iterdir()))} files, {size / 1e6:.1f} MB, sha256 verified")
    if not groups:
        print("the card tells no closed-loop results: give result directories with --results", file=sys.stderr)
    return 0


def export(
    source: Path,
    out: Path,
    groups: Sequence[Sequence[Run]] = (),
    *,
    alpha: float | None = None,
    one_file: bool = False,
    replace: bool = False,
    max_bytes: int = MAX_MB * 10**6,
) -> Path:
    """Copy a checkpoint directory and write its card. `out` holds the whole copy or what it held before.

    Args:
        source: checkpoint directory.
        out: new directory, or with `replace` one that holds a checkpoint, be it the source: that renews its card.
        groups: results for the card, from `load_runs`.
        alpha: the gate's promise by default, one of its calibrated curve; None: as in the source. The manifest then
            names the source's, under which results were recorded.
        one_file: join the weight files; the manifest then lists the joint one.
        max_bytes: of all files of the copy together.

    Returns:
        `out`.

    Raises:
        CheckpointError: the source is altered or too large, its gate cannot keep alpha, or `out` may not be written.
        RSDError: alpha is not a probability.
    """
    manifest = read_manifest(source)
    verify_files(source, manifest)
    _check_target(out, replace)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
        copy = Path(scratch) / out.name
        copy.mkdir()
        if one_file:
            manifest = _join(source, copy, manifest)
        else:
            for name in (MANIFEST, *manifest["files"]):
                shutil.copyfile(source / name, copy / name)
        # A copy that promises the same is no other policy, and keeps the name under which results are recorded.
        if alpha is not None and alpha != (manifest["gate"] or {}).get("alpha"):
            manifest = _promise(copy, manifest, alpha, sha256(source / MANIFEST))
        for plot in source.glob(PLOTS):
            shutil.copyfile(plot, copy / plot.name)
        verify_files(copy, read_manifest(copy))
        (copy / CARD).write_text(model_card(copy, manifest, groups), encoding="utf-8")
        size = sum(path.stat().st_size for path in copy.iterdir())
        if size > max_bytes:
            raise CheckpointError(
                f"{source}: expected a checkpoint of at most {max_bytes / 1e6:g} MB, it has {size / 1e6:.1f} MB; "
                "train a smaller one or raise --max-mb"
            )
        _swap(copy, out, Path(scratch) / "replaced")
    return out


def _swap(copy: Path, out: Path, replaced: Path) -> None:
    before = out.exists()
    if before:
        out.rename(replaced)
    try:
        copy.rename(out)
    except BaseException:
        if before:
            replaced.rename(out)
        raise


def _check_target(out: Path, replace: bool) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / MANIFEST).is_file():
        raise CheckpointError(f"{out}: expected a new directory or one with a checkpoint, found other files")
    if not replace:
        raise CheckpointError(f"{out}: holds a checkpoint; give another --out, or --replace to replace it")


def _join(source: Path, copy: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """Write all weights into one file; returns the manifest that was written with it."""
    import torch
    from safetensors.torch import load_file, save_file

    tensors: dict[str, torch.Tensor] = {}
    for name in manifest["files"]:
        tensors |= load_file(source / name)
    save_file(tensors, copy / ONE_FILE)
    return _rewritten(copy, manifest | {"files": {ONE_FILE: sha256(copy / ONE_FILE)}})


def _promise(copy: Path, manifest: dict[str, Any], alpha: float, source: str) -> dict[str, Any]:
    """Let the gate promise alpha by default, and name the source's manifest; returns the manifest that was written."""
    from rsd_policy.engine.gate import Gate  # imports torch

    gate = manifest["gate"]
    kept = Gate.from_manifest(gate, alpha).alpha
    origin = {COPY_OF: {"manifest_sha256": source, "alpha": gate["alpha"]}}
    return _rewritten(copy, manifest | {"gate": gate | {"alpha": kept}, "provenance": manifest["provenance"] | origin})


def _rewritten(copy: Path, manifest: dict[str, Any]) -> dict[str, Any]:

    manifest["manifest_sha256"] = manifest_digest(manifest)
    write_json(copy / MANIFEST, manifest)
    return manifest
