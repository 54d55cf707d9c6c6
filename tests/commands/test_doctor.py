"""`rsd doctor`: what works is said to work, what is missing is said to be missing with what to do."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from rsd_policy.checkpoints.loading import save_policy
from rsd_policy.checkpoints.manifest import SHIPPED
from rsd_policy.commands import doctor
from rsd_policy.graph.supervisor import graph_environment
from tests.backbones.openvla.random_checkpoint import write_checkpoint
from tests.policies import small_policy

ROOT = Path(__file__).resolve().parents[2]


def test_ros_messages_libero_rendering_and_torch_work_here() -> None:
    checks = [
        doctor.check_python,
        doctor.check_ros,
        doctor.check_messages,
        doctor.check_libero,
        doctor.check_rendering,
        doctor.check_torch,
    ]
    for check in checks:
        finding = check()
        assert finding.ok, finding


def test_unbuilt_messages_are_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AMENT_PREFIX_PATH", str(tmp_path))
    finding = doctor.check_messages()
    assert not finding.ok
    assert "run ./rsd setup" in finding.text


def test_messages_built_from_other_sources_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    share = tmp_path / "share" / "rsd_msgs"
    shutil.copytree(ROOT / "ros2_ws" / "src" / "rsd_msgs", share)
    monkeypatch.setenv("AMENT_PREFIX_PATH", str(tmp_path))
    assert doctor.check_messages().ok
    with (share / "msg" / "Action.msg").open("a") as file:
        file.write("uint8 more\n")
    (share / "srv" / "ResetEpisode.srv").unlink()
    finding = doctor.check_messages()
    assert not finding.ok
    assert "msg/Action.msg, srv/ResetEpisode.srv" in finding.text


def test_without_ros_messages_the_graph_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "rclpy.py").write_text("raise ImportError('librcl.so: cannot open shared object file')\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    finding = doctor.check_ros()
    assert not finding.ok
    assert "librcl.so" in finding.text
    assert "./rsd setup" in finding.text


def test_without_opengl_rendering_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "disable")
    finding = doctor.check_rendering()
    assert not finding.ok
    assert "apt-get install" in finding.text


def test_a_missing_checkpoint_fails_every_part_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--policy", "no-such-policy"]) == 3
    lines = {line[9:23].strip(): line for line in capsys.readouterr().out.splitlines()}
    for part in ("checkpoint", "RFSQ decoder", "backbone", "RFSQ head", "draft model", "gate"):
        assert lines[part].startswith("MISSING")
        assert "no-such-policy" in lines[part]
    assert lines["torch"].startswith("ok")


def test_the_shipped_checkpoint_is_reported_with_its_accuracies(tmp_path: Path) -> None:
    for check in (doctor.check_checkpoint, doctor.check_decoder, doctor.check_backbone):
        assert check("mini").ok, check("mini")
    assert "accuracy L0" in doctor.check_head("mini").text
    assert "equal to the head L0" in doctor.check_draft("mini").text

    altered = tmp_path / "mini"
    shutil.copytree(SHIPPED / "mini", altered)
    weights = next(altered.glob("*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    for check in (doctor.check_checkpoint, doctor.check_decoder, doctor.check_head):
        finding = check(str(altered))
        assert not finding.ok
        assert "sha256" in finding.text


def test_a_published_policy_is_reported_with_what_it_lacks(tmp_path: Path) -> None:
    policy = str(write_checkpoint(tmp_path))
    assert "OpenVLA's layout" in doctor.check_checkpoint(policy).text
    assert "loaded: openvla, 2 layers, no early exit" in doctor.check_backbone(policy).text
    for check in (doctor.check_decoder, doctor.check_head, doctor.check_draft):
        finding = check(policy)
        assert finding.ok and "'baseline' only" in finding.text
    (tmp_path / "model-00001-of-00002.safetensors").unlink()
    assert not doctor.check_checkpoint(policy).ok


def test_gate_is_reported_with_its_promise_or_its_absence(tmp_path: Path) -> None:
    calibrated, plain = small_policy(), small_policy()
    plain.drop_gate()
    save_policy(tmp_path / "calibrated", calibrated)
    save_policy(tmp_path / "plain", plain)
    finding = doctor.check_gate(str(tmp_path / "calibrated"))
    assert finding.ok
    assert "at most 10% of skipped chunks deviate, with confidence 95%" in finding.text
    assert "50% skipped and 0.0% of them deviating in 80 episodes" in finding.text
    finding = doctor.check_gate(str(tmp_path / "plain"))
    assert finding.ok and finding.text.startswith("none:") and "rsd calibrate" in finding.text


def test_discovery_switched_off_in_the_shell_does_not_reach_a_graph_of_rsd(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a discovery server that does not run, or range OFF, an evaluation ended after 63 s with `policy_node is not
    there`, and doctor said ok. Doctor's two nodes discover each other in the environment that a graph gets."""
    monkeypatch.setenv("ROS_DISCOVERY_SERVER", "127.0.0.1:11811")
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "OFF")
    assert doctor.check_ros().ok
    environment = graph_environment(7)
    assert "ROS_DISCOVERY_SERVER" not in environment
    assert (environment["ROS_AUTOMATIC_DISCOVERY_RANGE"], environment["ROS_DOMAIN_ID"]) == ("LOCALHOST", "7")
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "SUBNET")  # someone may watch
    assert graph_environment(7)["ROS_AUTOMATIC_DISCOVERY_RANGE"] == "SUBNET"


def test_a_gpu_that_is_not_there_is_missing() -> None:
    finding = doctor.check_torch("cuda:63")
    assert not finding.ok
    assert "cuda:63" in finding.text


def test_doctor_renders_with_what_eval_renders_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """Doctor rendered with MuJoCo's own renderer and said ok where robosuite's, which eval uses, failed."""
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setenv("MUJOCO_EGL_DEVICE_ID", "63")
    finding = doctor.check_rendering()
    assert not finding.ok
    assert "MUJOCO_EGL_DEVICE_ID" in finding.text


def test_what_comes_from_elsewhere_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert f"ray from {tmp_path}/ray" in doctor.check_packages().text
