"""The stages of one inference as CUDA graphs: from frames in pinned memory to decoded actions in pinned memory.

Three segments for each set of input shapes, recorded when the first observation of these shapes comes:

    early   copy in -> preprocess | embed -> layers 0 .. k-1
    draft   exit readers -> draft -> decode [-> the gate's probability] -> copy out
    late    layers k, k+1 | layers k+2 .. N-1 -> head -> decode -> copy out

Where a bar stands a segment is two graphs: while the device runs the first, the host launches the second. An inference
copies the observation into pinned memory, replays two or three segments and waits once for each chunk that
it hands out. It allocates nothing on the device. Every mode replays the same early and late graphs, so the final chunk
is the same in each. Modules use their fused kernels while they are recorded (rsd_policy.kernels).

The gate decides on the host: what it asks comes with the draft, and a decision costs it microseconds.
"""

from __future__ import annotations

import importlib.util
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rsd_policy import kernels
from rsd_policy.backbones.base import Backbone
from rsd_policy.checkpoints.policy import Policy
from rsd_policy.engine.cuda_graph import WARM_UP, capture, recording_stream
from rsd_policy.engine.stages import Decoded, Draft, action_inputs, check_finite, decode
from rsd_policy.engine.timing import StageClock
from rsd_policy.errors import SetupError
from rsd_policy.observation import Observation

if TYPE_CHECKING:
    from rsd_policy.backbones.openvla.reference import ReferencePolicy

MAX_SHAPES = 8
"""Programs kept, one for each set of input shapes (the prompt's length decides it); the oldest goes first."""

HEAD_START = 2
"""Layers after layer k in a graph of their own, which the device computes while the host launches the others: a GPU
waits 0.09 ms for the launch of a 7B's late layers otherwise, when the gate has declined a draft."""

Mark = Callable[[str], None]

Recording = TypeVar("Recording")


class Segment:
    """One graph, the events between its stages, and its outputs in pinned memory.

    Args:
        call: computes the outputs and calls `mark` with a stage's name at its end. No synchronisation with the host, no
            shape that depends on values, no tensor from outside that may be freed.
        pool: memory shared with graphs that never run at the same time.
        device: a GPU.
        to_host: copy the outputs to pinned memory; else they stay where they are, as `outputs`.
        after: a short segment that is launched before this one, whose own launch takes the host a while: the device has
            something to do meanwhile.
    """

    def __init__(
        self,
        call: Callable[[Mark], dict[str, Any]],
        pool: Any,
        device: torch.device,
        *,
        to_host: bool,
        after: Segment | None = None,
    ) -> None:
        self._after = after
        stream, current = recording_stream(device), torch.cuda.current_stream(device)
        stream.wait_stream(current)
        with kernels.fused(), torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                outputs = call(lambda stage: None)
        current.wait_stream(stream)
        self._host: dict[str, Tensor] = {}
        if to_host:
            self._host = {n: torch.empty(t.shape, dtype=t.dtype, pin_memory=True) for n, t in outputs.items()}
        del outputs
        self._events: list[tuple[str, torch.cuda.Event]] = []
        self._graph = torch.cuda.CUDAGraph()
        with kernels.fused(), capture(self._graph, pool, stream):
            self._mark("start")
            self.outputs = call(self._mark)
            for name, tensor in self._host.items():
                tensor.copy_(self.outputs[name], non_blocking=True)
            if to_host:
                self._mark("decode")
        self._done = torch.cuda.Event()

    def _mark(self, stage: str) -> None:
        # external: an event of the graph itself, recorded at each replay
        event = torch.cuda.Event(enable_timing=True, external=True)
        event.record()
        self._events.append((stage, event))

    def launch(self) -> None:
        """Replay; returns at once."""
        if self._after is not None:
            self._after._graph.replay()
        self._graph.replay()
        self._done.record()

    def wait(self) -> dict[str, NDArray[Any]]:
        """Copies of the last replay's outputs.

        Raises:
            NonFiniteError: an output holds NaN or infinity.
        """
        self._done.synchronize()
        host = {name: tensor.numpy() for name, tensor in self._host.items()}
        check_finite(all(bool(np.isfinite(array).all()) for array in host.values() if array.dtype.kind == "f"))
        return {name: array.copy() for name, array in host.items()}

    def stage_ms(self) -> dict[str, float]:
        """Device time of each stage of the last replay, which is over."""
        times = {} if self._after is None else self._after.stage_ms()
        for (_, before), (stage, event) in zip(self._events[:-1], self._events[1:], strict=True):
            times[stage] = times.get(stage, 0.0) + before.elapsed_time(event)
        return times


