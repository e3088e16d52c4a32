"""Launch scripts and the study command as processes."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.helpers.jobs import ROOT

LAUNCHER = f"""
trap 'kill -9 $!' TERM INT
RANK=0 LOCAL_RANK=0 WORLD_SIZE=1 MASTER_ADDR=127.0.0.1 {sys.executable} -u -m megasink.train "$@" &
wait $!
"""
"""A launch script that treats its rank as DeepSpeed's launcher does: asked to stop, it does not let it save."""


def start(study: Path, *flags: str) -> subprocess.Popen:
    """tools/study.py in a process of its own."""
    words = [sys.executable, ROOT / "tools" / "study.py", study, *flags]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    environment = {
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.Popen(words, env=environment, cwd=ROOT, **pipes)


def until(process: subprocess.Popen, condition: Callable[[], bool]) -> None:
    """Look again and again until it holds; a study that ends before, or two minutes, fail the test."""
    deadline = time.monotonic() + 120
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            for number in (signal.SIGINT, signal.SIGTERM):  # the second one ends its runs at once
                process.send_signal(number)
            raise AssertionError(process.communicate()[0])
        time.sleep(0.1)
