"""action_executor: chunks in, one command per control tick out.

Lockstep: a tick is an EpisodeStatus RUNNING; its command comes from the final chunk, for which it waits. Real time:
ticks come at 20 Hz of the node's clock, past steps are skipped, and without a step to execute the arm holds still. With
`execute_provisional` the provisional chunk is executed until the final one takes over. Before the first chunk nothing
is published.
"""

from __future__ import annotations

import sys

from rclpy.duration import Duration
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.timer import Timer
from rsd_msgs.msg import Action, ActionChunk, EpisodeStatus

from rsd_policy.control.chunk_executor import ChunkExecutor, Command
from rsd_policy.errors import ActionError
from rsd_policy.nodes.diagnostics import ERROR, OK, STALE, WARN, Diagnostics
from rsd_policy.nodes.messages import ACTION_FRAME, actions_from_msg, to_nanoseconds, to_seconds, to_stamp
from rsd_policy.nodes.parameters import declare_bool, declare_choice, declare_float, declare_int, declare_setting
from rsd_policy.nodes.runtime import COMMANDS, run_node
from rsd_policy.settings import CLOCKS, EXECUTE_STEPS, LIMIT

LAST_WORD_S = 0.2
"""How long the last command of a process that ends is given to arrive."""

LOG_PERIOD_S = 1.0
"""A fault that repeats is logged once in so long."""


OTHER_CLOCK_S = 10.0
"""No inference takes so long; a chunk that is older has stamps of another clock."""