class Program:
    """The three graphs for observations of one set of shapes.

    Args:
        policy: with heads, on the device.
        device: a GPU.
        inputs: `Backbone.stage`'s arrays in pinned memory.
        drafts: whether there is a draft graph. gated: whether it computes the gate's probability.
    """

    def __init__(
        self, policy: Policy, device: torch.device, inputs: dict[str, Tensor], *, drafts: bool, gated: bool
    ) -> None:
        backbone, pool = policy.backbone, torch.cuda.graph_pool_handle()
        tail, first = (torch.from_numpy(array).pin_memory() for array in action_inputs(None))
        self._tail, self._first = tail.numpy(), first.numpy()

        k = policy.exit_layer
        prepared = prepare(backbone, inputs, pool, device)

        def early(mark: Mark) -> dict[str, Tensor]:
            x = backbone.embed(prepared.outputs["inputs"])
            mark("vision")
            x = backbone.forward_layers(x, 0, k)
            mark("layers_early")
            return {"x": x}

        self.early = Segment(early, pool, device, to_host=False, after=prepared)
        x = self.early.outputs["x"]

        def draft(mark: Mark) -> dict[str, Tensor]:
            hidden = backbone.exit_hidden(x)
            tokens, margins = policy.draft(hidden)
            mark("draft")
            answer = {"tokens": tokens, "margins": margins, "actions": decode(policy.codec, tokens)}
            if gated:
                assert policy.deviation is not None, "checked when the engine was made"
                told = tail.to(device, non_blocking=True), first.to(device, non_blocking=True)
                answer["probability"] = policy.deviation(hidden, margins.float(), answer["actions"], *told)
                mark("gate")
            return answer

        def late_start(mark: Mark) -> dict[str, Tensor]:
            y = backbone.forward_layers(x, k, middle)
            mark("layers_late")
            return {"y": y}

        def late(mark: Mark) -> dict[str, Tensor]:
            hidden = backbone.late_hidden(started.outputs["y"], middle)
            mark("layers_late")
            tokens, margins = policy.head(hidden)
            mark("head")
            return {"tokens": tokens, "margins": margins, "actions": decode(policy.codec, tokens)}

        self.draft = Segment(draft, pool, device, to_host=True) if drafts else None
        middle = min(k + HEAD_START, backbone.num_layers - 1)
        started = Segment(late_start, pool, device, to_host=False)
        self.late = Segment(late, pool, device, to_host=True, after=started)

    def tell(self, last_action: NDArray[np.float32] | None) -> None:
        """Put the last executed command there."""
        self._tail[:], self._first[:] = action_inputs(last_action)


def prepare(backbone: Backbone, inputs: dict[str, Tensor], pool: Any, device: torch.device) -> Segment:
    """`Backbone.prepare` of `Backbone.stage`'s arrays in pinned memory; the output "inputs" is what `embed` takes."""

    def call(mark: Mark) -> dict[str, Any]:
        there = {name: tensor.to(device, non_blocking=True) for name, tensor in inputs.items()}
        prepared = backbone.prepare(there)
        mark("preprocess")
        return {"inputs": prepared}

    return Segment(call, pool, device, to_host=False)


