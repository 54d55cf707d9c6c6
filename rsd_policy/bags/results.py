"""What a replay leaves: replay.json, JUnit XML for a CI, and the verdict."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from rsd_policy.bags.answers import Answer, Replayed
from rsd_policy.bags.compare import FIELDS, UNITS, tolerances
from rsd_policy.bags.playback import Playback
from rsd_policy.errors import ArgumentError

JSON = "replay.json"
JUNIT = "junit.xml"
HTML = "replay.html"


def summarise(replayed: Replayed, playback: Playback, run: dict[str, Any]) -> dict[str, Any]:
    """The content of replay.json.

    Args:
        run: what answered: policy, policy_sha256, mode, alpha, device, ros.
    """
    answers = replayed.answers
    compared = replayed.compared
    largest = (
        np.max([a.difference.largest for a in compared if a.difference], axis=0, initial=0.0) if compared else None
    )
    first = replayed.first
    decided = [a.chunk.accepted for a in answers if a.chunk.accepted is not None]
    recorded = playback.recorded
    return {
        "bag": str(playback.bag.path),
        "robot": playback.contract.robot,
        **run,
        "against": replayed.against or None,
        "within_tolerance": None if not compared else first is None,
        "bit_equal": None if not compared else replayed.equal,
        "observations": len(answers),
        "compared": len(compared),
        "tolerance": dict(zip(FIELDS, tolerances(playback.contract.action).tolist(), strict=True)),
        "largest": None if largest is None else dict(zip(FIELDS, largest.tolist(), strict=True)),
        "units": dict(zip(FIELDS, UNITS, strict=True)),
        "first_difference": None if first is None else first_difference(first),
        "acceptance_rate": sum(decided) / len(decided) if decided else None,
        "skip_rate": sum(a.chunk.skipped for a in answers) / len(answers) if answers else None,
        "inference_ms": _spread([a.chunk.stats.total_ms for a in answers]),
        "first_action_ms": _spread([a.chunk.stats.first_action_ms for a in answers]),
        "wall_s": replayed.wall_s,
        "recorded_inference_ms": _spread([c.inference_ms for c in recorded.chunks.values()]),
        "recorded_mode": sorted({c.mode for c in recorded.chunks.values()}),
        "provenance": {k: v for k, v in recorded.provenance.items() if k != "contract"},
        "damage": playback.bag.damage,
        "undecodable": dict(playback.damaged + recorded.damaged),
        "refused": dict(playback.refused),
        "without_observation": playback.incomplete,
        "unlike_training": replayed.unlike,
        "answers": [_answer(answer) for answer in answers],
    }


def first_difference(answer: Answer) -> str:
    """One sentence about an answer that is outside the tolerance."""
    assert answer.difference is not None and answer.difference.first is not None
    return f"observation at {answer.stamp * 1e-9:.3f} s, {answer.difference.first}"


def _answer(answer: Answer) -> dict[str, Any]:
    apart = answer.difference
    return {
        "stamp": answer.stamp,
        "episode": answer.episode,
        "instruction": answer.instruction,
        "actions": answer.chunk.actions.tolist(),
        "accepted": answer.chunk.accepted,
        "skipped": answer.chunk.skipped,
        "inference_ms": answer.chunk.stats.total_ms,
        "first_action_ms": answer.chunk.stats.first_action_ms,
        "expected": None if answer.expected is None else _without_nan(answer.expected),
        "mm": None if apart is None else apart.translation_mm,
        "rad": None if apart is None else apart.rotation_rad,
        "gripper": None if apart is None else float(apart.largest[6]),
        "outside": None if apart is None or apart.first is None else str(apart.first),
    }


def _without_nan(values: NDArray[np.float32]) -> list[list[float | None]]:
    """JSON has no NaN."""
    return [[None if np.isnan(value) else float(value) for value in row] for row in values]


def _spread(values: list[float]) -> dict[str, float] | None:
    if not values:
        return None
    p50, p95, p99 = np.percentile(values, [50, 95, 99]).tolist()
    return {"mean": float(np.mean(values)), "p50": p50, "p95": p95, "p99": p99}


def read_answers(path: Path) -> dict[int, NDArray[np.float32]]:
    """Stamp -> actions [T, 7] of another replay (a baseline that a team keeps).

    Args:
        path: of its directory, or its replay.json.

    Raises:
        ArgumentError: it is none.
    """
    file = path / JSON if path.is_dir() else path
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return {int(a["stamp"]): np.asarray(a["actions"], np.float32) for a in content["answers"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArgumentError(f"{file}: expected the replay.json of `rsd replay --out`: {error}") from error


def write_junit(summary: dict[str, Any], path: Path) -> None:
    """One test case per observation, for a CI that reads JUnit XML."""
    failures = sum(1 for answer in summary["answers"] if answer["outside"])
    name = f"replay of {Path(summary['bag']).name} against {summary['against'] or 'nothing'}"
    suite = ElementTree.Element(
        "testsuite", name=name, tests=str(len(summary["answers"])), failures=str(failures), errors="0"
    )
    for answer in summary["answers"]:
        case = ElementTree.SubElement(
            suite,
            "testcase",
            classname=f"{summary['policy']}.{summary['mode']}",
            name=f"observation at {answer['stamp'] * 1e-9:.3f} s",
            time=f"{answer['inference_ms'] * 1e-3:.4f}",
        )
        if answer["outside"]:
            ElementTree.SubElement(case, "failure", message=_printable(answer["outside"]), type="difference")
    tree = ElementTree.ElementTree(suite)
    ElementTree.indent(tree)
    tree.write(path, encoding="utf-8", xml_declaration=True)


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)
