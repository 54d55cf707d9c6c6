"""The command line: finding subcommands, exit statuses, errors as one message."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from rsd_policy import cli
from rsd_policy.errors import (
    ActionError,
    CheckpointError,
    EpisodeError,
    InferenceError,
    NonFiniteError,
    ObservationError,
    RSDError,
    SetupError,
    SimulationError,
)
from rsd_policy.exit_status import INTERRUPTED

ROOT = Path(__file__).resolve().parent.parent


def rsd(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, with the environment of the tests."""
    return subprocess.run(
        [sys.executable, "-m", "rsd_policy.cli", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"} | environment,
        timeout=60,
        check=False,
    )


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Adds a subcommand `probe` whose main has the given body."""

    def add(body: str) -> None:
        name = f"probe_{tmp_path.name}"
        (tmp_path / f"{name}.py").write_text(f"from rsd_policy.errors import *\ndef main(argv):\n    {body}\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.setitem(cli.COMMANDS, "probe", (name, "for this test"))
        monkeypatch.delitem(sys.modules, name, raising=False)

    return add


def test_every_subcommand_has_a_main() -> None:
    for module, line in cli.COMMANDS.values():
        assert callable(import_module(module).main)
        assert line


def test_help_lists_every_subcommand_without_importing_torch() -> None:
    code = "import sys; from rsd_policy import cli; cli.main(['--help']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0
    for name in [*cli.COMMANDS, *cli.SHELL_COMMANDS]:
        assert f"\n  {name} " in done.stdout


def test_unknown_subcommand_names_the_known_ones() -> None:
    done = rsd("evaluate")
    assert done.returncode == 2
    assert "'evaluate'" in done.stderr
    assert "eval, report, compare" in done.stderr


def test_without_a_subcommand_the_usage_is_an_error() -> None:
    done = rsd()
    assert done.returncode == 2
    assert done.stderr.startswith("usage: rsd")


def test_arguments_and_exit_status_are_those_of_the_subcommand(command, capsys: pytest.CaptureFixture[str]) -> None:
    command("print(argv); return len(argv)")
    assert cli.main(["probe", "a", "--b", "c"]) == 3
    assert capsys.readouterr().out == "['a', '--b', 'c']\n"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (SetupError, 3),
        (CheckpointError, 3),
        (EpisodeError, 4),
        (SimulationError, 4),
        (InferenceError, 4),
        (ObservationError, 2),
        (ActionError, 2),
        (NonFiniteError, 2),
        (RSDError, 2),
    ],
)
def test_an_error_is_one_message_and_its_status(
    command, capsys: pytest.CaptureFixture[str], error: type[RSDError], status: int
) -> None:
    command(f"raise {error.__name__}('expected this, got that')")
    assert cli.main(["probe"]) == status
    assert capsys.readouterr().err == "rsd probe: expected this, got that\n"


def test_debug_shows_the_traceback(command, capsys: pytest.CaptureFixture[str]) -> None:
    command("raise SetupError('missing')")
    assert cli.main(["probe", "--debug"]) == 3
    assert "Traceback" in capsys.readouterr().err


def test_a_programming_error_is_not_hidden(command) -> None:
    command("return {}['absent']")
    with pytest.raises(KeyError):
        cli.main(["probe"])


def test_ctrl_c_ends_with_130_and_without_traceback(command, capsys: pytest.CaptureFixture[str]) -> None:
    command(f"import os; os.kill(os.getpid(), {int(signal.SIGINT)}); return 0")
    assert cli.main(["probe"]) == 130
    assert capsys.readouterr().err == "\nrsd probe: interrupted\n"


def test_the_list_of_subcommands_may_lose_its_reader_too() -> None:
    """`rsd --help | head -3` ended with a traceback."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "rsd_policy.cli", "--help"], stdout=write, stderr=subprocess.PIPE, cwd=ROOT, check=False
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


def test_a_reader_that_leaves_is_no_error() -> None:
    # more output than a pipe holds, so that the write fails while the command runs
    code = (
        "import sys, types; from rsd_policy import cli; module = types.ModuleType('flood')\n"
        "module.main = lambda argv: [print('x' * 1000) for _ in range(1000)] and 0\n"
        "sys.modules['flood'] = module; cli.COMMANDS['flood'] = ('flood', ''); sys.exit(cli.main(['flood']))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=60) == 128 + signal.SIGPIPE
    assert process.stderr.read() == ""
    process.stderr.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_that_python_drops_while_it_imports_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C inside a callback of the import system is "ignored": the evaluation then ran to its end."""

    class Dropping:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    def import_and_be_interrupted(name: str) -> ModuleType:
        dropping = Dropping()
        del dropping  # what __del__ raises is ignored, as in the callback
        return ModuleType(name)

    monkeypatch.setattr(cli, "import_module", import_and_be_interrupted)
    before = signal.getsignal(signal.SIGINT)
    try:
        assert cli.main(["doctor"]) == INTERRUPTED
    finally:
        signal.signal(signal.SIGINT, before)
