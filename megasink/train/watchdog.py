"""Notices that a rank makes no progress, says what every rank is doing, and ends the job so that it can be requeued.

The loop calls `beat` as it goes. A rank whose loop is silent for too long writes its stacks into `hangs/` of the run
folder; since one stuck rank soon has all others waiting for it, all do. The first of them then says in one line per
group which ranks stand where. A frozen process is the one that has written nothing.
"""

import contextlib
import faulthandler
import itertools
import json
import math
import os
import sys
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from megasink.data.atomic import write_atomic
from megasink.train.exit_codes import BROKEN
from megasink.train.last_resort import LastResort

FIRST_STEP_FACTOR = 10.0
"""For the first step, which compiles and fills caches, and for saving."""
GATHERING_S = 10.0
"""How long the ranks' reports, and then the summary of them, are waited for (the step time-out, if that is less)."""
LAST_RESORT_S = 3 * GATHERING_S
"""So much later the process ends without a report: should a C call keep the interpreter's lock, no Python can write
one."""
SUMMARY_FILE = "summary.txt"


class Watchdog:
    """One per rank, made by all together. `timeout_s` = 0 switches it off.

    Reports go to `hangs/START_TIME`: not to one folder a step, since ranks may differ by a step.
    """

    def __init__(self, hangs: Path, timeout_s: float):
        started = [time.strftime("%Y%m%dT%H%M%S")]
        dist.broadcast_object_list(started, src=0)
        self.folder = hangs / started[0]
        self.timeout_s = timeout_s
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self._main_thread = threading.get_ident()
        self._closed = threading.Event()
        self._reporting, self._reported = threading.Lock(), False
        self._last_resort = LastResort(BROKEN) if timeout_s > 0 else None
        self._armed, self._armed_for = -math.inf, ""
        self.beat(0, "starting")
        if timeout_s > 0:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def beat(self, step: int, phase: str) -> None:
        """Progress: `step` steps are done, and `phase` begins."""
        now = time.monotonic()
        self._latest = (now, step, phase)
        if self._last_resort is not None and (phase != self._armed_for or now - self._armed > 1.0):
            self._last_resort.arm(self._limit(phase) + LAST_RESORT_S)
            self._armed, self._armed_for = now, phase

    def close(self) -> None:
        self._closed.set()
        if self._last_resort is not None:
            self._last_resort.disarm()

    def _limit(self, phase: str) -> float:
        return self.timeout_s * (FIRST_STEP_FACTOR if phase in ("starting", "first step", "saving") else 1.0)

    def _watch(self) -> None:
        while not self._closed.wait(min(1.0, self.timeout_s / 4)):
            since, _, phase = self._latest
            if time.monotonic() - since > self._limit(phase):
                self.report()
                os._exit(BROKEN)

    def report(self, error: Exception | None = None) -> None:
        """What this rank is doing, and on the first that reports what all are; the caller then ends the process.

        Args:
            error: a collective operation's time-out, raised where the rank was.
        """
        with self._reporting, contextlib.suppress(Exception):  # whatever fails here, the process must end
            if not self._reported:
                self._reported = True
                since, step, phase = self._latest
                self._report(step, phase, time.monotonic() - since, error)

    def _report(self, step: int, phase: str, silent_s: float, error: Exception | None) -> None:
        patience_s = min(GATHERING_S, self.timeout_s or GATHERING_S)
        reports = self.folder
        reports.mkdir(parents=True, exist_ok=True)
        with open(reports / f"rank_{self.rank:05d}.stacks.txt", "w", encoding="utf-8") as file:
            if error is not None:
                file.writelines(traceback.format_exception(error))
                file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
        _write_flight_record(reports / f"rank_{self.rank:05d}.collectives.json")
        own = reports / f"rank_{self.rank:05d}.json"
        described = {"step": step, "phase": phase, "silent_s": silent_s, "where": self._where(error)}
        write_atomic(own, json.dumps(described).encode())
        _wait_for(lambda: len(list(reports.glob("rank_?????.json"))) == self.world_size, patience_s)
        found = sorted(reports.glob("rank_?????.json"))
        if found[0] == own:
            lines = "\n".join(summary(found, self.world_size, silent_s))
            print(lines, file=sys.stderr, flush=True)
            write_atomic(reports / SUMMARY_FILE, f"{lines}\n".encode())
        else:  # the end of one process tears the others out of their waiting, the one that summarises too
            _wait_for((reports / SUMMARY_FILE).exists, patience_s)

    def _where(self, error: Exception | None) -> str:
        """Innermost line of the main thread (or of where `error` was raised), and innermost line of megasink in it."""
        if error is None:
            frames = list(traceback.walk_stack(sys._current_frames()[self._main_thread]))
        else:
            frames = list(traceback.walk_tb(error.__traceback__))[::-1]
        places = [(frame.f_code, line) for frame, line in frames]
        ours = (place for place in places[1:] if f"{os.sep}megasink{os.sep}" in place[0].co_filename)
        shown = [*places[:1], *itertools.islice(ours, 1)]
        return " from ".join(f"{code.co_name} ({os.path.basename(code.co_filename)}:{line})" for code, line in shown)


def summary(found: list[Path], world_size: int, silent_s: float) -> list[str]:
    """Lines for the user: silent ranks first, then groups of ranks that stand at the same place, the rarest first."""
    places: dict[tuple[int, str, str], list[int]] = defaultdict(list)
    for path in found:
        report = json.loads(path.read_text(encoding="utf-8"))
        places[report["step"], report["phase"], report["where"]].append(int(path.stem.removeprefix("rank_")))
    heard = {rank for ranks in places.values() for rank in ranks}
    missing = sorted(set(range(world_size)) - heard)
    lines = [f"megasink: no progress for {silent_s:.0f} s; ending the job. Stacks of all ranks: {found[0].parent}"]
    if missing:
        lines.append(f"megasink:   rank {_listed(missing)}: nothing heard (frozen or dead): suspect this one")
    for (step, phase, where), ranks in sorted(places.items(), key=lambda item: (len(item[1]), item[0][0])):
        lines.append(f"megasink:   rank {_listed(ranks)}: after step {step}, {phase}, in {where}")
    return lines


def _wait_for(condition: Callable[[], bool], patience_s: float) -> None:
    deadline = time.monotonic() + patience_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)


def _listed(ranks: list[int]) -> str:
    shown = ", ".join(map(str, ranks[:8]))
    return shown if len(ranks) <= 8 else f"{shown} and {len(ranks) - 8} more"


def _write_flight_record(path: Path) -> None:
    """torch's record of the last collectives (which one each rank has and has not entered), where there is one."""
    with contextlib.suppress(Exception):
        c10d = torch._C._distributed_c10d
        dump = c10d._dump_nccl_trace_json if torch.cuda.is_available() else c10d._dump_fr_trace_json
        path.write_bytes(dump())
