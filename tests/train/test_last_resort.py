"""A process whose Python is stopped ends by itself, with the code that was asked for."""

import subprocess
import sys

from megasink.train.exit_codes import BROKEN

STUCK = f"""
import ctypes
from megasink.train.last_resort import LastResort
resort = LastResort({BROKEN})
resort.arm(0.2)
ctypes.PyDLL(None).sleep(60)  # keeps the interpreter's lock
"""
CAREFUL = f"""
import ctypes
from megasink.train.last_resort import LastResort, _Schedule
resort, left = LastResort({BROKEN}), _Schedule()
for act, runs in ((lambda: resort.arm(100), True), (resort.disarm, False), (lambda: resort.arm(100), True)):
    act()
    resort._timers.timer_gettime(resort._timer, ctypes.byref(left))
    assert (left.first_s > 90) == runs, (left.first_s, runs)
"""


def run(program: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=50)


def test_a_call_that_keeps_the_interpreters_lock_does_not_keep_the_process():
    ended = run(STUCK)
    assert ended.returncode == BROKEN, ended.stderr
    assert 'File "<string>", line 6 in <module>' in ended.stderr  # where it was stuck


def test_its_clock_runs_while_it_is_armed_and_not_after():
    ended = run(CAREFUL)
    assert ended.returncode == 0, ended.stderr
