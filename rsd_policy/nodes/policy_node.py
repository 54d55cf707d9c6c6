"""policy_node: camera images, robot state and an instruction in, action chunks out.

Lockstep: infers once on each observation that an EpisodeStatus asks for. Real time: infers on the newest complete
observation as soon as the last inference is done. A thread of its own takes the observations, another one decodes them
and infers; the executor serves the rest.
"""

from __future__ import annotations

import sys
import threading
import time
from functools import partial
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from rclpy.clock import Clock, ClockType
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.qos import qos_profile_sensor_data
from rsd_msgs.msg import Action, EpisodeStatus
from rsd_msgs.msg import ActionChunk as ActionChunkMsg
from std_msgs.msg import String

from rsd_policy.checkpoints.digest import policy_digest
from rsd_policy.errors import InferenceError, ObservationError, RSDError
from rsd_policy.nodes.diagnostics import ERROR, OK, STALE, WARN, Diagnostics
from rsd_policy.nodes.executed_commands import ExecutedCommands
from rsd_policy.nodes.figures import InferenceFigures
from rsd_policy.nodes.inference_worker import Engine, InferenceWorker, Request
from rsd_policy.nodes.instruction_goal import InstructionGoal
from rsd_policy.nodes.instructions import Instructions, same
from rsd_policy.nodes.message_class import message_class
from rsd_policy.nodes.messages import ACTION_FRAME, chunk_to_msg, to_nanoseconds, to_stamp
from rsd_policy.nodes.parameters import (
    declare_choice,
    declare_float,
    declare_policy_options,
    declare_setting,
    declare_text,
)
from rsd_policy.nodes.receiver import Receiver
from rsd_policy.nodes.runtime import COMMANDS, LATCHED, LOCKSTEP_INPUT, run_node
from rsd_policy.observation import ActionChunk, Observation
from rsd_policy.robots.alignment import Moment, make_aligner
from rsd_policy.robots.arrivals import Arrivals
from rsd_policy.robots.composition import Composer
from rsd_policy.robots.contract import DEFAULT_ROBOT, load_contract
from rsd_policy.robots.state import stamp_of
from rsd_policy.robots.state_check import StateCheck
from rsd_policy.robots.transforms import refuse_transforms
from rsd_policy.settings import CLOCKS, DEFAULT_MODE, EXECUTE_STEPS, IMAGE_SIZE, MODES

CHECK_PERIOD_S = 0.5
INPUT_TIMEOUT_S = 2.0
"""An observation that is incomplete for this long has lost an input: that is reported as an error."""


LOG_PERIOD_S = 10.0
"""A fault that repeats is logged once in so long; /diagnostics always tell the latest."""

STATE_WARNING_S = 10.0
"""A state that is unlike the training's is logged at most this often."""


