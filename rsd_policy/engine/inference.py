"""RSDInferenceEngine: one observation in, one action chunk out.

    observation -> preprocess -> vision (embed) -> layers 0..k -> draft (L0-L2) -> layers k..N -> main head (L0-L7)

| mode        | what runs                                       | chunk                                     |
|-------------|-------------------------------------------------|-------------------------------------------|
| baseline    | everything but the draft (*)                    | main head                                 |
| speculative | everything; the draft's chunk comes out early   | main head, bit-identical to baseline      |
| gated       | as speculative, unless the gate lets the draft  | draft when let through, else main head    |
|             | through: then layers k..N and head are skipped  |                                           |

(*) A checkpoint of another project without heads of ours has this mode only and answers with its own output head.

All modes run layers 0..k and k..N as two calls, so the arithmetic of the final chunk is the same in each. On a GPU
everything between the frames and the actions is replayed as CUDA graphs (recorded.py), the same ones in every mode.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from rsd_policy.checkpoints.policy import Policy
from rsd_policy.device import parse_device
from rsd_policy.engine.acceptance import Acceptance, Comparison, compare
from rsd_policy.engine.gate import Audit, Gate
from rsd_policy.engine.recorded import RecordedReference, RecordedStages
from rsd_policy.engine.stages import Decoded, Draft, Reference, Stages
from rsd_policy.engine.timing import StageClock
from rsd_policy.errors import CheckpointError, InferenceError, ObservationError, RSDError
from rsd_policy.observation import ActionChunk, ChunkStats, Observation
from rsd_policy.settings import DEFAULT_MODE, MODES, Mode


@dataclass
class Totals:
    """Counts since the engine was made.

    chunks = skipped + verified, and accepted + rejected = compared chunks (verified in speculative or gated mode).
    """

    chunks: int = 0
    accepted: int = 0
    rejected: int = 0
    skipped: int = 0
    audited: int = 0
    audit_deviated: int = 0
    fell_back: bool = False
    stage_ms: dict[str, float] = field(default_factory=dict)


class RSDInferenceEngine:
    """Runs a policy with residual speculative decoding.

    Args:
        policy: from `load_policy`; moved to the device, which all engines of one policy therefore share.
        mode: see the module's docstring.
        device: torch device of the model.
        execute_steps: how many steps of a chunk will be executed; acceptance looks at these.
        alpha: in gated mode, bound on P(deviation > tolerance | skipped); default: the checkpoint's.
        audit_every: in gated mode, every how many skipped chunks one is verified after the fact.
        gate: in gated mode, a gate in place of the checkpoint's calibrated one, for measurements.
        cuda_graphs: on a GPU, replay recorded stages with fused kernels instead of launching kernels one by one. The
            first inference with a new size of frames or length of prompt then records them, which takes as long as some
            ten inferences.

    Raises:
        RSDError: unknown mode or device, or steps outside 1 .. T.
        CheckpointError: the policy has no RFSQ heads and the mode is not 'baseline'; or mode 'gated' without a gate
            that is calibrated for this alpha and this many steps.
    """

    def __init__(
        self,
        policy: Policy,
        mode: Mode = DEFAULT_MODE,
        device: str | torch.device = "cpu",
        *,
        execute_steps: int | None = None,
        alpha: float | None = None,
        audit_every: int = 10,
        gate: Gate | None = None,
        cuda_graphs: bool = True,
    ) -> None:
        if mode not in MODES:
            raise RSDError(f"mode: expected one of {', '.join(MODES)}, got '{mode}'")
        steps = policy.horizon if execute_steps is None else execute_steps
        if not 1 <= steps <= policy.horizon:
            raise RSDError(f"execute_steps: expected 1 .. {policy.horizon}, got {steps}")
        if audit_every < 1:
            raise RSDError(f"audit_every: expected at least 1, got {audit_every}")
        self.device = parse_device(device)
        self.policy = policy.to(self.device)
        self.mode = mode
        self.execute_steps = steps
        graphed = cuda_graphs and self.device.type == "cuda"
        # A policy without heads of ours answers with the output head that it came with.
        published = policy.reference if policy.heads is None and mode == "baseline" else None
        self._reference: Reference | RecordedReference | None = None
        if published is None:
            rule = policy.manifest["acceptance"]
            tolerance = np.asarray(rule["tolerance"], dtype=np.float32)
            self.acceptance = Acceptance(float(rule["threshold"]), tolerance, policy.rsd.codec.carries.numpy())
        elif graphed and published.recordable:
            self._reference = RecordedReference(published, self.device)
        else:
            self._reference = Reference(published)
        self.gate = self._gate(gate, alpha) if mode == "gated" else None
        self._stages: Any = Stages(policy, self.device)
        if graphed and published is None:
            drafts, gated = mode != "baseline", self.gate is not None
            self._stages = RecordedStages(policy, self.device, drafts=drafts, gated=gated)
        # Recorded stages are timed by the device itself, which need not be waited for.
        recorded = isinstance(self._reference or self._stages, RecordedStages | RecordedReference)
        self._clocked = torch.device("cpu") if recorded else self.device
        self.audit = Audit(self.gate.alpha if self.gate else 1.0, audit_every)
        self.totals = Totals()
        self._last_action: NDArray[np.float32] | None = None
        self._placed = self._placement()

    def _placement(self) -> tuple[torch.device, int]:
        """Where the backbone's weights lie: recorded graphs read these addresses whatever lies there later."""
        weight = next(cast("nn.Module", self.policy.backbone).parameters())
        return weight.device, weight.data_ptr() if weight.is_cuda else 0

    def _gate(self, given: Gate | None, alpha: float | None) -> Gate:
        gate = given or Gate.from_manifest(self.policy.manifest["gate"], alpha)
        if self.policy.deviation is None:
            raise CheckpointError(
                f"checkpoint '{self.policy.name}' has no predictor of the deviation, which the gate asks; "
                "calibrate it with `rsd calibrate`, or use mode 'speculative'"
            )
        if gate.steps < self.execute_steps:
            raise CheckpointError(
                f"gate: calibrated for {gate.steps} executed steps of a chunk, got execute_steps = "
                f"{self.execute_steps}; execute at most {gate.steps}, or calibrate for more"
            )
        return gate

    def reset(self) -> None:
        """Forget the episode: the next chunk is the first of a new one.

        The audit goes on across episodes, since one alone holds too few skipped chunks to judge by, and a fall-back
        lasts as long as the engine: what broke the gate's promise is not gone with the episode.
        """
        self._last_action = None

    def executed(self, action: NDArray[np.float32] | None) -> None:
        """Say what the robot was commanded last before the next observation, where it is not what the engine takes it
        to be: the last of the `execute_steps` steps of its last chunk. The gate looks at it.

        Args:
            action: [7], action units; None when nothing was executed in this episode yet.
        """
        self._last_action = None if action is None else np.asarray(action, dtype=np.float32).copy()

    def infer(self, observation: Observation) -> ActionChunk:
        """The final chunk for an observation.

        Args:
            observation: uint8 [H, W, 3] images (upright RGB), float32 [8] state (m, rad, m), an instruction.

        Returns:
            actions float32 [T, 7] in the units of the policy's robot profile (LIBERO: OSC_POSE units in [-1, 1],
            ready for `env.step`), tokens int64 [levels, T, 7], times in ms.

        Raises:
            ObservationError: not an Observation, a camera is missing or the instruction has no word; before any
                compute.
            NonFiniteError: the model produced NaN or infinity.
            InferenceError: out of memory or device failure (RuntimeError of torch); or the policy's weights are no
                longer where they were when the engine was made.
        """
        return list(self.stream(observation))[-1]

    def stream(self, observation: Observation) -> Iterator[ActionChunk]:
        """Chunks as soon as they are usable; the last one is what `infer` returns.

        speculative yields the provisional chunk (verified False), then the final one. gated yields the skipped chunk
        and, when it is audited, the same chunk again with the audit's outcome; or, when the gate declines, as
        speculative. baseline yields the final chunk only. Time between two chunks, while the caller has the control,
        is not counted. Arguments, chunks and errors as `infer`; errors come when the first chunk is asked for.
        """
        if not isinstance(observation, Observation):
            raise ObservationError(f"expected an rsd_policy.Observation, got {type(observation).__name__}")
        if self._placement() != self._placed:
            raise InferenceError(
                f"policy '{self.policy.name}' was moved after this engine was made for it on {self.device}; make a new "
                "engine (all engines of one policy share its device)"
            )
        clock = StageClock(self._clocked)
        try:
            if self._reference is not None:
                actions = self._reference.actions(observation, clock)
                self._count(clock, actions)
                stats = ChunkStats(dict(clock.stage_ms), clock.elapsed_ms, clock.elapsed_ms)
                yield ActionChunk(actions, stats=stats)
                return
            # On a GPU each call below launches a graph, and calling what it returns waits for the result.
            hidden = self._stages.early(observation, clock)
            if self.mode == "baseline":
                final = self._stages.late(hidden, clock)()
                yield self._verified(final, None, clock, clock.elapsed_ms)
                return
            awaited = self._stages.draft(hidden, self._last_action, clock)
            finishing = self._stages.late(hidden, clock) if self.gate is None else None
            draft = awaited()
            if self._may_skip(draft):
                yield from self._skipped(draft, hidden, clock)
                return
            finishing = finishing or self._stages.late(hidden, clock)
            first_action_ms = clock.elapsed_ms
            yield self._provisional(draft, clock)
            clock.resume()
            yield self._verified(finishing(), draft, clock, first_action_ms)
        except torch.OutOfMemoryError as error:
            raise InferenceError(
                f"{self.device} is out of memory: {error}; free some, use another, or fewer bytes per weight (fp8)"
            ) from error
        except RuntimeError as error:  # what torch raises for a failing device, and for the CPU's memory
            raise InferenceError(f"inference on {self.device} failed: {error}") from error

    def _may_skip(self, draft: Draft) -> bool:
        if self.gate is None or self.totals.fell_back:
            return False
        return self.gate.eligible(draft.actions, self._last_action) and self.gate.lets_through(draft.probability())

    def _provisional(self, draft: Decoded, clock: StageClock) -> ActionChunk:
        stats = ChunkStats(dict(clock.stage_ms), clock.elapsed_ms, clock.elapsed_ms)
        return ActionChunk(draft.actions, verified=False, levels=len(draft.tokens), tokens=draft.tokens, stats=stats)

    def _skipped(self, draft: Decoded, hidden: Any, clock: StageClock) -> Iterator[ActionChunk]:
        total_ms = clock.elapsed_ms
        self._count(clock, draft.actions)
        self.totals.skipped += 1
        plain = ChunkStats(dict(clock.stage_ms), total_ms, total_ms)
        chunk: dict[str, Any] = {
            "actions": draft.actions,
            "verified": False,
            "skipped": True,
            "levels": len(draft.tokens),
            "tokens": draft.tokens,
        }
        yield ActionChunk(**chunk, stats=plain)
        if not self.audit.due():
            return
        clock.resume()
        comparison = self._compare(draft, self._stages.late(hidden, clock)())
        self.audit.record(not comparison.within_tolerance)
        self.totals.audited += 1
        self.totals.audit_deviated += int(not comparison.within_tolerance)
        self.totals.fell_back = self.totals.fell_back or self.audit.tripped
        yield ActionChunk(
            **chunk,
            accepted=comparison.accepted,
            stats=ChunkStats(
                plain.stage_ms,
                total_ms,
                total_ms,
                comparison.token_agreement,
                comparison.max_deviation,
                comparison.accepted_steps,
                audited=True,
                audit_deviated=not comparison.within_tolerance,
            ),
        )

    def _verified(
        self, final: Decoded, draft: Decoded | None, clock: StageClock, first_action_ms: float
    ) -> ActionChunk:
        self._count(clock, final.actions)
        comparison = self._compare(draft, final) if draft else None
        if comparison:
            self.totals.accepted += int(comparison.accepted)
            self.totals.rejected += int(not comparison.accepted)
        return ActionChunk(
            final.actions,
            verified=True,
            accepted=comparison.accepted if comparison else None,
            levels=len(final.tokens),
            tokens=final.tokens,
            stats=ChunkStats(
                dict(clock.stage_ms),
                first_action_ms,
                clock.elapsed_ms,
                comparison.token_agreement if comparison else (),
                comparison.max_deviation if comparison else None,
                comparison.accepted_steps if comparison else None,
            ),
        )

    def _compare(self, draft: Decoded, final: Decoded) -> Comparison:
        return compare(draft.tokens, draft.actions, final.tokens, final.actions, self.execute_steps, self.acceptance)

    def _count(self, clock: StageClock, executed: NDArray[np.float32]) -> None:
        self.totals.chunks += 1
        for stage, milliseconds in clock.stage_ms.items():
            self.totals.stage_ms[stage] = self.totals.stage_ms.get(stage, 0.0) + milliseconds
        self._last_action = executed[self.execute_steps - 1]
