"""When to stop early: a signal or the time limit."""

import signal
import time

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
INSISTENCE_S = 5.0
"""Launchers send several signals for one wish; one that comes later than this after the first is another wish."""


class StopRequest:
    """This rank's wish to stop. A second signal, so much later than the first, ends the process at once."""

    def __init__(self, exit_duration_in_mins: float | None, insistence_s: float = INSISTENCE_S):
        self.insistence_s = insistence_s
        self.started = time.monotonic()
        self.deadline = None if exit_duration_in_mins is None else 60.0 * exit_duration_in_mins
        self.reason: str | None = None
        self._signalled: float | None = None
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._on_signal)

    def heed_interrupt(self) -> None:
        """From now on Ctrl-C is a wish too; until the run is on its way it just ends it."""
        signal.signal(signal.SIGINT, self._on_signal)

    def wanted(self) -> bool:
        if self.deadline is not None and time.monotonic() - self.started > self.deadline:
            self.reason = self.reason or "time limit reached"
        return self.reason is not None

    def _on_signal(self, number: int, _frame: object) -> None:
        now = time.monotonic()
        if self._signalled is None:
            self._signalled = now
        elif now - self._signalled > self.insistence_s:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.reason = f"received {signal.Signals(number).name}"


def ignore_signals() -> None:
    """For a rank that only has to end: srun hurries the others when one has left, and would report that signal."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
