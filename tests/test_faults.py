"""What a machine does to a command becomes one message with what to do, and an exit status; never a traceback."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from rsd_policy import cli, faults
from rsd_policy.errors import ArgumentError, InferenceError, RSDError, SetupError

ROOT = Path(__file__).resolve().parent.parent


def raised(kind: type[Exception], code: str) -> Exception:
    """What `code` raises, which must be of this kind."""
    with pytest.raises(kind) as caught:
        exec(code, {"Path": Path, "sqlite3": sqlite3})
    return caught.value


def test_a_full_disk_says_to_make_room() -> None:
    """/dev/full answers every write as a full file system does."""
    error = raised(OSError, "with open('/dev/full', 'w') as file: file.write('x')")
    known = faults.understood(error)
    assert isinstance(known, SetupError)
    assert "No space left on device" in str(known) and "--out" in str(known)


def test_a_full_database_says_to_make_room() -> None:
    error = raised(
        sqlite3.OperationalError,
        "db = sqlite3.connect(':memory:')\n"
        "db.execute('CREATE TABLE t (x)'); db.execute('PRAGMA max_page_count = 2')\n"
        "db.execute('INSERT INTO t VALUES (zeroblob(100000))')",
    )
    known = faults.understood(error)
    assert isinstance(known, SetupError)
    assert "make room" in str(known)


@pytest.mark.parametrize("path", ["/proc/results", "/dev/null/results", "/tmp/" + 300 * "x"])
def test_a_place_that_cannot_be_written_to_is_a_wrong_argument(path: str) -> None:
    """The kernel's own file system, a folder below a file, a name that is too long."""
    known = faults.understood(raised(OSError, f"Path('{path}').mkdir()"))
    assert isinstance(known, ArgumentError)
    assert str(known).startswith(f"{path}: expected")


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), InferenceError, "smaller batch"),
        (MemoryError(), InferenceError, "smaller batch"),
        (RuntimeError("Numpy is not available"), InferenceError, "unexpected RuntimeError: Numpy is not available"),
        (TypeError("got an unexpected keyword"), InferenceError, "--debug"),
        (ModuleNotFoundError("No module named 'x'"), SetupError, "No module named 'x'"),
    ],
)
def test_what_libraries_raise_is_understood(error: Exception, kind: type[RSDError], said: str) -> None:
    known = faults.understood(error)
    assert isinstance(known, kind)
    assert said in str(known)


def test_a_mistake_in_the_program_is_not_understood() -> None:
    assert faults.understood(KeyError("absent")) is None


def test_eval_into_a_place_that_cannot_be_written_to_exits_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["eval", "--policy", "expert", "--no-ros", "--out", "/proc/results"]) == 2
    assert capsys.readouterr().err.startswith("rsd eval: /proc/results: expected")


def test_a_tilde_that_the_shell_left_is_the_home_directory(tmp_path: Path) -> None:
    """`--out=~/x` reaches a program with its tilde: it made a folder named `~`."""
    code = "from rsd_policy import cli; import sys; sys.exit(cli.main(['report', '--debug', '--', '~/gone', 'a~b']))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert f"{tmp_path}/gone holds no results" in done.stderr
    assert cli._from_home("--out=~/x") == f"--out={Path.home()}/x"
    assert cli._from_home("--out=a~") == "--out=a~"


@pytest.mark.parametrize(
    ("module", "said"),
    [
        ("rich", "extra [eval]"),
        ("robosuite.macros", "extra [sim]"),
        ("tokenizers", "extra [openvla]"),
        ("rclpy", "comes with ROS 2"),
        ("sensor_msgs.msg", "comes with ROS 2"),
        ("torch", "./rsd setup"),
    ],
)
def test_a_missing_module_names_what_brings_it(module: str, said: str) -> None:
    """In a plain environment (`pip install .`) subcommands lack what their extra brings."""
    known = faults.understood(ModuleNotFoundError(f"No module named '{module}'", name=module))
    assert isinstance(known, SetupError)
    assert said in str(known)
