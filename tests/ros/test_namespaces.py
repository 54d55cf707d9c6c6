"""Nodes in namespaces: their parameters are heard or refused by name, and a domain has one source of time."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
from rcl_interfaces.srv import GetParameters
from rosgraph_msgs.msg import Clock

from rsd_policy.exit_status import NOT_SET_UP, WRONG_ARGUMENTS
from rsd_policy.nodes.parameters import entries_of, unheard
from rsd_policy.settings import EVAL_CONFIG
from rsd_policy.share import shared_path

EXECUTOR = "rsd_policy.nodes.action_executor"


def start(domain, module, *arguments):
    command = [sys.executable, "-m", module, "--ros-args", *arguments]
    environment = os.environ | {"ROS_DOMAIN_ID": str(domain)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def ended(process):
    """Exit status and what was printed; a node that goes on instead is ended, and then has no status to compare."""
    try:
        printed = process.communicate(timeout=60)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        pytest.fail(f"the node was started all the same: {process.communicate()[0]}")
    return process.returncode, printed


def end(process):
    """End a node cleanly: what a killed one leaves in shared memory hinders the discovery of the next ones."""
    process.terminate()
    process.communicate(timeout=30)


@pytest.mark.parametrize(
    ("content", "heard"),
    [
        ({"action_executor": {}}, False),
        ({"/action_executor": {}}, False),
        ({"/robot2/action_executor": {}}, False),
        ({"/robot1/action_executor": {}}, True),
        ({"robot1": {"action_executor": {}}}, True),
        ({"/*/action_executor": {}}, True),
        ({"/**/action_executor": {}}, True),
        ({"/robot2/action_executor": {}, "/robot1/action_executor": {}}, True),
        ({"/**": {}}, True),
        ({"policy_node": {}}, True),
    ],
)
def test_which_entries_mean_the_node_and_miss_its_namespace(content, heard):
    filled = {key: value or {"ros__parameters": {}} for key, value in content.items()}
    if "robot1" in filled:
        filled["robot1"]["action_executor"] = {"ros__parameters": {}}
    assert (unheard(entries_of(filled), "/robot1/action_executor", "action_executor") == []) is heard


def test_parameters_that_miss_the_node_s_namespace_are_refused_by_name(domain, tmp_path):
    """ROS drops them in silence: an inference_timeout of 60 s stayed 8 s."""
    file = tmp_path / "parameters.yaml"
    file.write_text("action_executor:\n  ros__parameters:\n    period: 0.1\n")
    status, printed = ended(start(domain, EXECUTOR, "-r", "__ns:=/robot1", "--params-file", str(file)))
    assert status == WRONG_ARGUMENTS
    assert "parameters of 'action_executor' do not reach the node /robot1/action_executor" in printed
    assert "'/**/action_executor:'" in printed and "Traceback" not in printed


def test_parameters_for_the_name_that_a_node_had_are_refused(domain, tmp_path):
    """A launch file that renames the node and keeps its file: the node ran with its defaults, in silence."""
    file = tmp_path / "parameters.yaml"
    file.write_text("action_executor:\n  ros__parameters:\n    period: 0.1\n")
    status, printed = ended(start(domain, EXECUTOR, "-r", "__node:=left_executor", "--params-file", str(file)))
    assert status == WRONG_ARGUMENTS
    assert "parameters of 'action_executor' do not reach the node /left_executor; write '/left_executor:'" in printed


def test_a_parameter_that_the_node_does_not_have_is_refused_by_name(domain, tmp_path):
    """A misspelt limit was ignored in silence, and the arm moved with the default."""
    file = tmp_path / "parameters.yaml"
    file.write_text("/**/action_executor:\n  ros__parameters:\n    limt: 0.1\n")
    status, printed = ended(start(domain, EXECUTOR, "--params-file", str(file)))
    assert status == WRONG_ARGUMENTS
    assert "/action_executor has no parameter 'limt'; did you mean 'limit'?" in printed


def test_a_parameter_that_the_node_does_not_have_is_warned_of_on_the_command_line(domain):
    process = start(domain, EXECUTOR, "-p", "limt:=0.1")
    try:
        assert "/action_executor has no parameter 'limt'; did you mean 'limit'?" in process.stdout.readline()
    finally:
        end(process)


@pytest.mark.parametrize(
    "wrong", [("--params-file", "/nowhere.yaml"), ("-r", "__ns:=robot"), ("--parms-file", "a.yaml")]
)
def test_arguments_that_ros_cannot_read_are_refused_in_one_line(domain, wrong):
    """Each was a traceback of rclpy."""
    status, printed = ended(start(domain, EXECUTOR, *wrong))
    assert status == WRONG_ARGUMENTS
    assert wrong[1] in printed and "Traceback" not in printed


def test_a_parameter_for_a_node_name_that_misses_the_namespace_is_refused(domain):
    """-p NODE:NAME:=VALUE means the node of the root namespace only, and was dropped in silence elsewhere."""
    status, printed = ended(start(domain, EXECUTOR, "-r", "__ns:=/robot1", "-p", "action_executor:period:=0.1"))
    assert status == WRONG_ARGUMENTS
    assert "-p action_executor:period:=0.1: does not reach the node /robot1/action_executor" in printed


def test_the_configuration_of_the_evaluation_reaches_nodes_in_a_namespace(probe, domain, tmp_path):
    """config/eval.yaml, with a period that is not the default: it was ignored in a namespace."""
    file = tmp_path / "eval.yaml"
    text = shared_path(str(EVAL_CONFIG)).read_text()
    assert "period: 0.05 " in text
    file.write_text(text.replace("period: 0.05 ", "period: 0.07 "))
    process = start(domain, EXECUTOR, "-r", "__ns:=/robot3", "--params-file", str(file))
    try:
        request = GetParameters.Request(names=["period"])
        answer = probe.call(GetParameters, "/robot3/action_executor/get_parameters", request)
        assert answer.values[0].double_value == 0.07
    finally:
        end(process)


def test_a_parameter_out_of_its_range_is_refused_in_one_line(domain):
    """It was a traceback of rclpy."""
    status, printed = ended(start(domain, EXECUTOR, "-p", "period:=2.0"))
    assert status == WRONG_ARGUMENTS
    assert "period" in printed and "Traceback" not in printed


def test_a_second_source_of_time_in_a_domain_is_refused(probe, domain):
    """Of 160 ticks, 76 went back when two bridges shared /clock."""
    clock = probe.node.create_publisher(Clock, "/clock", 10)
    time.sleep(0.2)
    try:
        status, printed = ended(start(domain, "sim_bridge.nodes.bridge_node", "-r", "__ns:=/robot2"))
    finally:
        probe.node.destroy_publisher(clock)
    assert status == NOT_SET_UP
    assert "/clock: expected to be its only source in this ROS domain, /probe publishes it already" in printed
    assert "Traceback" not in printed


def test_of_two_sources_of_time_that_start_together_one_at_most_goes_on(domain):
    """Each looked for the other before it had a publisher that the other could see: both went on."""
    names = ["robot4", "robot5"]
    bridges = [start(domain, "sim_bridge.nodes.bridge_node", "-r", f"__ns:=/{name}") for name in names]
    deadline = time.monotonic() + 60
    while all(bridge.poll() is None for bridge in bridges) and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(0.5)
    refused = [bridge for bridge in bridges if bridge.poll() is not None]
    for bridge in bridges:
        if bridge not in refused:
            end(bridge)
    assert refused
    for bridge in refused:
        assert "/clock: expected to be its only source" in bridge.communicate()[0]
        assert bridge.returncode == NOT_SET_UP
