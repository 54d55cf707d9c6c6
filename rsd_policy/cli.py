"""`rsd`: finds the subcommand, runs it, and turns errors into one message and an exit status."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from importlib import import_module

from rsd_policy import interrupts
from rsd_policy.exit_status import DONE, INTERRUPTED, WRONG_ARGUMENTS
from rsd_policy.faults import debugging, report

COMMANDS = {
    "eval": ("rsd_policy.commands.eval", "run episodes in closed loop on LIBERO: success, latency, acceptance"),
    "report": ("rsd_policy.commands.report", "write the HTML report of a result directory"),
    "compare": ("rsd_policy.commands.compare", "compare two results episode by episode"),
    "record": ("rsd_policy.commands.record", "record a simulated episode, or what runs in this domain, as a bag"),
    "replay": ("rsd_policy.commands.replay", "show a bag to a policy and compare its answers with what was recorded"),
    "import": ("rsd_policy.commands.import_bags", "turn bags and LeRobot datasets into demonstrations to train on"),
    "view": ("rsd_policy.commands.view", "show a bag or the results of an evaluation in Rerun"),
    "play": ("rsd_policy.commands.play", "send the inputs out of a bag as a robot does"),
    "robot": ("rsd_policy.commands.robot", "check: say what the contract of a robot finds in a bag"),
    "collect": ("rsd_policy.commands.collect", "record demonstrations of the scripted expert"),
    "fit-codec": ("rsd_policy.commands.fit_codec", "fit the action codec to demonstrations"),
    "train": ("rsd_policy.commands.train", "train a policy on demonstrations"),
    "train-heads": ("rsd_policy.commands.train_heads", "train RFSQ heads for a backbone, OpenVLA's included"),
    "calibrate": ("rsd_policy.commands.calibrate", "choose the gate's threshold from the policy's own rollouts"),
    "export": ("rsd_policy.commands.export", "copy a checkpoint, verified, with a model card"),
    "bench": ("rsd_policy.commands.bench", "measure the latency of inference per mode"),
    "doctor": ("rsd_policy.commands.doctor", "say what is installed, what works and what is missing"),
    "test": ("rsd_policy.commands.test", "ruff, mypy and all tests; further arguments go to pytest"),
}
"""Subcommand -> (module with `main(argv) -> exit status`, one line of help). Imported only when called."""

SHELL_COMMANDS = {"setup": "only set up .venv and ros2_ws; --clean: from nothing"}
"""Subcommands that the `rsd` script runs itself, before any Python exists."""


def usage() -> str:
    """The help text: every subcommand with its line."""
    lines = {name: line for name, (_, line) in COMMANDS.items()} | SHELL_COMMANDS
    width = max(map(len, lines))
    return "\n".join(
        [
            "usage: rsd SUBCOMMAND [ARGUMENTS]",
            "",
            "Vision-language-action policies for robot arms, made fast by residual speculative decoding.",
            "",
            "subcommands:",
            *(f"  {name:<{width}}  {line}" for name, line in lines.items()),
            "",
            "`rsd SUBCOMMAND --help` tells the arguments. --debug (or RSD_DEBUG=1) shows the traceback of an error.",
            "Exit status: 0 done, 2 wrong arguments, 3 not set up or checkpoint invalid, 4 could not be run, "
            "5 outside the tolerance.",
        ]
    )


def main(argv: list[str] | None = None) -> int:
    """Run the subcommand named by the first argument. Returns the exit status."""
    try:
        return _main(argv)
    except BrokenPipeError:
        # the reader (head, less) has gone: end as other programs do, and keep the interpreter from flushing into it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


def _main(argv: list[str] | None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = debugging()
    if arguments[:1] == ["--debug"]:
        debug = True
        del arguments[0]
    if not arguments:
        print(usage(), file=sys.stderr)
        return WRONG_ARGUMENTS
    name, *rest = arguments
    if name in ("-h", "--help", "help"):
        print(usage(), flush=True)  # a reader that has gone is met here, not at the end of the interpreter
        return DONE
    if name in SHELL_COMMANDS:
        print(
            f"rsd: '{name}' is a part of the script ./rsd in the sources of rsd_policy; call it there", file=sys.stderr
        )
        return WRONG_ARGUMENTS
    if name not in COMMANDS:
        known = ", ".join([*COMMANDS, *SHELL_COMMANDS])
        print(f"rsd: unknown subcommand '{name}'; expected one of {known}", file=sys.stderr)
        return WRONG_ARGUMENTS
    if "--debug" in rest and name != "test":
        debug = True
        rest.remove("--debug")
    return _run(name, [_from_home(argument) for argument in rest], debug)


def _from_home(argument: str) -> str:
    """The argument with its tilde as the home directory, also where shells leave it alone: in `--out=~/results`."""
    option, equals, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
    return f"{option}{equals}{os.path.expanduser(value)}" if value.startswith("~") else argument


def _run(name: str, arguments: list[str], debug: bool) -> int:
    module, _ = COMMANDS[name]
    try:
        interrupts.listen()
        command = import_module(module)
        interrupts.check()
        return int(command.main(arguments))
    except BrokenPipeError:
        raise  # not a fault of the disk
    except KeyboardInterrupt as interrupt:
        if debug:
            traceback.print_exc()
        print(f"\nrsd {name}: interrupted{f'; {interrupt}' if str(interrupt) else ''}", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        return report(f"rsd {name}", error, debug=debug)


if __name__ == "__main__":
    sys.exit(main())
