"""Ends this process with a chosen exit code when a time has passed, even if no Python can run any more.

A thread that waits inside CUDA while it holds the interpreter's lock (as over NCCL, when a peer has died) stops all
Python threads and signal handlers. So the C library's own timer calls its `_exit`, on a thread that needs no lock.
"""

import ctypes
import faulthandler
import math

_CLOCK_MONOTONIC, _SIGEV_THREAD = 1, 2  # time.h, signal.h of Linux


class _Event(ctypes.Structure):
    """`struct sigevent`, 64 bytes."""

    _fields_ = [
        ("value", ctypes.c_void_p),
        ("signal", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("function", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p),
        ("padding", ctypes.c_byte * 32),
    ]


class _Schedule(ctypes.Structure):
    """`struct itimerspec`: seconds and nanoseconds of the interval, and of the first time."""

    _fields_ = [(name, ctypes.c_long) for name in ("every_s", "every_ns", "first_s", "first_ns")]


class LastResort:
    """Armed again and again while all is well. `exit_code` is what the process ends with otherwise, after all threads'
    stacks have gone to stderr."""

    def __init__(self, exit_code: int):
        # Linux only, as training is; glibc before 2.34 (RHEL 8) has its timers in a library of their own
        libc = ctypes.CDLL(None, use_errno=True)
        self._timers = libc if hasattr(libc, "timer_create") else ctypes.CDLL("librt.so.1", use_errno=True)
        leave = ctypes.cast(libc._exit, ctypes.c_void_p)
        event = _Event(value=exit_code, notify=_SIGEV_THREAD, function=leave)
        self._timer = ctypes.c_void_p()
        if self._timers.timer_create(_CLOCK_MONOTONIC, ctypes.byref(event), ctypes.byref(self._timer)):
            raise OSError(ctypes.get_errno(), "timer_create failed")

    def arm(self, seconds: float) -> None:
        """In so many seconds from now, instead of what was armed before."""
        faulthandler.dump_traceback_later(seconds, exit=False)
        self._set(math.ceil(seconds) + 1)  # the stacks come first

    def disarm(self) -> None:
        """For good, or until armed again."""
        faulthandler.cancel_dump_traceback_later()
        self._set(0)

    def _set(self, seconds: int) -> None:
        self._timers.timer_settime(self._timer, 0, ctypes.byref(_Schedule(first_s=seconds)), None)
