"""Makes what colcon installed work where the interpreter's path has a space or is long: run once after colcon.

    python requirements/quote_interpreter.py ros2_ws/install

setuptools writes `#!"/a b/python"` into the executables, which no kernel understands, nor a path of more than 127 bytes
everywhere; colcon calls the interpreter unquoted in its local_setup scripts.
"""

from __future__ import annotations

import sys
from pathlib import Path

LONGEST = 127
"""Bytes of a first line that every Linux reads (256 from 5.1 on)."""


def quoted(script: str) -> str:
    """The text of a Python script whose first line the kernel can read, starting the same interpreter.

    Where it cannot, a shell starts it: to the shell the second line is a command, to Python a string over two lines.
    """
    first, newline, rest = script.partition("\n")
    if first.startswith('#!"'):
        interpreter = first[3:].rpartition('"')[0]
    elif first.startswith("#!/") and len(first.encode()) > LONGEST:
        interpreter = first[2:]
    else:
        return script
    return f"#!/bin/sh\n'''exec' \"{interpreter}\" \"$0\" \"$@\"\n' '''{newline}{rest}"


def repair(install: Path) -> list[Path]:
    """Rewrite the scripts in an install space of colcon that need it; returns those that changed."""
    changed = []
    for path in sorted([*install.glob("lib/*/*"), *install.glob("local_setup.*")]):
        if not path.is_file() or path.suffix in (".so", ".ps1"):
            continue
        try:
            before = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a compiled one
        if path.parent == install:
            after = before.replace("$($_colcon_python_executable ", '$("$_colcon_python_executable" ')
        else:
            after = quoted(before)
        if after != before:
            path.write_text(after, encoding="utf-8")
            changed.append(path)
    return changed


if __name__ == "__main__":
    print(f"rewrote {len(repair(Path(sys.argv[1])))} scripts of {sys.argv[1]}")
