"""A function of tensors as a CUDA graph: hundreds of kernel launches become one.

A 7B backbone with two cameras spends most of an eager inference on launching kernels and not in them (7B policy on an
H100, 32 layers: 36.5 ms eager, 14.4 compiled and as a graph). A graph replays recorded kernels on fixed addresses, so
each input is copied into the addresses of the recording and each output out of them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

WARM_UP = 3
"""Calls before recording: first calls allocate workspaces and choose kernels, which a recording must not."""

_Outputs = Tensor | tuple[Tensor, ...]


@functools.cache
def recording_stream(device: torch.device) -> torch.cuda.Stream:
    """The one stream that recordings are made on: each stream costs tens of MiB of matrix-product workspace."""
    return torch.cuda.Stream(device)


def capture(graph: torch.cuda.CUDAGraph, pool: Any, stream: torch.cuda.Stream) -> torch.cuda.graph:
    """What is launched in this context becomes the graph.

    cuBLAS keeps a workspace for each stream. Whoever records next in this process may free it (torch.compile does), and
    a graph that had been given it would write into memory that is somebody else's by then. So it is freed here first:
    the recording gets one out of its own pool, which lives as long as its graphs.
    """
    torch._C._cuda_clearCublasWorkspaces()
    # thread_local: other threads of a node may use the GPU while this one records.
    return torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local")


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
        side = recording_stream(example[0].device)
        side.wait_stream(torch.cuda.current_stream(example[0].device))
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                call(*self._inputs)
        torch.cuda.current_stream(example[0].device).wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with capture(self._graph, pool, side):
            self._outputs: _Outputs = call(*self._inputs)

    def __call__(self, *inputs: Tensor) -> Any:
        """The function's outputs for inputs of the recorded shapes."""
        for recorded, given in zip(self._inputs, inputs, strict=True):
            recorded.copy_(given)
        self._graph.replay()
        if isinstance(self._outputs, Tensor):
            return self._outputs.clone()
        return tuple(tensor.clone() for tensor in self._outputs)
