"""Ctrl-C and SIGTERM, granted between two steps so that what is saved is whole."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """Notes the first SIGINT or SIGTERM instead of acting on it; a second one acts at once.

    The loop asks `signal` where its state is whole, saves it, and calls `leave` with it: with that of any process, so
    that all leave at the same step.

    >>> with Interruption() as interruption:
    ...     interruption.signal
    0
    """

    def __init__(self) -> None:
        self.signal = 0  # that somebody asked to stop with
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interruption:
        # Python lets only the main thread set handlers; elsewhere the caller's own rules stay.
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal:
            self.leave(self.signal)
        self.signal = number

    @staticmethod
    def leave(number: int) -> NoReturn:
        """Raise what a signal stands for: `KeyboardInterrupt`, or `SystemExit(143)` for SIGTERM."""
        if number == signal.SIGTERM:
            raise SystemExit(143)
        raise KeyboardInterrupt
