"""Signals as people and schedulers send them to launchers: the job saves one step and ends.

`tests/long/signals.py` tries all signals on all processes; docs/fault-tolerance.md has its table.
"""

import pytest

from tests.faults.launchers import RUNNER_UP, launch
from tests.faults.test_faults import steps_of

FLAGS = ["--train-iters", 10**6, "--save-interval", 0, "--tensor-model-parallel-size", 2]


@pytest.mark.parametrize(
    ("launcher", "signal"),
    [("torchrun", {"name": "SIGTERM"}), ("deepspeed", {"name": "SIGINT", "group": True})],  # the second is Ctrl-C
)
def test_a_signal_stops_the_job_with_a_checkpoint(tokens, tmp_path, launcher, signal):
    run = tmp_path / "run"
    fault = {"kind": "signal", "rank": 1, "at": 5, "up": RUNNER_UP[launcher]} | signal
    ended = launch(launcher, run, tokens, fault, *FLAGS)
    assert ended.code != 0 and not ended.trained_on, ended.output
    (stopped,) = ended.lines("Stopped after step")
    assert steps_of(run)[-1] == int(stopped.split()[3]) >= 5
