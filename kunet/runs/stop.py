"""Asking a training to stop: signals set a flag, and the training looks at it between steps."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, name)]  # by system


class Stop:
    """``asked``: the name of the signal that came, or "" while none has."""

    asked: str = ""


@contextmanager
def listen() -> Iterator[Stop]:
    """Catch SIGTERM and SIGUSR1 (a scheduler's), and the first SIGINT (Ctrl-C); a second one interrupts at once.

    Signals can be caught in the main thread only; elsewhere nothing is ever asked.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(number, frame):
        if number == signal.SIGINT and stop.asked:
            raise KeyboardInterrupt
        stop.asked = signal.Signals(number).name

    before = {number: signal.signal(number, ask) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ignore() -> None:
    """For helper processes: the one that started them decides when they end."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
