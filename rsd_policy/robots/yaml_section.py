"""A section of a YAML file whose complaints name the file, the line and the fix."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import yaml

from rsd_policy.errors import ArgumentError

T = TypeVar("T")

_REQUIRED = object()


class Section:
    """A mapping of a YAML file. Each `take_*` removes one entry; `end` refuses what is left.

    All of them raise ArgumentError with the file, the line, what was expected, what came, and where in the section.
    """

    def __init__(self, path: Path, node: yaml.Node, name: str) -> None:
        self._path = path
        self._node = node
        self._name = name
        if not isinstance(node, yaml.MappingNode):
            raise self.error(f"{name or 'the file'}: expected a mapping 'key: value'", node)
        self._entries: dict[str, yaml.Node] = {}
        for key, value in node.value:
            if key.value in self._entries:
                raise self.error(f"{self._of(str(key.value))}: given twice; keep one", key)
            self._entries[str(key.value)] = value
        self._keys = {str(key.value): key for key, _ in node.value}
        self._known: list[str] = []

    @classmethod
    def load(cls, path: Path) -> Section:
        """The whole file."""
        try:
            node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        except OSError as error:
            raise ArgumentError(f"{path}: cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise ArgumentError(f"{path}: expected UTF-8 text: {error}") from error
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            line = f":{mark.line + 1}" if mark else ""
            raise ArgumentError(f"{path}{line}: no YAML: {getattr(error, 'problem', error)}") from error
        if node is None:
            raise ArgumentError(f"{path}:1: expected a contract, the file is empty; copy config/robots/template.yaml")
        return cls(path, node, "")

    def error(self, message: str, node: yaml.Node | None = None) -> ArgumentError:
        """An error at a node, by default at the section's start."""
        line = (node or self._node).start_mark.line + 1
        return ArgumentError(f"{self._path}:{line}: {message}")

    def at(self, key: str, message: str) -> ArgumentError:
        """An error at an entry, which may have been taken already."""
        return self.error(f"{self._of(key)}: {message}", self._keys.get(key))

    def section(self, key: str, *, required: bool = True) -> Section | None:
        node = self._take(key, _REQUIRED if required else None)
        return Section(self._path, node, self._of(key)) if isinstance(node, yaml.Node) else None

    def sections(self, key: str) -> dict[str, Section]:
        """The entries of a mapping of sections, in order."""
        outer = self.section(key)
        assert outer is not None
        entries = {name: Section(self._path, node, outer._of(name)) for name, node in outer._entries.items()}
        if not entries:
            raise outer.error(f"{outer._name}: expected at least one entry")
        return entries

    def text(self, key: str, default: str | None = None, *, choices: Sequence[str] = ()) -> str:
        def check(value: object) -> str:
            if not isinstance(value, str) or not value.strip():
                raise ValueError("a text")
            if choices and value not in choices:
                close = difflib.get_close_matches(value, choices, 1)
                raise ValueError(f"one of {', '.join(choices)}" + (f" (did you mean {close[0]}?)" if close else ""))
            return value

        return self._value(key, default, check)

    def number(self, key: str, default: float | None = None, *, low: float, high: float, unit: str = "") -> float:
        def check(value: object) -> float:
            wanted = f"a number {low:g}..{high:g}{' ' + unit if unit else ''}"
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
                raise ValueError(wanted)
            return float(value)

        return self._value(key, default, check)

    def numbers(self, key: str, size: int, default: Sequence[float] | None = None) -> tuple[float, ...]:
        def check(value: object) -> tuple[float, ...]:
            if not isinstance(value, list) or len(value) != size or not all(_finite(entry) for entry in value):
                raise ValueError(f"{size} numbers [..]")
            return tuple(float(entry) for entry in value)

        return self._value(key, None if default is None else tuple(default), check)

    def texts(self, key: str, default: Sequence[str] | None = None) -> tuple[str, ...]:
        def check(value: object) -> tuple[str, ...]:
            if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
                raise ValueError("a list of texts [..]")
            return tuple(value)

        return self._value(key, None if default is None else tuple(default), check)

    def items(self, key: str) -> list[object]:
        """A list of whatever, empty when it is not there."""

        def check(value: object) -> list[object]:
            if not isinstance(value, list):
                raise ValueError("a list")
            return value

        return self._value(key, [], check)

    def has(self, key: str) -> bool:
        return key in self._entries

    def end(self) -> None:
        """Refuse entries that nobody has asked for."""
        for key in self._entries:
            close = difflib.get_close_matches(key, self._known, 1)
            fix = f"did you mean '{close[0]}'?" if close else f"expected {', '.join(self._known)}"
            raise self.error(f"{self._of(key)}: unknown; {fix}", self._keys[key])

    def _of(self, key: str) -> str:
        return f"{self._name}.{key}" if self._name else key

    def _take(self, key: str, default: object) -> object:
        self._known.append(key)
        if key in self._entries:
            return self._entries.pop(key)
        if default is _REQUIRED:
            raise self.error(f"{self._of(key)}: missing; config/robots/template.yaml explains it")
        return default

    def _value(self, key: str, default: T | None, check: Callable[[object], T]) -> T:
        node = self._take(key, _REQUIRED if default is None else default)
        if not isinstance(node, yaml.Node):
            return node  # type: ignore[return-value]  # the default
        value = _plain(node)
        try:
            return check(value)
        except ValueError as error:
            raise self.error(f"{self._of(key)}: expected {error}, got {value!r}", node) from None


def _plain(node: yaml.Node) -> object:
    return yaml.SafeLoader("").construct_object(node, deep=True)


def _finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
