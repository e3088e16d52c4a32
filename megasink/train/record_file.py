"""A JSON-lines file that survives a killed run and a full disk."""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path

from megasink.data.atomic import write_atomic


class RecordFile:
    """Appends records that have a `step`; those of steps after `last_step`, left by a killed run, are dropped first.

    NaN and infinity, which JSON has no word for, become null.

    While nothing can be written, records wait in memory; `say` gets one line about it.
    """

    def __init__(self, path: Path, last_step: int, say: Callable[[str], None]):
        self.path = path
        self.say = say
        self._waiting: list[dict] = []
        if path.exists():
            kept = [
                line + "\n" for line in path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= last_step
            ]
            write_atomic(path, "".join(kept).encode())

    def append(self, record: dict) -> None:
        self._waiting.append(record)
        lines = "".join(json.dumps(_strict(waiting), allow_nan=False) + "\n" for waiting in self._waiting)
        try:
            with open(self.path, "ab") as file:
                before = file.tell()
                try:
                    file.write(lines.encode("utf-8"))
                    file.flush()
                    os.fsync(file.fileno())
                except OSError:
                    os.truncate(self.path, before)
                    raise
        except OSError as error:
            if len(self._waiting) == 1:
                self.say(f"megasink: {self.path}: {error.strerror}; its records wait in memory, the run goes on")
        else:
            self._waiting.clear()


def _strict(record: dict) -> dict:
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in record.items()
    }


def _step_of(line: str) -> float:
    """Infinity for a torn line."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")
