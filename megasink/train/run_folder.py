"""The run folder: one writer at a time, the resolved configuration, where it came from (docs/run-folder.md)."""

import contextlib
import json
import platform
import subprocess
import sys
import time
from pathlib import Path

import filelock
import torch

import megasink
from megasink.config import RunConfig
from megasink.config.cli import to_yaml
from megasink.data.atomic import write_atomic
from megasink.errors import UserError


class RunFolder:
    """Paths of a run, and the lock that keeps a second job out. Made on rank 0 before the others look at it."""

    def __init__(self, path: str):
        self.path = Path(path)
        self.metrics = self.path / "metrics.jsonl"
        self.sink_stats = self.path / "sink_stats"
        self.checkpoints = self.path / "checkpoints"
        self.events = self.path / "events.jsonl"
        self.hangs = self.path / "hangs"
        self._lock = filelock.FileLock(self.path / ".lock")

    def create(self, patience_s: float = 0.0) -> None:
        """Make the folders and take the lock, waiting so long for a job that holds it to end.

        Raises:
            UserError: the lock stays taken, or nothing can be written there.
        """
        try:
            for folder in (self.path, self.sink_stats, self.checkpoints):
                folder.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire(timeout=0)
            except filelock.Timeout:
                if patience_s > 0:
                    print(f"megasink: waiting for another job to leave {self.path}", flush=True)
                self._lock.acquire(timeout=patience_s)
        except filelock.Timeout:
            raise UserError(
                f"--save {self.path}: another job is writing this run folder; stop it or name another"
            ) from None
        except OSError as error:
            raise UserError(f"--save {self.path}: cannot write there ({error.strerror}); name another folder") from None

    def say(self, text: str) -> None:
        """One line for the person who watches, now and later in train.log."""
        with contextlib.suppress(OSError):  # a full disk under a log ends no run
            print(text, flush=True)
        with contextlib.suppress(OSError), open(self.path / "train.log", "a", encoding="utf-8") as file:
            file.write(text + "\n")

    def write_configuration(self, config: RunConfig, world_size: int) -> None:
        """config.yaml (reloadable with --config) and provenance.json (one entry per start of the run)."""
        write_atomic(self.path / "config.yaml", to_yaml(config).encode())
        history = self.path / "provenance.json"
        starts = json.loads(history.read_text(encoding="utf-8")) if history.exists() else []
        starts.append(
            {
                "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                "command": sys.argv,
                "git_commit": _git_commit(),
                "world_size": world_size,
                "host": platform.node(),
                "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu",
                "versions": {
                    "megasink": megasink.__version__,
                    "torch": torch.__version__,
                    "python": sys.version.split()[0],
                },
            }
        )
        write_atomic(history, f"{json.dumps(starts, indent=1)}\n".encode())


def _git_commit() -> str | None:
    """Commit of megasink's own checkout, with `+changes` if the tree was not clean; None outside a checkout."""
    command = [
        "git",
        "-C",
        str(Path(megasink.__file__).parent),
        "describe",
        "--always",
        "--abbrev=40",
        "--dirty=+changes",
    ]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
