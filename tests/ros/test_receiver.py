"""The receiver's thread: it hears what the executor does not, passes errors on, and ends when it is told to."""

from __future__ import annotations

import threading

import pytest
import rclpy
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from std_msgs.msg import String

from rsd_policy.nodes.receiver import Receiver
from rsd_policy.nodes.runtime import COMMANDS, LATCHED


@pytest.fixture
def node(domain):
    context = Context()
    rclpy.init(context=context, domain_id=domain)
    node = rclpy.create_node("hearing", context=context)
    yield node
    node.destroy_node()
    rclpy.try_shutdown(context=context)


def make(node, callback):
    """A receiver of the topic 'words' with what it died of."""
    deaths, dead = [], threading.Event()

    def on_death(error):
        deaths.append(error)
        dead.set()

    receiver = Receiver(node, on_death)
    receiver.subscribe(String, "words", callback, LATCHED)
    receiver.start()
    return receiver, deaths, dead


def test_callbacks_run_in_its_thread_in_order_and_not_in_the_executor_s(node):
    heard, enough = [], threading.Semaphore(0)

    def hear(msg):
        heard.append((msg.data, threading.current_thread().name))
        enough.release()

    receiver = Receiver(node, on_death=lambda error: None)
    receiver.subscribe(String, "words", hear, COMMANDS)
    receiver.start()
    publisher = node.create_publisher(String, "words", COMMANDS)
    executor = SingleThreadedExecutor(context=node.context)
    executor.add_node(node)
    for i in range(50):
        publisher.publish(String(data=str(i)))
        executor.spin_once(timeout_sec=0)
    for _ in range(50):
        assert enough.acquire(timeout=20)
    receiver.close()
    assert heard == [(str(i), "receiver") for i in range(50)]
    publisher.publish(String(data="too late"))
    executor.spin_once(timeout_sec=0.2)
    assert len(heard) == 50, "nobody is called after close"
    executor.shutdown()


def test_an_error_in_a_callback_is_handed_over_and_ends_the_thread(node):
    def fail(msg):
        raise ValueError(msg.data)

    receiver, deaths, dead = make(node, fail)
    node.create_publisher(String, "words", LATCHED).publish(String(data="rubbish"))
    assert dead.wait(20)
    assert [str(error) for error in deaths] == ["rubbish"]
    receiver.close()


def test_a_shutdown_of_the_context_ends_the_thread(node):
    receiver, deaths, _ = make(node, print)
    rclpy.shutdown(context=node.context)
    receiver._thread.join(timeout=20)
    assert not receiver._thread.is_alive()
    assert deaths == []
    receiver.close()
