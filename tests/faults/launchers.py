"""Jobs of two ranks under the launchers themselves, in real processes."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tests.helpers.jobs import ROOT, TINY, free_port

LAUNCHERS = {
    "torchrun": [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "PORT", "-m"],
    "deepspeed": ["deepspeed", "-q", "--num_gpus", "2", "--master_port", "PORT", "--module"],
}
RUNNER_UP = {"torchrun": 1, "deepspeed": 2}
"""How many processes above a rank the launcher's command is; deepspeed starts a second launcher on each node."""


@dataclass
class Launched:
    """How the launcher's command ended, what it and the ranks said, and whether ranks trained on after it."""

    code: int
    output: str
    trained_on: bool

    def lines(self, beginning: str) -> list[str]:
        return [line for line in self.output.splitlines() if line.startswith(beginning)]


def launch(launcher: str, run: Path, tokens: Path, fault: dict, *flags: object, patience_s: float = 120.0) -> Launched:
    """Run a job to the end of the launcher's command; ranks that are left then have 30 s to end and are killed."""
    words = [str(free_port()) if word == "PORT" else word for word in LAUNCHERS[launcher]]
    command = [*words, "tests.faults.inject", *TINY, "--data-path", tokens, "--save", run, *flags]
    environment = os.environ | {"FAULT": json.dumps(fault), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    environment |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    said = run.with_suffix(".said")
    with open(said, "w") as file:
        runner = subprocess.Popen(
            list(map(str, command)), env=environment, cwd=ROOT, stdout=file, stderr=file, start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # shells have background jobs ignore it
        )  # fmt: skip
    try:
        code = runner.wait(patience_s)
        deadline = time.monotonic() + 30.0
        while (left := ranks_of(run)) and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        with contextlib.suppress(ProcessLookupError):
            runner.kill()
        for process in ranks_of(run):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
    return Launched(code, said.read_text(errors="replace"), bool(left))


def ranks_of(run: Path) -> list[int]:
    """Processes with this run folder on their command line, zombies excepted (those have none)."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if str(run).encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found
