"""`rsd test`: ruff, mypy and pytest in one run; pytest comes last, so that its closing line is the last line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from rsd_policy.errors import SetupError
from rsd_policy.exit_status import DONE, FAILED

ROOT = Path(__file__).resolve().parents[2]


def main(argv: list[str]) -> int:
    """Run all checks; `argv` goes to pytest. All of them run even when one fails. Returns 0 when all passed, else 1."""
    if not (ROOT / "tests").is_dir():
        raise SetupError(f"expected the tests in {ROOT / 'tests'}, found none; run ./rsd test in a source checkout")
    checks = {
        "ruff": ["-m", "ruff", "check", "."],
        "mypy": ["-m", "mypy"],
        "pytest": ["-m", "pytest", *argv],
    }
    # no node of the tests may see another robot, whatever the shell says
    environment = os.environ | {"ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}
    failed = []
    for name, command in checks.items():
        print(f"== {name}", flush=True)
        if subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, check=False).returncode != 0:
            failed.append(name)
    if failed and failed != ["pytest"]:
        print(f"rsd test: failed: {', '.join(failed)}", file=sys.stderr)
    return FAILED if failed else DONE
