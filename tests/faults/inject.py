"""The program of a rank to which something happens: `FAULT` in the environment says what, on which rank, and when.

FAULT is JSON: {"kind": ..., "rank": R, "at": N}. Kinds and what N counts:
    kill, terminate, stop, sleep    before step N + 1: SIGKILL, SIGTERM or SIGSTOP to itself, or sleeping for ever
    signal                          before step N + 1: the signal "name" to itself or the process so many "up" (a
                                    launcher), with "group" to its whole process group, as a terminal sends Ctrl-C
    fill, fill_while_writing        before step N + 1, or as the N-th save is about to write, long after it looked for
                                    space: a file "filler" takes all space of the folder "path"
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

    def send(number: signal.Signals):
        return lambda: os.kill(os.getpid(), number)

    if kind == "nan":
        _poison(engine, loop, at, until, layer)
    elif kind in ("kill_after_file", "stop_after_file"):
        number = signal.SIGKILL if kind == "kill_after_file" else signal.SIGSTOP
        saver.describe_file = _at(at, saver.describe_file, after=send(number))
    elif kind == "kill_before_manifest":
        saver.write_manifest = _at(at, saver.write_manifest, before=send(signal.SIGKILL))
    elif kind == "kill_before_rename":
        saver.write_manifest = _at(at, saver.write_manifest, after=send(signal.SIGKILL))
    elif kind == "fill_while_writing":
        saver._write = _at(at, saver._write, before=lambda: _fill(Path(path) / "filler"))
    else:
        actions = {
            "kill": send(signal.SIGKILL),
            "terminate": send(signal.SIGTERM),
            "stop": send(signal.SIGSTOP),
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


def _at(count: int, function, before=lambda: None, after=lambda: None):
    """function, whose `count`-th call, counted behind those for step 0's weights, does something before or after."""
    calls = iter(range(1, 1 << 30))

    def with_action(folder: Path, *arguments):
        now = "step_00000000" not in str(folder) and next(calls) == count
        if now:
            before()
        result = function(folder, *arguments)
        if now:
            after()
        return result

    return with_action


if __name__ == "__main__":
    run()