class Recordings(Generic[Recording]):
    """Recordings by the shapes of their inputs, and these inputs in pinned memory.

    Args:
        backbone: stages observations.
        device: a GPU.
        record: makes a recording that reads the given pinned tensors.

    Raises:
        SetupError: Triton is not installed.
    """

    def __init__(
        self, backbone: Backbone, device: torch.device, record: Callable[[dict[str, Tensor]], Recording]
    ) -> None:
        if importlib.util.find_spec("triton") is None:
            raise SetupError(
                "CUDA graphs with fused kernels need the package 'triton', which torch for CUDA brings; install it, or "
                "make the engine with cuda_graphs=False"
            )
        self._backbone, self._device, self._record = backbone, device, record
        self._kept: OrderedDict[tuple[Any, ...], tuple[dict[str, NDArray[Any]], Recording]] = OrderedDict()

    @torch.inference_mode()
    def fed(self, observation: Observation) -> Recording:
        """The recording for an observation, which its pinned memory now holds; new shapes cost a recording first."""
        staged = self._backbone.stage([observation])
        key = tuple((name, array.shape, array.dtype) for name, array in staged.items())
        if key not in self._kept:
            while len(self._kept) >= MAX_SHAPES:
                self._kept.popitem(last=False)
            pinned = {name: torch.from_numpy(array.copy()).pin_memory() for name, array in staged.items()}
            with torch.cuda.device(self._device):
                recording = self._record(pinned)
            self._kept[key] = {name: tensor.numpy() for name, tensor in pinned.items()}, recording
        self._kept.move_to_end(key)
        inputs, recording = self._kept[key]
        for name, array in staged.items():
            np.copyto(inputs[name], array)
        return recording


class RecordedStages:
    """`Stages` as graphs; a call launches its graph, and what it returns waits for the result.

    Args: as `Program`.
    """

    def __init__(self, policy: Policy, device: torch.device, *, drafts: bool, gated: bool) -> None:
        def record(inputs: dict[str, Tensor]) -> Program:
            return Program(policy, device, inputs, drafts=drafts, gated=gated)

        self._recordings = Recordings(policy.backbone, device, record)

    def early(self, observation: Observation, clock: StageClock) -> Program:
        """Launch layers 0 .. k-1."""
        program = self._recordings.fed(observation)
        program.early.launch()
        return program

    def draft(
        self, program: Program, last_action: NDArray[np.float32] | None, clock: StageClock
    ) -> Callable[[], Draft]:
        """Launch the draft; `last_action` [7] was executed last, None before the first."""
        assert program.draft is not None, "an engine that drafts records drafts"
        program.tell(last_action)
        program.draft.launch()
        return partial(self._drafted, program, clock)

    def late(self, program: Program, clock: StageClock) -> Callable[[], Decoded]:
        """Launch layers k .. N-1 and the main head."""
        program.late.launch()
        return partial(self._finished, program, clock)

    @staticmethod
    def _drafted(program: Program, clock: StageClock) -> Draft:
        assert program.draft is not None
        host = program.draft.wait()
        draft = Draft(host["tokens"][:, 0], host["actions"][0], lambda: host["probability"][0])
        clock.measured(program.early.stage_ms() | program.draft.stage_ms())
        return draft

    @staticmethod
    def _finished(program: Program, clock: StageClock) -> Decoded:
        host = program.late.wait()
        early = program.early.stage_ms() if program.draft is None else {}
        clock.measured(early | program.late.stage_ms())
        return Decoded(host["tokens"][:, 0], host["actions"][0])


class RecordedReference:
    """A published policy that answers by regression (OpenVLA-OFT) as one graph.

    Args:
        reference: a `recordable` one, on the device.
        device: a GPU.
    """

    def __init__(self, reference: ReferencePolicy, device: torch.device) -> None:
        backbone, action_head = reference.backbone, cast("nn.Module", reference.action_head)

        def record(inputs: dict[str, Tensor]) -> Segment:
            pool = torch.cuda.graph_pool_handle()
            prepared = prepare(backbone, inputs, pool, device)

            def answer(mark: Mark) -> dict[str, Tensor]:
                x = backbone.embed(prepared.outputs["inputs"])
                mark("vision")
                hidden = backbone.late_hidden(x, 0)
                normalised = action_head(hidden).double()
                mark("reference")
                return {"normalised": normalised}

            return Segment(answer, pool, device, to_host=True, after=prepared)

        self._units = backbone.units
        self._recordings = Recordings(backbone, device, record)

    def actions(self, observation: Observation, clock: StageClock) -> NDArray[np.float32]:
        """float32 [T, 7], as `ReferencePolicy.forward`; errors as there."""
        segment = self._recordings.fed(observation)
        segment.launch()
        actions = self._units.actions(segment.wait()["normalised"][0])
        clock.measured(segment.stage_ms())
        return actions
