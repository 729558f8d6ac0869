"""Requests to stop: SIGINT by hand, SIGTERM by whoever ends the machine, SIGUSR2 by a scheduler ahead of its limit."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR2") if hasattr(signal, name))


def ignore_stops() -> None:
    """Leave signals to stop to the driver; for the main thread of a worker."""
    for number in STOP_SIGNALS:
        with contextlib.suppress(ValueError):  # not in the main thread
            signal.signal(number, signal.SIG_IGN)


_granted_s = 0.0


@contextlib.contextmanager
def granting(seconds: float) -> Iterator[None]:
    """Within, work may go on for so long after SIGUSR2."""
    global _granted_s
    before, _granted_s = _granted_s, seconds
    try:
        yield
    finally:
        _granted_s = before


def granted_s() -> float:
    """Seconds that the present work has after SIGUSR2; 0 for other work."""
    return _granted_s


@contextlib.contextmanager
def stop_signals(
    request: Callable[[str], None],
    *,
    patience: Callable[[], tuple[float | None, float]] | None = None,
    notice_s: float = 0.0,
) -> Iterator[None]:
    """Within, a signal to stop calls ``request`` with its name; a second one raises KeyboardInterrupt at once.

    Signals that were ignored stay ignored, and the handlers are restored at the end. Outside the main thread, where
    Python allows no handlers, nothing is changed.

    Args:
        request: asks the loop to end.
        patience: for a loop that cannot look while it works. It gives the seconds until the work should end (None
            where nobody knows) and the seconds that it may take. KeyboardInterrupt ends work that takes longer.
        notice_s: how long the work may go on after SIGUSR2.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    timer: threading.Timer | None = None
    asked = ""

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal timer, asked
        name = signal.Signals(number).name
        if asked:
            raise KeyboardInterrupt(name)
        asked = name
        request(name)
        if patience is not None:
            left, grace_s = patience()
            if left is not None and left > grace_s:
                raise KeyboardInterrupt(name)
            timer = threading.Timer(grace_s, os.kill, (os.getpid(), number))
            timer.daemon = True
            timer.start()

    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    try:
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, handle)
        with granting(notice_s):
            yield
        if asked:  # all was done already, and the rest of the program is to end too
            raise KeyboardInterrupt(asked)
    finally:
        if timer is not None:
            timer.cancel()
        for number, handler in before.items():
            if handler is not None and handler is not signal.SIG_IGN:
                signal.signal(number, handler)
