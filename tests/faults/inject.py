"""The program of a rank to which something happens: `FAULT` in the environment says what, on which rank, and when.

FAULT is JSON: {"kind": ..., "rank": R, "at": N}. Kinds and what N counts:
    kill, terminate, stop, sleep    before step N + 1: SIGKILL, SIGTERM or SIGSTOP to itself, or sleeping for ever
    fill                            before step N + 1: a file "filler" that takes all space of the folder "path"
    nan                             the loss of steps N + 1, N + 2, ... up to "until" is NaN (on all ranks)
    kill_after_file                 SIGKILL when the N-th file of checkpoints was written, by the thread that writes
    kill_before_manifest, kill_before_rename    SIGKILL in the N-th save, when all else is done
"""

import contextlib
import json
import math
import os
import signal
import time
from pathlib import Path

from megasink.train import main


def run() -> None:
    fault = json.loads(os.environ.get("FAULT", "{}"))
    if fault and (fault["kind"] == "nan" or fault["rank"] == int(os.environ["RANK"])):
        _arm(**fault)
    main()


def _arm(kind: str, at: int, rank: int = 0, until: int = 0, path: str = "") -> None:
    from megasink.checkpoint import saver
    from megasink.train import engine, loop

    if kind == "nan":
        _poison(engine, loop, at, until)
    elif kind == "kill_after_file":
        saver.describe_file = _dies_after(at, saver.describe_file)
    elif kind == "kill_before_manifest":
        saver.write_manifest = _dies_before(at, saver.write_manifest)
    elif kind == "kill_before_rename":
        saver.write_manifest = _dies_after(at, saver.write_manifest)
    else:
        actions = {
            "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
            "terminate": lambda: os.kill(os.getpid(), signal.SIGTERM),
            "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
            "sleep": lambda: time.sleep(1e6),
            "fill": lambda: _fill(Path(path) / "filler"),
        }
        step = loop._train_step

        def with_fault(run: loop.Run, *arguments):
            if run.progress.step == at:
                actions[kind]()
            return step(run, *arguments)

        loop._train_step = with_fault


def _fill(path: Path) -> None:
    with contextlib.suppress(OSError), open(path, "wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 12))


def _poison(engine, loop, at: int, until: int) -> None:
    step, loss = loop._train_step, engine.TrainEngine._loss
    now = {"step": -1}

    def with_step(run, *arguments):
        now["step"] = run.progress.step
        return step(run, *arguments)

    def with_nan(self, *arguments):
        return loss(self, *arguments) * (math.nan if at <= now["step"] < until else 1.0)

    loop._train_step, engine.TrainEngine._loss = with_step, with_nan


def _dies_before(count: int, function):
    """SIGKILL at the `count`-th call of function, which starts to count behind step 0's weights."""
    calls = iter(range(1, 1 << 30))

    def dying(folder: Path, *arguments):
        if "step_00000000" not in str(folder) and next(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(folder, *arguments)

    return dying


def _dies_after(count: int, function):
    calls = iter(range(1, 1 << 30))

    def dying(folder: Path, *arguments):
        result = function(folder, *arguments)
        if "step_00000000" not in str(folder) and next(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return dying
