"""CUDA graphs of the engine's stages: hundreds of kernel launches become one.

A 7B backbone with two cameras spends most of an eager inference on launching kernels and not in them (7B policy on an
H100, 32 layers: 36.5 ms eager, 14.4 compiled and as a graph). A graph replays recorded kernels on fixed addresses, so
each input is copied into the addresses of the recording and each output out of them.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

MAX_SHAPES = 8
"""Graphs kept per stage, one for each set of input shapes (the prompt's length decides it); the oldest goes first."""

WARM_UP = 3
"""Calls before recording: first calls allocate workspaces and choose kernels, which a recording must not."""

_Outputs = Tensor | tuple[Tensor, ...]


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """The one stream that recordings are made on: each stream costs tens of MiB of matrix-product workspace."""
    return torch.cuda.Stream(device)


class GraphedCall:
    """One recording of a function of tensors, for the shapes of the example.

    Args:
        call: no synchronisation with the host, no shape that depends on values, no tensor from outside that may be
            freed (a replay reads its address all the same); a tensor or a tuple of tensors out.
        example: CUDA tensors; their values do not matter.
        pool: `torch.cuda.graph_pool_handle()` shared with other recordings. Sharing is safe as long as no two of them
            run at once: outputs are copied out before the next may overwrite them.

    Raises:
        RuntimeError: torch's, when the function cannot be recorded.
    """

    def __init__(self, call: Callable[..., Any], example: tuple[Tensor, ...], pool: Any = None) -> None:
        self._inputs = tuple(tensor.clone() for tensor in example)
        side = _side_stream(example[0].device)
        side.wait_stream(torch.cuda.current_stream(example[0].device))
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                call(*self._inputs)
        torch.cuda.current_stream(example[0].device).wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        # thread_local: other threads of a node may use the GPU while this one records.
        with torch.cuda.graph(self._graph, pool=pool, stream=side, capture_error_mode="thread_local"):
            self._outputs: _Outputs = call(*self._inputs)

    def __call__(self, *inputs: Tensor) -> Any:
        """The function's outputs for inputs of the recorded shapes."""
        for recorded, given in zip(self._inputs, inputs, strict=True):
            recorded.copy_(given)
        self._graph.replay()
        if isinstance(self._outputs, Tensor):
            return self._outputs.clone()
        return tuple(tensor.clone() for tensor in self._outputs)


class GraphedStage:
    """A stage of the engine that records one graph for each set of input shapes, types and devices it meets.

    Every mode of the engine calls the same stages, so the arithmetic of the final chunk is the same in each.
    """

    def __init__(self, call: Callable[..., Any], pool: Any = None) -> None:
        self._call = call
        self._pool = pool
        self._recordings: OrderedDict[tuple[Any, ...], GraphedCall] = OrderedDict()

    def __call__(self, *inputs: Tensor) -> Any:
        """Outputs of the stage; a new set of shapes costs a recording first."""
        key = tuple((tensor.device, tensor.shape, tensor.dtype) for tensor in inputs)
        recording = self._recordings.get(key)
        if recording is None:
            if len(self._recordings) == MAX_SHAPES:
                self._recordings.popitem(last=False)
            recording = self._recordings[key] = GraphedCall(self._call, inputs, self._pool)
        self._recordings.move_to_end(key)
        return recording(*inputs)
