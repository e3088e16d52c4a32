"""When to stop early: a signal or the time limit."""

import os
import signal
import threading
import time

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
INSISTENCE_S = 5.0
"""Launchers send several signals for one wish; one that comes later than this after the first is another wish."""


class StopRequest:
    """This rank's wish to stop. One INSISTENCE_S after the first signal ends the process at once, code 128 + number."""

    def __init__(self, exit_duration_in_mins: float | None):
        self.started = time.monotonic()
        self.deadline = None if exit_duration_in_mins is None else 60.0 * exit_duration_in_mins
        self.reason: str | None = None
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._on_signal)
        # Python runs handlers only when the main thread is in no C call, which a hung collective never leaves
        arrivals, wake_up = os.pipe()
        os.set_blocking(wake_up, False)
        signal.set_wakeup_fd(wake_up, warn_on_full_buffer=False)
        threading.Thread(target=_end_when_insisted, args=(arrivals,), name="signals", daemon=True).start()

    def heed_interrupt(self) -> None:
        """From now on Ctrl-C is a wish too; until the run is on its way it just ends it."""
        signal.signal(signal.SIGINT, self._on_signal)

    def wanted(self) -> bool:
        if self.deadline is not None and time.monotonic() - self.started > self.deadline:
            self.reason = self.reason or "time limit reached"
        return self.reason is not None

    def _on_signal(self, number: int, _frame: object) -> None:
        self.reason = f"received {signal.Signals(number).name}"


def ignore_signals() -> None:
    """For a rank that only has to end: once one has left, srun hurries the others, and would report that signal."""
    signal.set_wakeup_fd(-1)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _end_when_insisted(arrivals: int) -> None:
    """In a thread: the numbers of signals come out of the pipe `arrivals` as bytes."""
    first = None
    while numbers := os.read(arrivals, 1):
        now = time.monotonic()
        if numbers[0] not in SIGNALS:
            continue
        if first is None:
            first = now
        elif now - first > INSISTENCE_S:
            os._exit(128 + numbers[0])
