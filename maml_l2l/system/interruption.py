"""SIGINT (Ctrl-C), SIGTERM and SIGHUP (the terminal is gone) as requests to stop in good order."""

from __future__ import annotations

import signal
import threading

from maml_l2l.system.errors import Stopped

_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class StopRequests:
    """While this context is open, a signal is noted in `signal_number` for the loop to act on between two iterations.

    As long as `at_once` is true, nothing has been done that could be lost: the signal then raises `Stopped` with
    `message` where the program stands, in the compiler for example. A second SIGINT raises `KeyboardInterrupt` there.
    """

    def __init__(self, message: str):
        self.message, self.at_once, self.signal_number = message, True, None
        self._previous: dict = {}

    def __enter__(self) -> StopRequests:
        if threading.current_thread() is threading.main_thread():  # Python lets no other set handlers
            heeded = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]  # as nohup sets
            self._previous = {number: signal.signal(number, self._note) for number in heeded}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: object) -> None:
        if self.signal_number is not None and number == signal.SIGINT:
            raise KeyboardInterrupt  # whoever reads the files is safe: none stands half-written under its name
        self.signal_number = number
        if self.at_once:
            raise self.stopped()

    def stopped(self) -> Stopped:
        """The exception that says which signal it was and how to go on; SIGTERM if another process received it."""
        number = signal.SIGTERM if self.signal_number is None else signal.Signals(self.signal_number)
        return Stopped(f"stopped by {number.name}: {self.message}", number)
