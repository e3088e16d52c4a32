"""A process whose Python is stopped ends by itself, with the code that was asked for."""

import subprocess
import sys

from megasink.train.exit_codes import BROKEN

STUCK = """
import ctypes, threading
from megasink.train.last_resort import LastResort
threading.Thread(target=lambda: None).start()
resort = LastResort({code})
resort.arm(0.2)
ctypes.PyDLL(None).sleep(60)  # keeps the interpreter's lock
"""
CAREFUL = """
import time
from megasink.train.last_resort import LastResort
resort = LastResort({code})
for _ in range(3):
    resort.arm(0.1)
resort.disarm()
time.sleep(1.3)
"""


def run(program: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", program.format(code=BROKEN)], capture_output=True, text=True, timeout=50
    )


def test_a_call_that_keeps_the_interpreters_lock_does_not_keep_the_process():
    ended = run(STUCK)
    assert ended.returncode == BROKEN, ended.stderr
    assert 'File "<string>", line 7 in <module>' in ended.stderr  # where it was stuck


def test_disarmed_it_lets_the_process_be():
    assert run(CAREFUL).returncode == 0
