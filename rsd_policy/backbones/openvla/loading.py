"""Copying a checkpoint's tensors into the modules, strictly, file by file, in place on the target device.

Every parameter must be in the files with its shape, and every tensor of the files must have its place, except those
that the computation never reads (`fill`'s `ignored`). Nothing keeps an initial value.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from rsd_policy.backbones.openvla.config import UNQUANTISED
from rsd_policy.errors import CheckpointError, SetupError

LM_HEAD = "language_model.lm_head.weight"
PLAIN_TYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
LISTED = 12
"""Names that an error message shows of each kind; a wrong architecture has hundreds."""


def file_tensors(module: nn.Module, prefix: str = "") -> dict[str, Tensor]:
    """Every weight of a module under its name in the files; parts of joined matrices share their memory."""
    own: Callable[[], dict[str, Tensor]] | None = getattr(module, "file_tensors", None)
    if own is not None:
        return {prefix + name: tensor.detach() for name, tensor in own().items()}
    tensors = {prefix + name: parameter.detach() for name, parameter in module.named_parameters(recurse=False)}
    for name, child in module.named_children():
        tensors.update(file_tensors(child, f"{prefix}{name}."))
    return tensors


def allocate(build: Callable[[], nn.Module], device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Build a module whose weights are allocated but not initialised; `fill` must write all of them.

    Random initialisation of 7 billion numbers, only to overwrite them, takes minutes on a CPU.

    Raises:
        SetupError: there is too little memory.
    """
    with torch.device("meta"):
        module = build()
    if buffers := [name for name, _ in module.named_buffers()]:
        raise AssertionError(f"buffers would be left uninitialised: {buffers}")
    module = module.to(dtype)
    try:
        return module.to_empty(device=device).eval().requires_grad_(False)
    except RuntimeError as error:  # torch's error for too little memory, on a CPU and (a subclass) on a GPU
        gigabytes = sum(p.numel() * p.element_size() for p in module.parameters()) / 2**30
        raise SetupError(
            f"{device} has no room for {gigabytes:.1f} GiB of {dtype} weights: {error}; "
            "free some, or use bfloat16 or another device"
        ) from error


def read_safetensors(paths: Iterable[Path], device: torch.device) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor of every entry, one in memory at a time.

    Raises:
        CheckpointError: a file is not safetensors or is truncated.
    """
    for path in paths:
        try:
            with safe_open(path, framework="pt", device=str(device)) as file:
                for name in file.keys():  # noqa: SIM118 - not a dict
                    yield name, file.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path}: not a whole safetensors file: {error}; fetch it again") from error


def read_pickle(path: Path, device: torch.device) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor of a `.pt` state dict, without the "module." that distributed training puts before names.

    No code of the pickle is run (`weights_only`).

    Raises:
        CheckpointError: not a state dict of tensors.
    """
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{path}: expected a state dict of tensors: {error}; fetch it again") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path}: expected a state dict of tensors, got {type(state).__name__}")
    for name, tensor in state.items():
        yield str(name).removeprefix("module."), tensor


def fill(
    targets: dict[str, Tensor],
    tensors: Iterable[tuple[str, Tensor]],
    where: str,
    ignored: Collection[str] = (),
    change: Callable[[str, Tensor], Tensor] | None = None,
) -> None:
    """Copy tensors to their targets, with a change of dtype where they differ.

    Args:
        targets: from `file_tensors`.
        tensors: from the files.
        where: for messages.
        ignored: names that may be in the files without a target.
        change: name and tensor of the file -> tensor to copy.

    Raises:
        CheckpointError: lists missing, unexpected and misshapen tensors, and those that hold NaN or infinity; or names
            the first one that is quantised.
    """
    missing = set(targets)
    unexpected, shapes, broken = [], [], []
    for name, tensor in tensors:
        target = targets.get(name)
        if target is None:
            if name not in ignored:
                unexpected.append(name)
            continue
        missing.discard(name)
        if tensor.dtype not in PLAIN_TYPES:  # its shape and its companions follow from how it was quantised
            kind = str(tensor.dtype).removeprefix("torch.")
            raise CheckpointError(f"{where}: the weights are quantised ({name} is {kind}); {UNQUANTISED}")
        if tensor.shape != target.shape:
            shapes.append(f"{name}: expected {list(target.shape)}, got {list(tensor.shape)}")
            continue
        if not bool(torch.isfinite(tensor).all()):
            broken.append(name)
        target.copy_(change(name, tensor) if change else tensor)
    problems = {
        "missing": sorted(missing),
        "unexpected": sorted(unexpected),
        "wrong shapes": shapes,
        "holding NaN or infinity": broken,
    }
    found = [f"{what}: {shorten(names)}" for what, names in problems.items() if names]
    if found:
        raise CheckpointError(f"{where}: tensors do not fit the architecture; {'; '.join(found)}")


def shorten(names: list[str]) -> str:
    """A list for a message, cut after LISTED names."""
    rest = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + rest
