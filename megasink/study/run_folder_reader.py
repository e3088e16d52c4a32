"""What a run folder says about its run: state, progress, and series over steps. Reads only; a torn line is left out."""

import fcntl
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megasink.study.study_file import StudyRun

Series = dict[int, float]
"""Step -> value, steps ascending."""

NOT_STARTED, QUEUED, RUNNING = "not started", "queued", "running"
STOPPED, FAILED, DIVERGED, FINISHED = "stopped", "failed", "diverged", "finished"
OVER = (DIVERGED, FINISHED)
"""States in which a run is not started again."""

ENDED = "megasink study: ended with code "
"""How the study marks in a run's log that a launch came to an end."""


@dataclass(frozen=True)
class RunProgress:
    """A run as its folder and the queue show it; losses are None before the first logged step."""

    run: StudyRun
    state: str
    step: int
    total: int
    loss: float | None
    valid_loss: float | None
    tokens_per_second: float | None
    remaining_s: float | None
    """Seconds of training left at the pace of the last steps."""
    note: str
    """What the run's log said last, where the run stands still."""


def read_progress(run: StudyRun, queue_state: str | None = None) -> RunProgress:
    """`queue_state`: `queued` or `running`, where Slurm has a job of this run."""
    metrics = list(_records(run.folder / "metrics.jsonl"))
    last = metrics[-1] if metrics else {}
    step, total = last.get("step", 0), run.config.training.train_iters
    state = _state(run, step, queue_state)
    valid = [record["valid_loss"] for record in metrics if "valid_loss" in record]
    paces = [record["step_time_s"] for record in metrics[-20:] if "step_time_s" in record]
    remaining = max(total - step, 0) * float(np.median(paces)) if paces else None
    return RunProgress(
        run=run,
        state=state,
        step=step,
        total=total,
        loss=last.get("loss"),
        valid_loss=valid[-1] if valid else None,
        tokens_per_second=last.get("tokens_per_second"),
        remaining_s=0.0 if state in OVER else remaining,
        note=_last_words(run.log) if state in (STOPPED, FAILED, DIVERGED) else "",
    )


def _state(run: StudyRun, step: int, queue_state: str | None) -> str:
    saved = (path.parent.name.removeprefix("step_") for path in run.folder.glob("checkpoints/step_*/manifest.json"))
    if max((int(steps) for steps in saved if steps.isdigit()), default=-1) >= run.config.training.train_iters:
        return FINISHED
    if queue_state is not None:
        return queue_state
    if is_locked(run.folder):
        return RUNNING
    events = _records(run.folder / "events.jsonl")
    if any(event.get("event") == "diverged" and event["step"] >= step for event in events):
        return DIVERGED
    code = _last_code(run.log)
    if code is not None and code not in (0, 75, 76):
        return FAILED
    return STOPPED if run.folder.is_dir() or run.log.is_file() else NOT_STARTED


def is_locked(folder: Path) -> bool:
    """Whether a process is training into the folder. Asks with a shared lock, given back at once."""
    try:
        handle = os.open(folder / ".lock", os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(handle)


def read_series(folder: Path) -> dict[str, Series]:
    """All numbers of metrics.jsonl and sink_stats/scalars.jsonl by name."""
    series: dict[str, Series] = {}
    for path in (folder / "metrics.jsonl", folder / "sink_stats" / "scalars.jsonl"):
        for record in _records(path):
            for name, value in record.items():
                if name != "step" and isinstance(value, (int, float)):
                    series.setdefault(name, {})[record["step"]] = float(value)
    return {name: dict(sorted(values.items())) for name, values in series.items()}


def _records(path: Path) -> Iterator[dict]:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            yield record


def _tail(log: Path) -> list[str]:
    try:
        with open(log, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 16384))
            return file.read().decode("utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _last_code(log: Path) -> int | None:
    """Exit code of the last launch that the study itself saw the end of; None where a later one began."""
    for line in reversed(_tail(log)):
        if line.startswith(ENDED):
            return int(line.removeprefix(ENDED))
        if line.strip():
            return None
    return None


_EXCEPTION = re.compile(r"[\w.]+(Error|Exception)(:|$)")


def _last_words(log: Path) -> str:
    """What the last launch said at its end: its last line that is ours, else (a crash) the last exception's or, without
    one, whatever came last. DeepSpeed's launcher speaks after a crash; its lines say nothing of it."""
    lines = [line.strip() for line in _tail(log) if line.strip() and not line.startswith(ENDED)]
    begun = [
        place for place, line in enumerate(lines) if line.startswith(("megasink: starting;", "megasink: resuming"))
    ]
    lines = lines[begun[-1] + 1 :] if begun else lines
    ours = [line.removeprefix("megasink: ") for line in lines if line.startswith(("megasink:", "Stopped after"))]
    exceptions = [line for line in lines if _EXCEPTION.match(line)]
    return (ours or exceptions or lines or [""])[-1]