class PolicyNode(LifecycleNode):
    """Lifecycle: configure loads the policy and warms it up, activate publishes, deactivate stops working first."""

    def __init__(self) -> None:
        super().__init__("policy_node")
        self._policy = declare_text(self, "policy", "mini", "'mini', or the directory of a checkpoint")
        self._mode = declare_choice(self, "mode", MODES, "Inference mode", DEFAULT_MODE)
        self._alpha, self._norm_key, self._base = declare_policy_options(self)
        self._policy_sha256 = ""
        self._device = declare_text(self, "device", "cpu", "torch device: cpu, cuda or cuda:N")
        self._lockstep = declare_choice(self, "clock", CLOCKS, "Which observations are answered") == "lockstep"
        self._contract = load_contract(
            declare_text(self, "robot", DEFAULT_ROBOT, "Contract of the robot: a name of config/robots, or a path")
        )
        self._execute_steps: int = declare_setting(self, EXECUTE_STEPS)
        self._image_size: int = declare_setting(self, IMAGE_SIZE)  # of the warm-up
        self._inference_timeout = declare_float(
            self, "inference_timeout", 8.0, 0.1, 3600.0, "An inference that takes longer is reported as an error, s"
        )
        self._diagnostics = Diagnostics(self, self._device)
        self._diagnostics.set("inference", STALE, "not configured")
        refuse_transforms(self._contract)
        self._composer = Composer(self._contract)
        self._state_check = StateCheck(self._contract, None)
        self._sync = make_aligner(self._contract.inputs, self._contract.alignment)
        topics = {name: self.resolve_topic_name(topic) for name, (topic, _) in self._contract.inputs.items()}
        self._arrivals = Arrivals(topics, self._contract.alignment)
        self._publisher = self.create_publisher(ActionChunkMsg, "action_chunk", COMMANDS)
        self._worker: InferenceWorker | None = None
        # Guards what the threads share. Publishing happens under it too: when deactivate returns, no chunk can follow.
        self._lock = threading.RLock()
        self._active = False
        self._instructions = Instructions()
        self._instruction_sent: int | None = None
        self._status: EpisodeStatus | None = None
        self._asked: EpisodeStatus | None = None
        self._submitted = -1
        self._answers: list[ActionChunkMsg] = []
        self._commands = ExecutedCommands()
        self._waiting_since: int | None = None
        self._unasked_since: int | None = None
        self._inference_failed = False
        self._reported: float | None = None
        self._logged: tuple[type | None, float] = None, 0.0
        # Counts activations and the beginnings and ends of goals: a chunk of an earlier activity is not published.
        self._activity = 0
        self._figures = InferenceFigures()
        self.fatal_error: BaseException | None = None
        self._goal = InstructionGoal(
            self,
            may_start=lambda: None if self._active else "the node is not active",
            on_start=self._turn_to_goal,
            on_end=self._halt,
        )
        self._receiver = Receiver(self, self._on_death)
        self._subscribe()
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(CHECK_PERIOD_S, self._check, clock=self._steady)
        self._receiver.start()

    def _subscribe(self) -> None:
        # Real cameras are consumed with the sensor-data profile (REP 2003). In lockstep a lost image would hold up the
        # simulation, so there it must arrive.
        qos = LOCKSTEP_INPUT if self._lockstep else qos_profile_sensor_data
        for name, (topic, kind) in self._contract.inputs.items():
            self._receiver.subscribe(message_class(kind), topic, partial(self._on_input, name), qos)
        self._receiver.subscribe(EpisodeStatus, self._contract.action.episode, self._on_status, COMMANDS)
        if not self._lockstep:
            self._receiver.subscribe(Action, self._contract.action.commands, self._on_command, COMMANDS)
        # A latched subscription does not hear volatile publishers, as `ros2 topic pub` is, and a volatile one not what
        # was latched before.
        for durability in (LATCHED, COMMANDS):
            self.create_subscription(
                String,
                self._contract.instruction_topic,
                self._on_instruction,
                durability,
                event_callbacks=SubscriptionEventCallbacks(use_default_callbacks=False),  # each is deaf on purpose
            )

    def close(self) -> None:
        """End the node's threads."""
        self._receiver.close()
        self._unload()

    def _unload(self) -> None:
        with self._lock:
            self._active = False
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    # -- lifecycle

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        worker = InferenceWorker(
            self._make_engine,
            self._contract,
            image_size=self._image_size,
            check=self._check_state,
            on_chunk=self._on_chunk,
            on_error=self._on_error,
            on_death=self._on_death,
        )
        try:
            worker.ready.result()
            self._policy_sha256 = policy_digest(self._policy, self._base)
        except RSDError as error:
            self.get_logger().error(f"policy '{self._policy}' cannot be used: {error}")
            self._diagnostics.set("inference", ERROR, str(error))
            return TransitionCallbackReturn.FAILURE
        except Exception as error:
            # rclpy drops what a transition raises; without this line nobody would learn why
            self.get_logger().fatal(f"loading policy '{self._policy}': {type(error).__name__}: {error}")
            self._diagnostics.set("inference", ERROR, f"{type(error).__name__}: {error}")
            raise
        self._worker = worker
        self.get_logger().info(f"policy '{self._policy}' is ready: {self._mode} on {self._device}")
        self._diagnostics.set("inference", STALE, "ready, not active")
        return super().on_configure(state)

    def _make_engine(self) -> Engine:
        from rsd_policy import RSDInferenceEngine, load_policy  # imports torch

        policy = load_policy(self._policy, self._device, norm_key=self._norm_key, base=self._base)
        self._state_check = StateCheck(self._contract, policy.state_statistics())
        engine: Engine = RSDInferenceEngine(
            policy,
            mode=cast("Any", self._mode),
            device=self._device,
            alpha=self._alpha,
            execute_steps=min(self._execute_steps, policy.horizon),  # a chunk that is shorter is executed whole
        )
        return engine

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._sync.clear()
        self._arrivals.clear()
        with self._lock:
            self._active = True
            self._status = self._asked = self._unasked_since = None
            self._submitted = -1
            self._answers = []
            self._commands.clear()
            self._inference_failed = False
            self._activity += 1
        # in real time observations come unasked
        self._waiting_since = None if self._lockstep else self._now()
        self._diagnostics.set("inference", OK, "active, no observation yet", mode=self._mode)
        return super().on_activate(state)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._stop("the policy node was deactivated")
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._unload()
        return super().on_cleanup(state)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._stop("the policy node was shut down")
        self._unload()
        return super().on_shutdown(state)

    def _stop(self, why: str) -> None:
        with self._lock:
            self._active = False
            self._send_stop()
        self._goal.end_now(why)
        self._diagnostics.set("inference", STALE, "not active")

    def _turn_to_goal(self) -> None:
        with self._lock:
            self._forget_request()

    def _halt(self) -> None:
        """A goal has ended: nothing of it is executed any more, and nothing older takes its place."""
        with self._lock:
            self._instructions.dismiss(self._running())
            self._send_stop()

    def _send_stop(self) -> None:
        """An empty chunk has the executor drop the one before it; no chunk of the same activity follows."""
        stamp = to_stamp(max(self._submitted, 0))
        self._forget_request()
        running = self._running()
        stop = ActionChunkMsg(mode=self._mode, policy_sha256=self._policy_sha256)
        stop.episode = running.episode if running else 0
        stop.header.stamp, stop.header.frame_id = stamp, ACTION_FRAME
        self._publisher.publish(stop)

    def _forget_request(self) -> None:
        self._activity += 1
        self._submitted = -1
        self._answers = []
        if self._worker is not None:
            self._worker.discard()

    def _running(self) -> EpisodeStatus | None:
        """State of the episode that runs.

        In real time one whose publisher is gone (a bag that has ended, a simulation that died) runs no more.
        """
        status = self._status
        if status is None or status.state != EpisodeStatus.RUNNING:
            return None
        return status if self._lockstep or self.count_publishers(self._contract.action.episode) else None

    # -- inputs (receiver thread)

    def _on_input(self, name: str, msg: Any) -> None:
        with self._lock:
            if self._active:
                self._take_input(name, msg)

    def _take_input(self, name: str, msg: Any) -> None:
        by_arrival = self._contract.alignment.stamps == "arrival"
        stamp = int(self.get_clock().now().nanoseconds) if by_arrival else stamp_of(msg)
        if self._sync.restart(name, stamp):
            self.get_logger().warning(f"{name}: the time stamps went back to {stamp * 1e-9:.3f} s; starting anew")
            self._submitted = -1
            self._answers = []
            self._commands.clear()
            self._arrivals.clear()
        self._arrivals.add(name, stamp)
        kept = self._composer.take(name, msg)
        moments = [] if kept is None else self._sync.add(name, stamp, kept, self._now())
        if not moments:
            return
        self._arrivals.complete(moments[-1].stamp)
        self._waiting_since = None if self._lockstep else self._now()
        if self._lockstep:
            if self._status is None and self._unasked_since is None:
                self._unasked_since = self._now()
            self._try_lockstep()
        elif moments[-1].stamp > self._submitted:
            self._submit(moments[-1])

    def _on_instruction(self, msg: String, info: dict[str, Any]) -> None:
        with self._lock:
            if info["source_timestamp"] == self._instruction_sent:
                return  # the same message, through the other subscription
            self._instruction_sent = info["source_timestamp"]
            self._instructions.topic = msg.data
            followed = self._instructions.choose(self._goal.instruction, self._running())
        if followed is not None and followed[1] != "topic" and not same(followed[0], msg.data):
            self.get_logger().warning(
                f"instruction '{msg.data}' is not followed while the {followed[1]} says '{followed[0]}'"
            )

    def _on_status(self, msg: EpisodeStatus) -> None:
        with self._lock:
            if self._active:
                self._take_status(msg)

    def _take_status(self, msg: EpisodeStatus) -> None:
        self._status = msg
        self._unasked_since = None
        if msg.state == EpisodeStatus.SUCCESS and same(self._goal.instruction or "", msg.instruction):
            self._goal.end("succeeded", "the task reports success")
        elif msg.state == EpisodeStatus.SUCCESS:
            self._goal.end(
                "aborted", f"the episode ended with success in its own task, which is another: '{msg.instruction}'"
            )
        elif msg.state in (EpisodeStatus.TIMEOUT, EpisodeStatus.ABORTED):
            self._goal.end("aborted", "the episode ended without success")
        if not self._lockstep:
            return
        if msg.state != EpisodeStatus.RUNNING or not msg.observation_due:
            self._asked = self._waiting_since = None
            return
        if to_nanoseconds(msg.header.stamp) == self._submitted:
            # Asked again. The answer may have been lost; if it is still being computed, there is none yet.
            for answer in self._answers:
                self._publisher.publish(answer)
            return
        self._asked = msg
        if self._waiting_since is None:
            self._waiting_since = self._now()
        self._try_lockstep()

    def _try_lockstep(self) -> None:
        """Infer when the observation that was asked for is complete."""
        if self._asked is None:
            return
        stamp = to_nanoseconds(self._asked.header.stamp)
        moment = self._sync.moment(stamp, self._now())
        if moment is not None:
            self._asked = self._waiting_since = None
            self._submit(moment)

    def _submit(self, moment: Moment) -> None:
        stamp = moment.stamp
        status = self._running()
        chosen = self._instructions.choose(self._goal.instruction, status)
        if chosen is None:
            self._diagnostics.set("inference", OK, "waiting for an instruction", mode=self._mode)
            return
        self._submitted = stamp
        self._answers = []
        # What failed before says nothing about this observation. In real time the next one comes before anybody has
        # seen that the last one failed: there only a chunk ends the report.
        if self._lockstep or not self._inference_failed:
            self._diagnostics.set("inference", OK, "inferring", mode=self._mode)
        assert self._worker is not None
        self._worker.submit(
            Request(
                stamp=to_stamp(stamp),
                episode=status.episode if status else 0,
                activity=self._activity,
                instruction=chosen[0],
                messages=moment.messages,
                composer=self._composer,
                executed=self._executed(stamp, status),
            )
        )

    def _executed(self, stamp: int, status: EpisodeStatus | None) -> NDArray[np.float32] | None:
        """What was executed last before the observation, [7]; None when that is not known.

        In lockstep the simulation says so itself. In real time chunks replace one another after a step or two, so that
        only the commands tell.
        """
        if self._lockstep:
            return np.asarray(status.executed, dtype=np.float32) if status and status.step > 0 else None
        episode = status.episode if status else 0
        return self._commands.before(stamp, episode)

    def _on_command(self, msg: Action) -> None:
        with self._lock:
            self._commands.add(msg)

    def _check(self) -> None:
        with self._lock:
            if self._active:
                self._check_inference()
                self._check_inputs()

    def _check_inference(self) -> None:
        """Report an inference that does not end: from here, because its own thread cannot."""
        since = self._worker.busy_since if self._worker is not None else None
        if since is None or since == self._reported or time.monotonic() - since < self._inference_timeout:
            return
        self._reported = since
        self._inference_failed = True
        limit = f"{self._inference_timeout:g} s (inference_timeout)"
        self._fail(InferenceError(f"expected a chunk within {limit}, none came; {self._device} hangs or is too slow"))

    def _check_inputs(self) -> None:
        """Report an observation that does not become complete or is not asked for, or in real time does not come."""
        if self._unasked_since is not None and self._now() - self._unasked_since > INPUT_TIMEOUT_S * 1e9:
            text = (
                "observations come, but none is answered: with clock 'lockstep' an EpisodeStatus must ask for it, and "
                f"none came on {self.resolve_topic_name(self._contract.action.episode)}; a robot or a bag without "
                "episodes needs clock 'realtime'"
            )
            self.get_logger().warning(text, throttle_duration_sec=LOG_PERIOD_S)
            self._diagnostics.set("inference", WARN, text, mode=self._mode)
        since = self._waiting_since
        if since is None or self._now() - since < INPUT_TIMEOUT_S * 1e9:
            return
        self._waiting_since = self._now()
        if self._lockstep or self._shown_to():
            asked = self._asked
            stamp = None if asked is None else to_nanoseconds(asked.header.stamp)
            self._fail(ObservationError(self._arrivals.explain(stamp)))

    def _shown_to(self) -> bool:
        """Real time: somebody shows observations. A simulation does not, between two episodes and before the first."""
        if self._status is None:
            return self.count_publishers("episode") == 0
        return bool(self._status.state == EpisodeStatus.RUNNING)

    def _now(self) -> int:
        nanoseconds: int = self._steady.now().nanoseconds
        return nanoseconds

    # -- outputs (inference thread)

    def _check_state(self, request: Request, observation: Observation) -> None:
        odd = self._state_check.check(observation, (request.episode, request.activity))
        if not odd:
            self._diagnostics.set("state", OK, "like the training's")
            return
        self.get_logger().warning("; ".join(odd), throttle_duration_sec=STATE_WARNING_S)
        self._diagnostics.set("state", WARN, "; ".join(odd))

    def _on_chunk(self, request: Request, chunk: ActionChunk) -> bool:
        msg = chunk_to_msg(chunk, request.stamp, request.episode, self._mode, self._policy_sha256)
        with self._lock:
            if not self._active or request.activity != self._activity:
                return False
            self._publisher.publish(msg)
            if to_nanoseconds(request.stamp) == self._submitted:
                self._answers.append(msg)
        self._inference_failed = False
        self._logged = None, 0.0
        if msg.verified and not msg.audited:
            self._count(chunk)
        return True

    def _count(self, chunk: ActionChunk) -> None:
        self._goal.chunk_done(chunk.stats.total_ms, chunk.accepted)
        fell_back = self._worker is not None and self._worker.fell_back
        self._diagnostics.set(
            "inference",
            WARN if fell_back else OK,
            "audit: the gate deviates too often, verifying every chunk" if fell_back else "inferring",
            mode=self._mode,
            **self._figures.add(chunk),
        )

    def _on_error(self, request: Request, error: RSDError) -> None:
        if request.activity != self._activity:
            return
        self._inference_failed = True
        self._fail(error)

    def _fail(self, error: RSDError) -> None:
        kind, now = type(error), time.monotonic()
        if kind is not self._logged[0] or now - self._logged[1] > LOG_PERIOD_S:
            self._logged = kind, now
            self.get_logger().error(f"{kind.__name__}: {error}")
        self._diagnostics.set("inference", ERROR, f"{type(error).__name__}: {error}", mode=self._mode)
        self._goal.end("aborted", str(error))

    def _on_death(self, error: BaseException) -> None:
        self.fatal_error = error
        self.context.try_shutdown()


def main(args: list[str] | None = None) -> int:
    """Entry point of the executable `policy_node`."""
    return run_node(PolicyNode, args)


if __name__ == "__main__":
    sys.exit(main())
