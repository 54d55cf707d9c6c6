"""README's example from Python runs as it stands."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_example_from_python_runs_as_it_stands() -> None:
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("## From Python, without ROS\n")[1]
    example = re.match(r"\s*```python\n(.*?)```", section, re.DOTALL)
    assert example
    done = subprocess.run([sys.executable, "-c", example[1]], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split(":")[0] for line in lines[:-1]] == ["provisional", "verified"] * 3
    assert lines[-1].endswith("of 3 drafts accepted")
