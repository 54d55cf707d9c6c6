"""Other wordings of LIBERO's instructions, so that a policy learns words and not one sentence per task.

LIBERO names every task by one sentence ("pick up the X and place it WHERE", "put the X WHERE", "open the X" ...). A
wording exchanges verbs and prepositions for synonyms, says the two-clause form in one clause, drops articles or adds a
courtesy. What is moved and where it goes is never touched.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Container

TAKE = ("pick up", "grab", "take", "lift", "get")
PUT = ("place", "put", "set", "drop")
MOVE = ("put", "place", "move", "bring", "set")
OPENING = ("", "", "", "please ", "now ", "robot ", "could you ", "your task is to ")
SYNONYMS = {
    "open": ("open", "pull open"),
    "push": ("push", "slide", "move"),
    "turn on": ("turn on", "switch on"),
    "close": ("close", "shut"),
    "next to the": ("next to the", "beside the", "close to the"),
    "black bowl": ("black bowl", "dark bowl", "bowl"),
    "from table center": ("from table center", "from the middle of the table", "from the table center"),
}
GOALS = {"on the ": ("on the ", "onto the "), "in the ": ("in the ", "into the ")}
"""Prepositions of the goal only: where an object is to be found is not where it moves to."""

_TWO_CLAUSES = re.compile(r"^pick up (?P<what>.+?) and place it (?P<where>.+)$")
_ONE_CLAUSE = re.compile(r"^put (?P<what>.+?) (?P<where>(?:on|in) .+)$")


def wordings(instruction: str, count: int, seed: int, held_out: Container[str] = frozenset()) -> list[str]:
    """Wordings of an instruction, lower case.

    Args:
        instruction: as LIBERO gives it.
        count: how many, at least 1.
        seed: the same seed and instruction give the same wordings.
        held_out: wordings that must not come, as `plain` words.

    Returns:
        `count` sentences. The first is the instruction itself; repetitions are possible.
    """
    draw = random.Random(f"{seed} {instruction}")
    others = (_wording(instruction.lower(), draw) for _ in itertools.count())
    allowed = (wording for wording in others if plain(wording) not in held_out)
    return [instruction.lower(), *itertools.islice(allowed, count - 1)]


def plain(text: str) -> str:
    """An instruction's words, lower case, without punctuation: what makes two wordings the same."""
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))


def _wording(instruction: str, draw: random.Random) -> str:
    two = _TWO_CLAUSES.match(instruction)
    parts = two or _ONE_CLAUSE.match(instruction)
    text = instruction
    if parts:
        what, where = parts["what"], parts["where"]
        for words, alternatives in GOALS.items():
            if where.startswith(words):
                where = draw.choice(alternatives) + where.removeprefix(words)
        text = f"{draw.choice(MOVE)} {what} {where}"
        if two and draw.random() < 0.7:
            text = f"{draw.choice(TAKE)} {what} and {draw.choice(PUT)} it {where}"
    for words, others in SYNONYMS.items():
        if draw.random() < 0.4:
            text = re.sub(rf"\b{words}\b", draw.choice(others), text)
    if draw.random() < 0.2:
        text = re.sub(r"\bthe ", "", text)
    return draw.choice(OPENING) + text
