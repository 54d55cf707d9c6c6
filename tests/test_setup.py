"""The set-up script: when it runs, what it refuses, what environment it gives."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
PARTS = ["rsd", "requirements", "setup.py", "setup.cfg", "package.xml", "ros2_ws/src/rsd_msgs", "launch", "config"]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what the set-up reads, without .venv."""
    root = tmp_path / "checkout"
    for part in PARTS:
        source, target = ROOT / part, root / part
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target)
        elif source.exists():
            shutil.copy2(source, target)
    (root / "rsd_policy").mkdir()
    return root


CLEAN = {"PATH": os.environ["PATH"], "HOME": os.environ["HOME"]}
"""A shell in which no ROS was sourced."""


def bash(root: Path, script: str, **environment: str) -> str:
    """Output of a script that has sourced environment.sh."""
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f'root="{root}"\n. "$root/requirements/environment.sh"\n{script}'],
        capture_output=True,
        text=True,
        check=True,
        env=CLEAN | environment,
    ).stdout


def setup(root: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`./rsd setup ARGUMENTS`."""
    return subprocess.run(
        [root / "rsd", "setup", *arguments], capture_output=True, text=True, env=CLEAN | environment, check=False
    )


def script(name: str) -> ModuleType:
    """A Python file of requirements/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "requirements" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def mark_as_set_up(root: Path) -> None:
    """Leave the stamp of a finished set-up."""
    (root / ".venv").mkdir()
    (root / ".venv" / "rsd-ros").write_text("wheels\n")
    (root / ".venv" / "rsd-stamp").write_text(bash(root, "rsd_stamp"))


@pytest.mark.parametrize(
    "part", ["requirements/lock.txt", "ros2_ws/src/rsd_msgs/msg/Action.msg", "setup.py", "requirements/setup.sh"]
)
def test_a_change_of_what_the_set_up_reads_changes_the_stamp(checkout: Path, part: str) -> None:
    before = bash(checkout, "rsd_stamp")
    assert bash(checkout, "rsd_stamp") == before
    with (checkout / part).open("a") as file:
        file.write("# changed\n")
    assert bash(checkout, "rsd_stamp") != before


def test_a_moved_checkout_is_set_up_again(checkout: Path) -> None:
    before = bash(checkout, "rsd_stamp")
    moved = checkout.rename(checkout.with_name("moved"))
    assert bash(moved, "rsd_stamp") != before


def test_a_source_file_of_the_package_does_not_change_the_stamp(checkout: Path) -> None:
    before = bash(checkout, "rsd_stamp")
    (checkout / "rsd_policy" / "new.py").write_text("x = 1\n")
    assert bash(checkout, "rsd_stamp") == before


def test_a_finished_set_up_does_nothing(checkout: Path) -> None:
    mark_as_set_up(checkout)
    done = setup(checkout)
    assert done.returncode == 0
    assert done.stderr == "rsd: set up\n"
    assert done.stdout == ""


def test_two_set_ups_wait_for_each_other(checkout: Path) -> None:
    mark_as_set_up(checkout)
    with (checkout / "rsd").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        second = subprocess.Popen([checkout / "rsd", "setup"], stderr=subprocess.PIPE, text=True, env=CLEAN)
        assert second.stderr is not None
        assert "waiting" in second.stderr.readline()
        assert second.poll() is None
    assert second.stderr.readline() == "rsd: set up\n"
    second.stderr.close()
    assert second.wait(timeout=30) == 0


def test_an_interpreter_that_does_not_run_is_refused_before_anything_is_made(checkout: Path) -> None:
    done = setup(checkout, RSD_PYTHON="/nonexistent/python3")
    assert done.returncode == 3
    assert "RSD_PYTHON=/nonexistent/python3 does not run" in done.stderr
    assert not (checkout / ".venv").exists()


def test_an_interpreter_of_an_unsupported_version_is_refused(checkout: Path, tmp_path: Path) -> None:
    old = tmp_path / "python2.7"
    old.write_text("#!/bin/sh\necho 2.7\n")
    old.chmod(0o755)
    done = setup(checkout, RSD_PYTHON=str(old))
    assert done.returncode == 3
    assert "is Python 2.7; expected 3.10, 3.11 or 3.12" in done.stderr


def test_unknown_arguments_are_refused(checkout: Path) -> None:
    done = setup(checkout, "--clear")
    assert done.returncode == 2
    assert "unknown argument '--clear'" in done.stderr


def test_a_failing_package_index_ends_with_the_log_and_is_marked_for_repair(checkout: Path) -> None:
    done = setup(checkout, PIP_NO_INDEX="1", PIP_FIND_LINKS="", PIP_RETRIES="0")
    assert done.returncode == 3
    assert "No matching distribution found" in done.stderr
    assert "call again" in done.stderr
    assert (checkout / ".venv" / "rsd-installing").exists()
    assert not (checkout / ".venv" / "rsd-stamp").exists()


def test_an_old_ros_in_the_shell_does_not_reach_the_wheels(checkout: Path) -> None:
    (checkout / ".venv/lib/python3.11/site-packages/ros_rclpy.libs").mkdir(parents=True)
    script = 'rsd_environment; printf "%s\\n" "$PYTHONPATH" "$LD_LIBRARY_PATH" "$AMENT_PREFIX_PATH" "$ROS_DISTRO"'
    python_path, library_path, prefixes, distribution = bash(
        checkout,
        script,
        ROS_DISTRO="humble",
        AMENT_PREFIX_PATH="/opt/ros/humble",
        PYTHONPATH="/opt/ros/humble/lib/python3.10/site-packages:/home/me/fork-of-libero",
        LD_LIBRARY_PATH="/opt/ros/humble/lib:/usr/local/cuda/lib64",
    ).splitlines()
    assert python_path == f"{checkout}:{checkout}/ros2_ws/install/lib/python3.11/site-packages"
    assert "/opt/ros" not in library_path + prefixes
    assert library_path.endswith(":/usr/local/cuda/lib64")
    assert f"{checkout}/.venv/lib/python3.11/site-packages/ros_rclpy.libs" in library_path
    assert prefixes == f"{checkout}/ros2_ws/install:{checkout}/.venv"
    assert distribution == "jazzy"


def test_the_environment_is_the_same_when_rsd_starts_rsd(checkout: Path) -> None:
    (checkout / ".venv/lib/python3.11/site-packages").mkdir(parents=True)
    shown = 'env | grep -E "^(PYTHONPATH|LD_LIBRARY_PATH|AMENT_PREFIX_PATH|ROS_|RSD_)" | sort'
    once = bash(checkout, f"rsd_environment; {shown}")
    twice = bash(checkout, f"rsd_environment; rsd_environment; {shown}")
    assert once == twice


def test_of_the_users_python_path_only_ros_overlays_reach_our_python(checkout: Path, tmp_path: Path) -> None:
    """A fork of LIBERO or another numpy came before .venv and was run unnoticed."""
    prefix, overlay = tmp_path / "ros", tmp_path / "my ws" / "install" / "robot_msgs"
    developed = tmp_path / "my ws" / "build" / "robot"  # of --symlink-install
    (overlay / "share" / "robot").mkdir(parents=True)
    (overlay / "share" / "robot" / "package.xml").touch()
    kept = [f"{prefix}/lib/python3.12/site-packages", f"{overlay}/lib/python3.12/site-packages", str(developed)]
    python_path = ":".join([kept[0], "/home/me/fork-of-libero", f"{tmp_path}/ros-other/lib", *kept[1:], "/build/numpy"])
    assert bash(checkout, f'rsd_ros_python_path "{python_path}" "{overlay}:{prefix}"') == ":".join(kept)

    (checkout / ".venv/lib/python3.12/site-packages").mkdir(parents=True)
    ros = {"ROS_DISTRO": "jazzy", "AMENT_PREFIX_PATH": f"{overlay}:{prefix}", "PYTHONPATH": python_path}
    shown = bash(checkout, 'rsd_environment; printf "%s\\n" "$PYTHONPATH" "$PYTHONNOUSERSITE$PYTHONSAFEPATH"', **ros)
    own = f"{checkout}:{checkout}/ros2_ws/install/lib/python3.12/site-packages"
    assert shown.splitlines() == [":".join([own, *kept]), "11"]


def test_without_a_home_nodes_write_elsewhere(checkout: Path, tmp_path: Path) -> None:
    """A container's user: no HOME was a traceback; a home that cannot be written to keeps rclpy from starting."""
    (checkout / ".venv/lib/python3.11/site-packages").mkdir(parents=True)
    shown = 'rsd_environment; printf "%s\\n" "$HOME" "$ROS_LOG_DIR" "$USER"'
    gone = bash(checkout, shown, HOME="/gone", TMPDIR=str(tmp_path), USER="")
    own = f"{tmp_path}/rsd_policy-{os.getuid()}"
    assert gone == f"{own}\n{own}/ros\nuid{os.getuid()}\n"
    kept = bash(checkout, shown.replace("$ROS_LOG_DIR", "${ROS_LOG_DIR:-}"), HOME=str(tmp_path), USER="me")
    assert kept == f"{tmp_path}\n\nme\n"


def test_a_path_that_ros_cannot_be_built_in_is_refused_at_once(checkout: Path) -> None:
    """An umlaut was an obscure error of CMake after minutes."""
    for name in ("Roboter\u00e9", "a;b", "it's"):
        elsewhere = checkout.rename(checkout.with_name(name))
        done = setup(elsewhere, LC_ALL="C.UTF-8")
        assert done.returncode == 3
        assert f"{name}' cannot be built in" in done.stderr
        assert not (elsewhere / ".venv").exists()
        elsewhere.rename(checkout)


def test_a_path_with_a_space_is_accepted(checkout: Path) -> None:
    spaced = checkout.rename(checkout.with_name("a b, c+d@e=f~g-1.2_3"))
    done = setup(spaced, RSD_PYTHON="/nonexistent/python3")
    assert "RSD_PYTHON=/nonexistent/python3 does not run" in done.stderr


def test_an_installed_node_starts_with_an_interpreter_in_a_path_with_a_space(tmp_path: Path) -> None:
    """`#!"/a b/.venv/bin/python"` cannot be started, and colcon's setup.bash called the interpreter unquoted."""
    interpreter = tmp_path / "a b" / "python"
    interpreter.parent.mkdir()
    interpreter.symlink_to(sys.executable)
    node, plain = tmp_path / "lib" / "rsd_policy" / "node", tmp_path / "lib" / "rsd_policy" / "plain"
    node.parent.mkdir(parents=True)
    node.write_text(f'#!"{interpreter}"\nimport sys\nprint(sys.argv[1:], sys.executable)\n')
    plain.write_text("#!/usr/bin/env python3\n")
    local_setup = tmp_path / "local_setup.bash"
    local_setup.write_text('x="$($_colcon_python_executable "$y/_local_setup_util_sh.py" sh bash)"\n')
    module = script("quote_interpreter")
    assert module.repair(tmp_path) == [node, local_setup]
    node.chmod(0o755)
    done = subprocess.run([node, "--help", "c d"], capture_output=True, text=True, check=True)
    assert done.stdout == f"['--help', 'c d'] {interpreter}\n"
    assert '"$("$_colcon_python_executable" "$y/' in local_setup.read_text()
    assert module.repair(tmp_path) == []


def test_an_installed_jazzy_is_preferred_to_the_wheels(checkout: Path, tmp_path: Path) -> None:
    prefix = str(tmp_path / "ros")
    assert bash(checkout, "rsd_ros_kind") == "wheels\n"
    assert bash(checkout, "rsd_ros_kind", ROS_DISTRO="jazzy", AMENT_PREFIX_PATH=prefix) == "system\n"
    assert bash(checkout, "rsd_ros_kind", ROS_DISTRO="kilted", AMENT_PREFIX_PATH=prefix) == "system\n"
    assert bash(checkout, "rsd_ros_kind", ROS_DISTRO="humble", AMENT_PREFIX_PATH=prefix) == "wheels\n"


def test_wheel_exports_point_to_the_running_interpreter(tmp_path: Path) -> None:
    module = script("relocate_ros_wheels")
    export = tmp_path / "share/std_msgs/cmake/export_std_msgs__rosidl_generator_pyExport.cmake"
    export.parent.mkdir(parents=True)
    export.write_text(
        'INTERFACE_INCLUDE_DIRECTORIES "/opt/python/cp311-cp311/include/python3.11;'
        '/opt/python/cp311-cp311/lib/python3.11/site-packages/numpy/_core/include"\n'
    )
    untouched = tmp_path / "share/std_msgs/cmake/other.cmake"
    untouched.write_text("set(x 1)\n")
    assert module.relocate(tmp_path, "/usr/include/python3.11", "/venv/numpy/_core/include") == [export]
    assert export.read_text() == ('INTERFACE_INCLUDE_DIRECTORIES "/usr/include/python3.11;/venv/numpy/_core/include"\n')
    assert module.relocate(tmp_path, "/usr/include/python3.11", "/venv/numpy/_core/include") == []


def test_the_locks_pin_everything() -> None:
    for name in ("lock.txt", "ros-wheels.txt"):
        for line in (ROOT / "requirements" / name).read_text().splitlines():
            assert line.startswith("#") or "==" in line.split(";")[0], f"{name}: {line}"


def test_a_lock_line_has_a_marker_where_interpreters_differ() -> None:
    resolved = {
        "3.11": {"numpy": "2.4.6", "rich": "15.0.0"},
        "3.12": {"numpy": "2.4.6", "rich": "15.0.0"},
        "3.10": {"numpy": "2.2.6", "rich": "15.0.0", "tomli": "2.5.0"},
    }
    assert script("lock").merge(resolved) == [
        'numpy==2.2.6 ; python_version < "3.11"',
        'numpy==2.4.6 ; python_version >= "3.11"',
        "rich==15.0.0",
        'tomli==2.5.0 ; python_version < "3.11"',
    ]
