"""The program of a rank to which something happens: `FAULT` in the environment says what, on which rank, and when.

FAULT is JSON: {"kind": ..., "rank": R, "at": N}. Kinds and what N counts:
    kill, terminate, stop, sleep    before step N + 1: SIGKILL, SIGTERM or SIGSTOP to itself, or sleeping for ever
    signal                          before step N + 1: the signal "name" to itself or the process so many "up" (a
                                    launcher), with "group" to its whole process group, as a terminal sends Ctrl-C
    fill                            before step N + 1: a file "filler" that takes all space of the folder "path"
    nan                             the loss of steps N + 1, N + 2, ... up to "until" is NaN (on all ranks), or what
                                    block "layer" (0, 1, ...) puts out
    kill_after_file                 SIGKILL when the N-th file of checkpoints was written, by the thread that writes
    stop_after_file                 SIGSTOP there
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


def _arm(
    kind: str,
    at: int,
    rank: int = 0,
    until: int = 0,
    path: str = "",
    layer: int | None = None,
    name: str = "SIGTERM",
    up: int = 0,
    group: bool = False,
) -> None:
    from megasink.checkpoint import saver
    from megasink.train import engine, loop

    if kind == "nan":
        _poison(engine, loop, at, until, layer)
    elif kind == "stop_after_file":
        saver.describe_file = _dies_after(at, saver.describe_file, signal.SIGSTOP)
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
            "signal": lambda: _signal(_process(up), signal.Signals[name], group),
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


def _signal(process: int, number: signal.Signals, group: bool) -> None:
    if group:
        os.killpg(os.getpgid(process), number)
    else:
        os.kill(process, number)


def _process(up: int) -> int:
    """Number of this process, or of the one so many above it."""
    process = os.getpid()
    for _ in range(up):
        process = int(Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[1])
    return process


def _poison(engine, loop, at: int, until: int, layer: int | None) -> None:
    step, loss = loop._train_step, engine.TrainEngine._loss
    now = {"step": -1}

    def factor() -> float:
        return math.nan if at <= now["step"] < until else 1.0

    def with_step(run, *arguments):
        if layer is not None and now["step"] == -1:
            block = engine.blocks_of(run.engine.model)[layer]
            block.mlp.register_forward_hook(lambda _module, _inputs, output: output * factor())
        now["step"] = run.progress.step
        return step(run, *arguments)

    def with_nan(self, *arguments):
        return loss(self, *arguments) * factor()

    loop._train_step = with_step
    if layer is None:
        engine.TrainEngine._loss = with_nan


def _dies_before(count: int, function):
    """SIGKILL at the `count`-th call of function, which starts to count behind step 0's weights."""
    calls = iter(range(1, 1 << 30))

    def dying(folder: Path, *arguments):
        if "step_00000000" not in str(folder) and next(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(folder, *arguments)

    return dying


def _dies_after(count: int, function, by: signal.Signals = signal.SIGKILL):
    calls = iter(range(1, 1 << 30))

    def dying(folder: Path, *arguments):
        result = function(folder, *arguments)
        if "step_00000000" not in str(folder) and next(calls) == count:
            os.kill(os.getpid(), by)
        return result

    return dying


if __name__ == "__main__":
    run()