class ActionExecutor(LifecycleNode):
    """Lifecycle: configure builds the state machine, activate starts commanding, deactivate stops and then holds."""

    def __init__(self) -> None:
        super().__init__("action_executor")
        self._realtime = declare_choice(self, "clock", CLOCKS, "What makes a control tick") == "realtime"
        self._period = declare_float(self, "period", 0.05, 0.001, 1.0, "Control period, s")
        self._execute_steps: int = declare_setting(self, EXECUTE_STEPS)
        self._limit: float = declare_setting(self, LIMIT)
        self._stale_periods = declare_int(
            self, "stale_periods", 2, 1, 1000, "Real time: the policy is stale after so many ticks without a step"
        )
        self._provisional = declare_bool(
            self, "execute_provisional", False, "Real time: execute a draft until its verified form is there"
        )
        self._diagnostics = Diagnostics(self, "")
        self._diagnostics.set("commands", STALE, "not configured")
        self._publisher = self.create_publisher(Action, "action", COMMANDS)
        self.create_subscription(ActionChunk, "action_chunk", self._on_chunk, COMMANDS)
        self.create_subscription(EpisodeStatus, "episode", self._on_status, COMMANDS)
        self._chunks: ChunkExecutor | None = None
        self._active = False
        self._timer: Timer | None = None
        self._episode = 0
        self._running = False
        self._step = 0
        self._waiting: EpisodeStatus | None = None
        self._answer: Action | None = None
        self._clipped = 0
        self._refused: str | None = None
        self._untimely: str | None = None
        self._last_stamp = 0

    # -- lifecycle

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._chunks = ChunkExecutor(
            period=self._period,
            execute_steps=self._execute_steps,
            limits=self._limit,
            stale_periods=self._stale_periods,
        )
        self._diagnostics.set("commands", STALE, "not active")
        return super().on_configure(state)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        assert self._chunks is not None
        self._chunks.drop()
        self._waiting = self._answer = self._refused = None
        self._active = True
        if self._realtime:
            self._timer = self.create_timer(self._period, self._on_tick)
        self._diagnostics.set("commands", OK, "active, no command yet")
        return super().on_activate(state)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._stop()
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._chunks = None
        return super().on_cleanup(state)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._stop()
        return super().on_shutdown(state)

    def _stop(self) -> None:
        if not self._active:
            return
        self._active = False
        if self._timer is not None:
            self.destroy_timer(self._timer)
            self._timer = None
        # The safety command goes out last: from here on nothing publishes a command.
        assert self._chunks is not None
        command = self._chunks.hold()
        if command is not None:
            # in lockstep the ticks are the clock
            self._publish(command, self._now() if self._realtime else self._last_stamp)
        self._diagnostics.set("commands", STALE, "not active")

    def stop(self) -> None:
        """The process is asked to end: hold, as on deactivation, and see that it arrives."""
        self._stop()
        self._publisher.wait_for_all_acked(Duration(seconds=LAST_WORD_S))

    # -- inputs

    def _on_chunk(self, msg: ActionChunk) -> None:
        if msg.horizon == 0 and self._active:
            assert self._chunks is not None
            self._chunks.drop()
            return
        # Lockstep waits for the final chunk: which of the two is executed must not depend on timing.
        if not self._active or not (msg.verified or (self._realtime and self._provisional)):
            return
        assert self._chunks is not None
        if msg.episode > self._episode:
            self._enter(msg.episode)
        elif msg.episode < self._episode:
            if msg.episode or self._episode_runs():
                return
            # a robot without episodes goes on where a simulation or a bag has ended
            self._episode = self._step = 0
            self._chunks.drop()
        try:
            self._chunks.set_chunk(actions_from_msg(msg), stamp=to_seconds(msg.header.stamp), verified=msg.verified)
        except ActionError as error:
            # stays in /diagnostics until a chunk is good again, whatever the ticks in between have to say
            self._refused = f"chunk refused: {error}"
            self.get_logger().error(self._refused, throttle_duration_sec=LOG_PERIOD_S)
            self._diagnostics.set("commands", ERROR, self._refused)
            return
        self._refused = None
        self._untimely = self._compare_clocks(msg) if self._realtime else None
        if self._waiting is not None:
            self._try_answer()

    def _compare_clocks(self, msg: ActionChunk) -> str | None:
        """What to say of a chunk no step of which can be due by this node's clock, or None."""
        age = (self._now() - to_nanoseconds(msg.header.stamp)) * 1e-9
        if -self._period <= age < self._period * min(self._execute_steps, msg.horizon):
            return None
        if 0.0 < age < OTHER_CLOCK_S:
            why = "the policy is too slow for this control period"
        else:
            sim = self.get_parameter("use_sim_time").value
            why = f"this node's clock is not that of the observations (use_sim_time is {sim})"
        text = f"holding still: a chunk came {abs(age):.3f} s {'after' if age > 0 else 'before'} its observation: {why}"
        self.get_logger().warning(text, throttle_duration_sec=10.0)
        return text

    def _episode_runs(self) -> bool:
        """Whether chunks must belong to an episode; in real time one whose publisher is gone runs no more."""
        return not self._realtime or (self._running and self.count_publishers("episode") > 0)

    def _on_status(self, msg: EpisodeStatus) -> None:
        self._running = msg.state == EpisodeStatus.RUNNING
        if not self._active:
            return
        if msg.episode != self._episode:
            self._enter(msg.episode)
        if self._realtime or msg.state != EpisodeStatus.RUNNING:
            self._waiting = None
            return
        answer = self._answer
        if answer is not None and answer.step >= msg.step:
            # Asked again for a tick that was answered: the answer may have been lost. Unless it was refused.
            if answer.step == msg.step and not msg.message:
                self._publisher.publish(answer)
            return
        self._waiting = msg
        self._try_answer()

    def _enter(self, episode: int) -> None:
        """A new episode: nothing of the one before may be executed in it."""
        assert self._chunks is not None
        self._episode, self._step = episode, 0
        self._waiting = self._answer = self._refused = None
        self._chunks.reset()
        self._diagnostics.set("commands", OK, "active, no command yet")

    # -- output

    def _try_answer(self) -> None:
        """Lockstep: answer the waiting tick if there is a step for it."""
        tick = self._waiting
        assert self._chunks is not None and tick is not None
        command = self._chunks.next_action(to_seconds(tick.header.stamp))
        if command is None:
            return
        self._waiting = None
        self._step = tick.step
        self._answer = self._publish(command, to_nanoseconds(tick.header.stamp))

    def _on_tick(self) -> None:
        """Real time: one command per tick, once there has been a chunk."""
        now = self._now()
        assert self._chunks is not None
        command = self._chunks.next_action(now * 1e-9) or self._chunks.hold()
        if command is None:
            self._report(None)
            return
        self._publish(command, now)
        self._step += 1

    def _now(self) -> int:
        return to_nanoseconds(self.get_clock().now().to_msg())

    def _publish(self, command: Command, stamp: int) -> Action:
        msg = Action(episode=self._episode, step=self._step, remaining=min(command.remaining, 255))
        msg.header.stamp = to_stamp(stamp)
        msg.header.frame_id = ACTION_FRAME
        msg.values = command.values
        self._publisher.publish(msg)
        self._last_stamp = stamp
        self._report(command)
        return msg

    def _report(self, command: Command | None) -> None:
        assert self._chunks is not None
        self._clipped += command is not None and command.clipped
        if self._refused is not None:
            self._diagnostics.set("commands", ERROR, self._refused, clipped=self._clipped)
        elif self._untimely is not None and (command is None or command.hold):
            self._diagnostics.set("commands", WARN, self._untimely, clipped=self._clipped)
        elif command is None:
            self._diagnostics.set("commands", OK, "active, no chunk yet")
        elif self._chunks.stale:
            self._diagnostics.set("commands", WARN, "holding still: no chunk to execute", clipped=self._clipped)
        else:
            self._diagnostics.set("commands", OK, "commanding", clipped=self._clipped)


def main(args: list[str] | None = None) -> int:
    """Entry point of the executable `action_executor`."""
    return run_node(ActionExecutor, args)


if __name__ == "__main__":
    sys.exit(main())
