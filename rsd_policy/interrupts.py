"""An interrupt that cannot get lost.

Python drops a KeyboardInterrupt that comes inside a callback of its import system ("Exception ignored in ..."), and a
command that is still importing would run to its end as if nobody had pressed Ctrl-C.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType

_received: list[int] = []


def listen() -> None:
    """Note each SIGINT, beside raising KeyboardInterrupt. What has a handler of its own keeps it."""
    here = threading.current_thread() is threading.main_thread()
    if here and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _note)


def check() -> None:
    """Raise KeyboardInterrupt if one has come since `listen` that was lost."""
    if _received:
        _received.clear()
        raise KeyboardInterrupt


def _note(number: int, frame: FrameType | None) -> None:
    _received.append(number)
    raise KeyboardInterrupt
