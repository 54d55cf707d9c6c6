"""README and docs hold what they promise: the example runs, no link is dead, a stranger can read them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_example_from_python_runs_as_it_stands() -> None:
    section = (ROOT / "docs" / "index.md").read_text(encoding="utf-8").split("## From Python, without ROS\n")[1]
    example = re.match(r"\s*```python\n(.*?)```", section, re.DOTALL)
    assert example
    done = subprocess.run([sys.executable, "-c", example[1]], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split(":")[0] for line in lines[:-1]] == ["provisional", "verified"] * 3
    assert lines[-1].endswith("of 3 drafts accepted")


def test_the_site_builds_without_a_dead_link(tmp_path: Path) -> None:
    """Strict: a link or an anchor that leads nowhere, or a page that the navigation lacks, fails the build."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "residual" in (tmp_path / "rsd" / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", ["README.md", "models/mini/README.md"])
def test_links_of_pages_outside_the_site_lead_somewhere(page: str) -> None:
    path = ROOT / page
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), f"{page}: {target}"


def test_readme_can_be_read_in_one_sitting() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


NODES = sorted([*(ROOT / "rsd_policy" / "nodes").glob("*.py"), *(ROOT / "sim_bridge" / "nodes").glob("*.py")])


def test_every_parameter_and_topic_is_described() -> None:
    """docs/ros.md names what the nodes declare, so that a new parameter is not left out."""
    page = (ROOT / "docs" / "ros.md").read_text(encoding="utf-8")
    source = "\n".join(path.read_text(encoding="utf-8") for path in NODES)
    declared = re.findall(r'declare_(?:text|choice|float|int|bool|parameter)\(\s*(?:\w+,\s*)?"(\w+)"', source)
    spoken = re.findall(r'create_(?:publisher|subscription|service|client)\(\s*\w+,\s*"([\w/~]+)"', source)
    names = [*declared, *(name.replace("~", "sim_bridge") for name in spoken)]
    assert len(names) > 40
    assert sorted({name for name in names if f"`{name}`" not in page}) == []
