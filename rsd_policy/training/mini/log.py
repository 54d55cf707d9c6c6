"""The record of a training run: one JSON line per report, kept beside the resumable state."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from rsd_policy.training.mini.trainer import Progress, Validation


class TrainingLog:
    """Reports of the training loop, on disk and in memory.

    A resumed run goes on in the same file. What an interrupted run had reported behind its last saved state is reported
    again and replaces the first report.

    Args:
        path: file of JSON lines; read when it exists.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.progress: dict[int, Progress] = {}
        self.validations: dict[int, Validation] = {}
        if path.is_file():
            for line in path.read_text().splitlines():
                self._keep(_parse(json.loads(line)))

    def append(self, report: Progress | Validation) -> None:
        """Add one report; it is on disk when this returns."""
        self._keep(report)
        with self._path.open("a") as file:
            file.write(json.dumps({"kind": type(report).__name__, **asdict(report)}) + "\n")

    def _keep(self, report: Progress | Validation) -> None:
        if isinstance(report, Validation):
            self.validations[report.step] = report
        else:
            self.progress[report.step] = report


def _parse(entry: dict[str, object]) -> Progress | Validation:
    kind = {"Progress": Progress, "Validation": Validation}[str(entry.pop("kind"))]
    return kind(**entry)
