"""Takes the messages of some subscriptions in a thread of its own, with a wait set that holds nothing else.

rclpy's executor builds its wait set anew for every wake-up, from all that a node has: a lifecycle node with an action
has some 30 entities, which takes 0.5 ms of Python each time, and an observation is four messages.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from rclpy.callback_groups import CallbackGroup
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.guard_condition import GuardCondition
from rclpy.impl.implementation_singleton import rclpy_implementation as _rclpy
from rclpy.node import Node
from rclpy.qos import QoSProfile
from rclpy.subscription import Subscription


class _NotByTheExecutor(CallbackGroup):
    """Keeps the node's executor from what is in it."""

    def can_execute(self, entity: object) -> bool:
        return False

    def beginning_execution(self, entity: object) -> bool:
        return True

    def ending_execution(self, entity: object) -> None:
        pass


class Receiver:
    """Callbacks of its subscriptions run one at a time in the receiver's thread, from `start` to `close`.

    Args:
        node: whose subscriptions they are.
        on_death: called in the thread with an exception that a callback raised; the thread ends after it.
    """

    def __init__(self, node: Node, on_death: Callable[[BaseException], None]) -> None:
        self._node = node
        self._on_death = on_death
        self._group = _NotByTheExecutor()
        self._subscriptions: list[Subscription] = []
        self._closing = False
        self._wake = GuardCondition(None, None, context=node.context)
        node.context.on_shutdown(self._stop)
        self._thread = threading.Thread(target=self._run, name="receiver", daemon=True)

    def subscribe(self, kind: Any, topic: str, callback: Callable[[Any], None], qos: QoSProfile) -> None:
        """Subscribe as `Node.create_subscription` does; only before `start`.

        Events of the subscription are not reported: whoever waits for one is woken by its messages as well
        (rmw_fastrtps has one status condition for both), and the executor would spin until the message is taken here.
        """
        subscription = self._node.create_subscription(
            kind,
            topic,
            callback,
            qos,
            callback_group=self._group,
            event_callbacks=SubscriptionEventCallbacks(use_default_callbacks=False),
        )
        self._subscriptions.append(subscription)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """End after the callback that is running. Not to be called from a callback."""
        self._stop()
        if self._thread.is_alive():
            self._thread.join()

    def _stop(self) -> None:
        self._closing = True
        self._wake.trigger()

    def _run(self) -> None:
        try:
            with ExitStack() as stack:
                for entity in (self._node.context, self._wake, *self._subscriptions):
                    stack.enter_context(entity.handle)  # not destroyed while it is waited for
                self._receive()
        except BaseException as error:  # handed over; a node that no longer hears would be worse
            self._on_death(error)

    def _receive(self) -> None:
        wait_set = _rclpy.WaitSet(len(self._subscriptions), 1, 0, 0, 0, 0, self._node.context.handle)
        while not self._closing:
            wait_set.clear_entities()
            for subscription in self._subscriptions:
                wait_set.add_subscription(subscription.handle)
            wait_set.add_guard_condition(self._wake.handle)
            wait_set.wait(-1)
            ready = wait_set.get_ready_entities("subscription")
            for subscription in self._subscriptions:
                if subscription.handle.pointer in ready and not self._closing:
                    taken = subscription.handle.take_message(subscription.msg_type, False)
                    if taken is not None:
                        subscription.callback(taken[0])
