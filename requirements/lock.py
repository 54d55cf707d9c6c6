"""Writes lock.txt and ros-wheels.txt from direct.txt and ros-direct.txt. For maintainers: the set-up only reads them.

    python3 requirements/lock.py python3.11 python3.12 python3.10
    python3 requirements/lock.py --upgrade python3.11 python3.12 python3.10

Each interpreter resolves with pip (nothing is installed). What is locked keeps its version unless --upgrade is given.
The first interpreter decides the other versions; another one takes the same version where it can, and gets a line with
a marker where it cannot. A CPU build of torch is not named: pip takes
it by itself where an index offers it. The CUDA packages that the other build needs are pinned by torch's own metadata.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
NOT_LOCKED = re.compile(r"nvidia-|cuda-|triton$")
HEADER = "# Pinned closure of {source} for Python 3.10-3.12; written by lock.py, do not edit.\n"


def canonical(name: str) -> str:
    """Package name as indexes spell it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def locked() -> dict[str, list[str]]:
    """Package -> its lines in both locks, markers included."""
    lines: dict[str, list[str]] = {}
    for name in ("lock.txt", "ros-wheels.txt"):
        for line in (HERE / name).read_text().splitlines():
            if line and not line.startswith("#"):
                lines.setdefault(canonical(line.partition("==")[0]), []).append(line)
    return lines


def resolve(python: str, constraints: dict[str, list[str]]) -> dict[str, str]:
    """Package -> version of both direct lists, with the constraints (lines of a package) that can be satisfied here."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([python, "-m", "venv", f"{folder}/venv"], check=True)
        pip = [f"{folder}/venv/bin/python", "-m", "pip", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", "--quiet", "--upgrade", "pip"], check=True)
        usable = dict(constraints)
        while True:
            pins = Path(folder, "constraints.txt")
            pins.write_text("".join(f"{line}\n" for lines in usable.values() for line in lines))
            command = [*pip, "install", "--dry-run", "--ignore-installed", "--report", f"{folder}/report.json"]
            command += ["-c", str(pins), "-r", str(HERE / "direct.txt"), "-r", str(HERE / "ros-direct.txt")]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode == 0:
                break
            # pip 26.3 names the packages on its standard output, older ones on the error output.
            reasons = done.stdout.partition("The conflict is caused by:")[2] + done.stderr
            named = r"([ (]{0}==|requirement {0}\[)"
            refused = {name for name in usable if re.search(named.format(re.escape(name)), reasons, re.IGNORECASE)}
            if not refused:
                raise SystemExit(f"{python}: no resolution:\n{done.stderr}")
            print(f"{python}: other versions for {', '.join(sorted(refused))}")
            for name in refused:
                del usable[name]
        report = json.loads(Path(folder, "report.json").read_text())
    found = {canonical(item["metadata"]["name"]): item["metadata"]["version"] for item in report["install"]}
    return {name: version.split("+")[0] for name, version in found.items() if not NOT_LOCKED.match(name)}


def merge(resolved: dict[str, dict[str, str]]) -> list[str]:
    """Lock lines of "3.x" -> package -> version; a marker on those that are not the same for all.

    The markers of the newest interpreter have no upper end: a system's ROS may bring a newer one yet.
    """
    pythons = sorted(resolved, key=lambda python: int(python.split(".")[1]))
    lines = []
    for name in sorted({name for versions in resolved.values() for name in versions}):
        taken = [resolved[python].get(name) for python in pythons]
        start = 0
        for stop in range(1, len(pythons) + 1):
            if stop < len(pythons) and taken[stop] == taken[start]:
                continue
            conditions = []
            if start > 0:
                conditions.append(f'python_version >= "{pythons[start]}"')
            if stop < len(pythons):
                conditions.append(f'python_version < "{pythons[stop]}"')
            if taken[start] is not None:
                lines.append(f"{name}=={taken[start]}" + (f" ; {' and '.join(conditions)}" if conditions else ""))
            start = stop
    return lines


def main(pythons: list[str], upgrade: bool) -> None:
    """Resolve for every interpreter and write both locks."""
    resolved: dict[str, dict[str, str]] = {}
    constraints = {} if upgrade else locked()
    for python in pythons:
        code = "import sys; print('%d.%d' % sys.version_info[:2])"
        version = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
        resolved[version] = resolve(python, constraints)
        for name, found in resolved[version].items():
            constraints.setdefault(name, [f"{name}=={found}"])
    lines = merge(resolved)
    ros = [line for line in lines if line.startswith("ros-")]
    (HERE / "ros-wheels.txt").write_text(HEADER.format(source="ros-direct.txt") + "\n".join(ros) + "\n")
    rest = [line for line in lines if line not in ros]
    (HERE / "lock.txt").write_text(HEADER.format(source="direct.txt") + "\n".join(rest) + "\n")


if __name__ == "__main__":
    main([name for name in sys.argv[1:] if name != "--upgrade"] or ["python3"], "--upgrade" in sys.argv[1:])
