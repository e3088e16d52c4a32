"""A signal to the launcher itself: the whole job saves one step and ends, as docs/fault-tolerance.md says.

`tests/long/signals.py` tries all signals on all processes.
"""

import pytest

from tests.faults.launchers import RUNNER_UP, launch
from tests.faults.test_faults import steps_of

FLAGS = ["--train-iters", 10**6, "--save-interval", 0, "--tensor-model-parallel-size", 2]


@pytest.mark.parametrize(("launcher", "name"), [("torchrun", "SIGTERM"), ("deepspeed", "SIGINT")])
def test_a_signal_to_the_launcher_stops_the_job_with_a_checkpoint(tokens, tmp_path, launcher, name):
    run = tmp_path / "run"
    fault = {"kind": "signal", "rank": 1, "at": 5, "name": name, "up": RUNNER_UP[launcher]}
    ended = launch(launcher, run, tokens, fault, *FLAGS)
    assert ended.code != 0 and not ended.trained_on, ended.output
    assert steps_of(run)[-1] >= 5, ended.output
    assert ended.lines("Stopped after step"), ended.output
