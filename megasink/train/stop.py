"""When to stop early: a signal or the time limit."""

import signal
import time

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
INSISTENCE_S = 5.0
"""Launchers send several signals for one wish; one that comes later than this after the first is another wish."""


class StopRequest:
    """This rank's wish to stop. A second signal ends the process at once."""

    def __init__(self, exit_duration_in_mins: float | None):
        self.started = time.monotonic()
        self.deadline = None if exit_duration_in_mins is None else 60.0 * exit_duration_in_mins
        self.reason: str | None = None
        self._signalled: float | None = None
        for number in SIGNALS:
            signal.signal(number, self._on_signal)

    def wanted(self) -> bool:
        if self.deadline is not None and time.monotonic() - self.started > self.deadline:
            self.reason = self.reason or "time limit reached"
        return self.reason is not None

    def _on_signal(self, number: int, _frame: object) -> None:
        now = time.monotonic()
        if self._signalled is None:
            self._signalled = now
        elif now - self._signalled > INSISTENCE_S:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.reason = f"received {signal.Signals(number).name}"
