"""What every test needs of the process it runs in."""

from __future__ import annotations

import signal

# A job that a script starts in the background is born with SIGINT ignored, and so are its children: tests of Ctrl-C
# would then send it to processes that cannot hear it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
