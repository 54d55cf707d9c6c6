"""Fused GPU kernels (Triton), used while a CUDA graph is recorded and nowhere else.

A module that has a fused form asks `enabled()` and else computes its plain PyTorch form, which is the kernel's
reference (tests/kernels): the one that runs on a CPU, in training, and on a GPU without graphs. Kernels compute in
float32 and round once where PyTorch rounds after every operation.

    transformer.py  norm, product, bias, GELU and residual in one kernel; attention over short sequences
    levels.py       the digits of residual levels, and the actions that they name
    llama.py        RMSNorm, rotary positions and SiLU of the 7B layers, with fp8 outputs where asked for
    vision.py       residual, LayerScale and LayerNorm of the vision towers
    pixels.py       OpenVLA's image preprocessing
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

import torch

Result = TypeVar("Result")

_enabled: ContextVar[bool] = ContextVar("fused kernels", default=False)


def enabled() -> bool:
    """Whether modules use their fused form."""
    return _enabled.get()


@contextmanager
def fused() -> Iterator[None]:
    """Modules called within use their fused form; their tensors must be on a CUDA GPU, or in Triton's interpreter."""
    token = _enabled.set(True)
    try:
        yield
    finally:
        _enabled.reset(token)


def side_by_side(*calls: Callable[[], Result]) -> list[Result]:
    """Results of calls that do not need each other; in a graph on a GPU each but the first has a stream of its own.

    Small kernels leave most of a GPU idle, and those of another branch fill it.
    """
    if not enabled() or not torch.cuda.is_available():
        return [call() for call in calls]
    main = torch.cuda.current_stream()
    sides = [_side_stream(main.device, index) for index in range(1, len(calls))]
    for stream in sides:  # before the first call, which they need not wait for
        stream.wait_stream(main)
    results = []
    for stream, call in zip([main, *sides], calls, strict=True):
        with torch.cuda.stream(stream):
            results.append(call())
    for stream in sides:
        main.wait_stream(stream)
    return results


@functools.cache
def _side_stream(device: torch.device, index: int) -> torch.cuda.Stream:
    """Kept, because each stream costs tens of MiB of matrix-product workspace."""
    return torch.cuda.Stream(device)
